"""Which fields name a run; its saved configuration read back; fields set anew, by name or by what the corpus says."""

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
    """The fields that make the run what it is, flat; the manifest counts by its content, not by where it lies."""
    fields = flat(as_dict(config))
    outside = ("name", "data.manifest")
    kept = {key: value for key, value in fields.items() if key not in outside and not key.startswith("placement.")}
    return kept | {"data.manifest_hash": manifest_hash}


def config_of(run_folder: str) -> PretrainConfig:
    """Return the configuration in a run's folder, of this version or the previous one. Imports no package that it
    names: `auto` takes the place of a decoder from outside, with a warning. ValueError says what is wrong with it;
    FileNotFoundError if there is none."""
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
    """The configuration with these fields set anew, under another name. ValueError for a value that it refuses."""
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
    """Return the schedule with its epochs (end, decay) in steps; `first_step` maps an epoch to its first step."""
    num_steps, decay_step = optim.num_steps, optim.decay_step
    if optim.num_epochs is not None:
        num_steps = min(num_steps, first_step(optim.num_epochs))
    if optim.decay_epoch is not None:
        decay_step = first_step(optim.decay_epoch)
    return dataclasses.replace(optim, num_steps=num_steps, decay_step=decay_step)


def with_decoder(data: DataConfig, fastest: str | None) -> DataConfig:
    """Return the data with a decoder in place of `auto`: the one that was measured to be the fastest, if any was."""
    return dataclasses.replace(data, decoder=decoders.resolve(data.decoder, fastest))
