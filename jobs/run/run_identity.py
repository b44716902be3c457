"""The identity of a run, its saved configuration, and configurations with replaced fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs.run import run_files
from jobs.run.config import DataConfig, OptimConfig, PretrainConfig
from jobs.run.fields import as_dict, current_name, flat, with_current_names
from pipeline import storage
from pipeline.decode import decoders


def identity(config: PretrainConfig, manifest_hash: str) -> dict[str, Any]:
    """Return the identity fields of a run, flat. The manifest counts by its content, not by its path."""
    fields = flat(as_dict(config))
    outside = ("name", "data.manifest")
    kept = {key: value for key, value in fields.items() if key not in outside and not key.startswith("placement.")}
    return kept | {"data.manifest_hash": manifest_hash}


def config_of(run_folder: str) -> PretrainConfig:
    """Return the configuration in a run's folder, of this version or the previous one. Imports no package that it
    names: `auto` replaces a third-party decoder, with a warning. ValueError if it is invalid; FileNotFoundError if
    there is none."""
    path = f"{run_folder}/config.json"
    storage.check_readable(path)
    try:
        config = TypeAdapter(PretrainConfig).validate_python(with_current_names(run_files.read_json(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {where}: {first['msg']}; it was written by another version") from error
    decoder = decoders.without_foreign(config.data.decoder, path)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, decoder=decoder))


def with_values(base: PretrainConfig, values: Mapping[str, Any], *, name: str) -> PretrainConfig:
    """Return `base` with the dotted fields of `values` replaced and another name. ValueError for an invalid value."""
    tree = as_dict(base) | {"name": name}
    for path, new in values.items():
        *parts, last = current_name(path).split(".")
        inner: Any = tree
        for part in parts:
            inner = inner[part]
        inner[last] = new
    try:
        return TypeAdapter(PretrainConfig).validate_python(tree)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def in_steps(optim: OptimConfig, first_step: Callable[[int], int]) -> OptimConfig:
    """Return the schedule with its epochs (end, decay) as steps; `first_step` maps an epoch to its first step."""
    num_steps, decay_step = optim.num_steps, optim.decay_step
    if optim.num_epochs is not None:
        num_steps = min(num_steps, first_step(optim.num_epochs))
    if optim.decay_epoch is not None:
        decay_step = first_step(optim.decay_epoch)
    return dataclasses.replace(optim, num_steps=num_steps, decay_step=decay_step)


def with_decoder(data: DataConfig, fastest: str | None) -> DataConfig:
    """Return the data config with `auto` resolved: to the fastest measured decoder, or to the default without one."""
    return dataclasses.replace(data, decoder=decoders.resolve(data.decoder, fastest))
