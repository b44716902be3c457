"""TODO"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs.run import run_files
from jobs.run.config import PretrainConfig
from pipeline import storage


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values, as it is saved."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=_plain))


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def identity(config: PretrainConfig, manifest_hash: str) -> dict[str, Any]:
    """The fields that make the run what it is, flat; the manifest counts by its content, not by where it lies."""
    fields = flat(as_dict(config))
    outside = ("name", "data.manifest")
    kept = {key: value for key, value in fields.items() if key not in outside and not key.startswith("placement.")}
    return kept | {"data.manifest_hash": manifest_hash}


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


def config_of(run_folder: str) -> PretrainConfig:
    """The configuration in a run's folder. ValueError that names what is wrong with it, FileNotFoundError for none."""
    path = f"{run_folder}/config.json"
    storage.check_readable(path)
    try:
        return TypeAdapter(PretrainConfig).validate_python(run_files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {where}: {first['msg']}; it was written by another version") from error


def with_values(base: PretrainConfig, values: Mapping[str, Any], *, name: str) -> PretrainConfig:
    """The configuration with these fields set anew, under another name. ValueError for a value that it refuses."""
    tree = as_dict(base) | {"name": name}
    for path, new in values.items():
        *parts, last = path.split(".")
        inner: Any = tree
        for part in parts:
            inner = inner[part]
        inner[last] = new
    try:
        return TypeAdapter(PretrainConfig).validate_python(tree)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
