"""Authentication of a local Ray. Import this before Ray, which reads these settings at import."""

from __future__ import annotations

import os
import secrets


def use_private_token() -> None:
    """Protect a Ray that this process starts with a token that only it and its workers know.

    Do nothing if the environment names a cluster or an authentication mode. Without a token Ray would write one to the
    home folder, which changes later connections to clusters.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys():
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
