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
"""Old name → current name of renamed fields. An old name is accepted for one version, with a warning."""


def current_name(field: str) -> str:
    """Return the current name of `field`; warn if it was renamed."""
    if field not in RENAMED:
        return field
    warnings.warn(f"{field} is called {RENAMED[field]} now; the next version drops the old name", FutureWarning, 2)
    return RENAMED[field]


def current_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line with renamed fields (`--FIELD VALUE` or `--FIELD=VALUE`) under their current names."""
    result = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        field = name.removeprefix("--").replace("-", "_")
        is_renamed = name.startswith("--") and field in RENAMED
        result.append(f"--{current_name(field).replace('_', '-')}{equals}{value}" if is_renamed else argument)
    return result


def with_current_names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved configuration of this version or the previous one, nested, with the current names."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in saved.items()}
    for old, new in RENAMED.items():
        (section, field), (new_section, new_field) = old.split("."), new.split(".")
        if field in tree.get(section, {}):
            tree[new_section].setdefault(new_field, tree[section].pop(field))
    if "top_k" in tree.get("masking", {}) and "text" in tree:  # it used to limit the words of LVWM too
        tree["text"].setdefault("lvwm_top_k", tree["masking"]["top_k"])
    return tree


def as_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested JSON values, in the form in which it is saved."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=_plain))


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested values to dotted names."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def config_hash(fields: dict[str, Any]) -> str:
    """Return a hash of the identity, 12 hex digits."""
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=6).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return a line per field whose value differs."""
    missing = "absent"
    return [
        f"{key}: was {old.get(key, missing)!r}, is {new.get(key, missing)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, missing) != new.get(key, missing)
    ]


def refuse_below(config: Any, section: str, or_none: str = "", **least: float) -> None:
    """Raise ValueError for the first field that is below its minimum.

    The error prefixes the field's name with `section`. `or_none` is appended to the rule, for fields that may be None.
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
