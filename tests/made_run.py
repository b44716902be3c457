"""A run's folder, made without training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import safetensors.torch

from jobs.run import run_files
from jobs.run.fields import as_dict
from jobs.run.presets import tiny
from jobs.tasks.network import build_model
from pipeline.text.significance import mine_significant_words
from pipeline.text.tokenizer import train_wordpiece

CAPTIONS = ["a red ring rises", "a blue star falls", "two shapes meet"]


def made_run(root: Path, **fields: Any) -> str:
    """Return the folder, below `root`, of a run with random weights, whose network looks over time; `fields` of its
    model are set anew."""
    preset = tiny()
    config = dataclasses.replace(
        preset, name="made", model=dataclasses.replace(preset.model, num_temporal_layers=1, num_layers=1, **fields)
    )
    tokenizer = train_wordpiece(CAPTIONS, 100)
    table = mine_significant_words(CAPTIONS, tokenizer.pieces)
    folder = root / "made"
    (folder / "best").mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    table.save(str(folder / "significant_words.json"))
    run_files.write_json(f"{folder}/config.json", as_dict(config))
    weights = {f"model.{name}": tensor for name, tensor in build_model(config.model, tokenizer).state_dict().items()}
    safetensors.torch.save_file(weights, folder / "best" / run_files.WEIGHTS)
    return str(folder)
