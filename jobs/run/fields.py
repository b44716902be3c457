"""Configurations as plain nested values: flatten, compare, hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Any

RENAMED: Mapping[str, str] = MappingProxyType({"masking.probability": "masking.ratio"})
"""Fields of the previous version that have another name now. The old one is accepted, with a warning."""


def current_name(field: str) -> str:
    """Return the name that `field` has now; warn if it had another one."""
    if field not in RENAMED:
        return field
    warnings.warn(f"{field} is called {RENAMED[field]} now; the next version drops the old name", FutureWarning, 2)
    return RENAMED[field]


def current_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the names that its fields have now: `--FIELD VALUE` or `--FIELD=VALUE`."""
    result = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        field = name.removeprefix("--").replace("-", "_")
        is_renamed = name.startswith("--") and field in RENAMED
        result.append(f"--{current_name(field).replace('_', '-')}{equals}{value}" if is_renamed else argument)
    return result


def with_current_names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved configuration of this version or the previous one, nested, with the names of this one."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in saved.items()}
    for old, new in RENAMED.items():
        (section, field), (new_section, new_field) = old.split("."), new.split(".")
        if field in tree.get(section, {}):
            tree[new_section].setdefault(new_field, tree[section].pop(field))
    if "top_k" in tree.get("masking", {}) and "text" in tree:  # one field chose the words of MSSM and of LVWM
        tree["text"].setdefault("lvwm_top_k", tree["masking"]["top_k"])
    return tree


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


def refuse_below(config: Any, section: str, or_none: str = "", **least: float) -> None:
    """Raise ValueError for the first field that is set to less than its least value.

    `section`: of the configuration, by which the error names the field; `or_none`: what it says of fields that may be
    None.
    """
    for field, lowest in least.items():
        value, name = getattr(config, field), f"{section}.{field}" if section else field
        if value is not None and value < lowest:
            rule = f"must be at least {lowest}" if lowest else "must not be negative"
            raise ValueError(f"{name} {rule}{or_none}, got {value}")


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"a configuration cannot hold a {type(value).__name__}")
