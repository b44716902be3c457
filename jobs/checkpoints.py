"""A run's folder: what is in it, and how a checkpoint is written and read. Nothing is pickled.

STORAGE/NAME/config.json  identity.json  tokenizer.json  significant_words.json     written once, by the driver
             checkpoint_manager_snapshot.json  checkpoint_…/                        Ray Train's, committed together
             best/  ledger.parquet  evaluation/  seconds.json  results.json  report.html    results
             logs/                                              what each process said (jobs/journal.py)
             stop                                               asks the run to write a checkpoint and end
             failure.json                                       why the run stopped for good
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from jobs.average import WeightAverage
from pipeline import storage

SNAPSHOT, IDENTITY, SECONDS = "checkpoint_manager_snapshot.json", "identity.json", "seconds.json"
FAILURE = "failure.json"
WEIGHTS, OPTIMIZER, PROGRESS = "model.safetensors", "optimizer.pt", "progress.json"
AVERAGE = "average.safetensors"


@dataclass(kw_only=True)
class Progress:
    """How far a run has come. The position in the data is the step: the plan says the rest."""

    step: int = 0
    """Optimizer steps done."""
    best_score: float = float("-inf")
    best_step: int = 0
    num_stale: int = 0
    """Evaluations since the best one."""
    score: float = float("-inf")
    """Of the last evaluation."""
    seconds: dict[str, float] | None = None
    """Time spent so far, by what it went to."""
    is_finished: bool = False


def save(
    folder: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    average: WeightAverage | None = None,
) -> None:
    """Weights, optimizer, progress and a moving average of the weights in `folder`."""
    if average:
        safetensors.torch.save_file(average.values, os.path.join(folder, AVERAGE))
    Path(folder, WEIGHTS).write_bytes(weight_bytes(model))
    torch.save(optimizer.state_dict(), os.path.join(folder, OPTIMIZER))
    Path(folder, PROGRESS).write_text(json.dumps(asdict(progress)))


def load(
    folder: str, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> Progress:
    """The progress in `folder`, after all else there was loaded. Any missing or odd tensor is refused."""
    if average:
        average.load(safetensors.torch.load_file(os.path.join(folder, AVERAGE)))
    load_weights(Path(folder, WEIGHTS).read_bytes(), model)
    optimizer.load_state_dict(torch.load(os.path.join(folder, OPTIMIZER), weights_only=True, map_location="cpu"))
    return Progress(**json.loads(Path(folder, PROGRESS).read_text()))


def save_best(run_folder: str, model: nn.Module, progress: Progress) -> None:
    """The weights that scored best so far, beside what they scored."""
    storage.write_bytes_atomic(f"{run_folder}/best/{WEIGHTS}", weight_bytes(model))
    storage.write_bytes_atomic(f"{run_folder}/best/{PROGRESS}", json.dumps(asdict(progress)).encode())


def weight_bytes(model: nn.Module) -> bytes:
    """The weights of `model` as a safetensors file; tied tensors stand under the first of their names."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(_unshared(tensors))


def load_weights(data: bytes, model: nn.Module) -> None:
    """The weights of a safetensors file in `model`, by name and shape; a tensor too few or too many is refused."""
    missing, unexpected = model.load_state_dict(safetensors.torch.load(data), strict=False)
    aliases = set(model.state_dict()) - set(_unshared(dict(model.state_dict())))
    lost = sorted(set(missing) - aliases)
    if lost or unexpected:
        raise ValueError(f"the checkpoint does not fit the model: missing {lost}, unexpected {sorted(unexpected)}")


def committed_progress(run_folder: str) -> dict[str, Any] | None:
    """The progress in the last committed checkpoint of a run; None before the first."""
    name = committed_checkpoint(run_folder)
    return read_json(f"{run_folder}/{name}/{PROGRESS}") if name else None


def committed_step(run_folder: str) -> int:
    """Step of the last committed checkpoint of a run; 0 before the first."""
    progress = committed_progress(run_folder)
    return int(progress["step"]) if progress else 0


def is_finished(run_folder: str) -> bool:
    """True if the last committed checkpoint is that of a run that trained to its end."""
    progress = committed_progress(run_folder)
    return bool(progress and progress["is_finished"])


def committed_checkpoint(run_folder: str) -> str | None:
    """Folder name of the last checkpoint that Ray Train committed."""
    if not storage.exists(f"{run_folder}/{SNAPSHOT}"):
        return None
    latest = read_json(f"{run_folder}/{SNAPSHOT}").get("latest_checkpoint_result")
    return latest["checkpoint_dir_name"] if latest else None


def sweep(run_folder: str) -> list[str]:
    """Names of the checkpoints that were uploaded, or begun to be, and never committed; they are removed.

    For a run that nobody else continues: a checkpoint on its way looks the same.
    """
    kept = _registered(run_folder)
    folders = {path.split("/", 1)[0] for path in storage.list_files(run_folder) if "/" in path}
    lost = sorted(name for name in folders if name.startswith("checkpoint_") and name not in kept)
    for name in lost:
        storage.remove_folder(f"{run_folder}/{name}")
    return lost


def _registered(run_folder: str) -> set[str]:
    """Folder names of the checkpoints that Ray Train keeps."""
    path = f"{run_folder}/{SNAPSHOT}"
    if not storage.exists(path):
        return set()
    snapshot = read_json(path)
    results = [
        *snapshot["checkpoint_results"],
        *snapshot["pending_training_results"],
        snapshot["latest_checkpoint_result"],
    ]
    return {result["checkpoint_dir_name"] for result in results if result}


def read_json(path: str) -> Any:
    """The value in a JSON file."""
    return json.loads(storage.read_bytes(path))


def write_json(path: str, value: Any) -> None:
    """A value as an indented JSON file, written whole or not at all."""
    storage.write_bytes_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            kept[name] = tensor
        seen.add(tensor.data_ptr())
    return kept
