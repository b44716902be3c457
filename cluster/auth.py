"""Who may use a Ray of our own. Imported before Ray, which reads these settings when it is imported."""

from __future__ import annotations

import os
import secrets


def use_private_token() -> None:
    """A Ray that this process starts listens to a token that only it and its workers know.

    Nothing changes where a cluster or a way of authentication was named. Without a token Ray would leave one in the
    home folder, which later changes how clusters are reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys():
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
