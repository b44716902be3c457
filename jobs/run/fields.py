"""Configurations as plain nested values: flatten, compare, hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from enum import Enum
from typing import Any


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values, as it is saved."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=_plain))


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def config_hash(fields: dict[str, Any]) -> str:
    """12 hex digits of the identity."""
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=6).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line per identity field that is not the same."""
    missing = "absent"
    return [
        f"{key}: was {old.get(key, missing)!r}, is {new.get(key, missing)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, missing) != new.get(key, missing)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"a configuration cannot hold a {type(value).__name__}")
