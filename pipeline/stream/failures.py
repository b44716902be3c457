"""Record clips that failed to decode, so that each costs its time limit once per run, not once per epoch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from pipeline import storage
from pipeline.records import DecodeError, Reason

STORE_REASONS = frozenset({Reason.MISSING, Reason.UNAVAILABLE, Reason.WRONG_CHECKSUM})
"""Reasons that are not recorded: in the next epoch the file may be available."""


def read_failures(folder: str) -> dict[int, DecodeError]:
    """Return clip id → error, as recorded in `folder` by any worker; {} without a folder."""
    if not folder or not storage.exists(folder):
        return {}
    return {int(name.removesuffix(".json")): _read(f"{folder}/{name}") for name in storage.list_files(folder)}


def record_failure(folder: str, slot: Mapping[str, Any]) -> None:
    """Record a decoded `slot` in `folder`, if there is one and its clip failed to decode."""
    if folder and slot["reason"] and slot["reason"] not in STORE_REASONS:
        content = json.dumps({name: slot[name] for name in ("uri", "reason", "detail")})
        storage.write_bytes_atomic(f"{folder}/{slot['clip_id']}.json", content.encode())


@functools.cache
def _read(path: str) -> DecodeError:
    noted = json.loads(storage.read_bytes(path))
    return DecodeError(Reason(noted["reason"]), noted["detail"])
