"""Write and read checkpoints, without pickle. The other files of a run's folder: `jobs/run/run_files.py`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from jobs.run.run_files import CONFIG, PROGRESS, WEIGHTS
from jobs.training.ema import WeightAverage
from pipeline import storage

OPTIMIZER = "optimizer.pt"
AVERAGE = "average.safetensors"
METADATA = {"format": "pt"}
"""Metadata of a safetensors file. Hugging Face's loaders require it."""


@dataclass(kw_only=True)
class Progress:
    """How far a run has come. `step` is also the position in the data: the plan derives the rest."""

    step: int = 0
    """Optimizer steps done."""
    best_score: float = float("-inf")
    best_step: int = 0
    num_stale: int = 0
    """Evaluations since the best one."""
    score: float = float("-inf")
    """Of the last evaluation."""
    probes: dict[str, float] | None = None
    """Metrics of the last evaluation that sweeps compare."""
    seconds: dict[str, float] | None = None
    """Seconds spent so far, by `Clock` name."""
    is_finished: bool = False


def save(
    folder: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    average: WeightAverage | None = None,
    *,
    config_json: bytes = b"",
) -> None:
    """Write weights, optimizer, progress, the moving average of the weights and the resolved configuration."""
    if config_json:
        Path(folder, CONFIG).write_bytes(config_json)
    if average:
        safetensors.torch.save_file(average.values, os.path.join(folder, AVERAGE))
    Path(folder, WEIGHTS).write_bytes(weight_bytes(model))
    torch.save(optimizer.state_dict(), os.path.join(folder, OPTIMIZER))
    Path(folder, PROGRESS).write_text(json.dumps(asdict(progress)))


def load(
    folder: str, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> Progress:
    """Load a checkpoint of `save` and return its progress. ValueError for a missing or an unexpected tensor."""
    if average:
        average.load(safetensors.torch.load_file(os.path.join(folder, AVERAGE)))
    load_weights(Path(folder, WEIGHTS).read_bytes(), model)
    optimizer.load_state_dict(torch.load(os.path.join(folder, OPTIMIZER), weights_only=True, map_location="cpu"))
    return Progress(**json.loads(Path(folder, PROGRESS).read_text()))


def save_best(run_folder: str, model: nn.Module, progress: Progress) -> None:
    """Write the weights and the progress of the best evaluation so far."""
    storage.write_bytes_atomic(f"{run_folder}/best/{WEIGHTS}", weight_bytes(model))
    storage.write_bytes_atomic(f"{run_folder}/best/{PROGRESS}", json.dumps(asdict(progress)).encode())


def weight_bytes(model: nn.Module) -> bytes:
    """Return the weights of `model` as a safetensors file. Tied tensors are stored once, under their first name."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(_unshared(tensors), METADATA)


def read_weights(data: bytes, path: str) -> dict[str, torch.Tensor]:
    """Return name → tensor of a safetensors file. ValueError naming `path` if the file is damaged."""
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}; copy it again, or write it anew") from error


def load_weights(data: bytes, model: nn.Module, path: str = "the checkpoint") -> None:
    """Load a safetensors file into `model`, by name and shape. ValueError for a missing or an unexpected tensor; heads
    of other packages' losses are ignored if `model` has none."""
    weights = read_weights(data, path)
    if not getattr(model, "extra_heads", None):
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("extra_heads.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    aliases = set(model.state_dict()) - set(_unshared(dict(model.state_dict())))
    lost = sorted(set(missing) - aliases)
    if lost or unexpected:
        raise ValueError(f"the checkpoint does not fit the model: missing {lost}, unexpected {sorted(unexpected)}")


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            kept[name] = tensor
        seen.add(tensor.data_ptr())
    return kept
