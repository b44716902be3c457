"""Validation rules over several fields of a configuration. Each error names the remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobs.run.fields import refuse_below
from snps3_model.config import ModelConfig

if TYPE_CHECKING:
    from jobs.run.config import OptimConfig


def refuse_frozen_random_weights(model: ModelConfig) -> None:
    """Raise ValueError if a part of the network is frozen at random weights."""
    if model.initial_weights is not None:
        return
    if model.lora_rank is not None and model.pretrained_text is None:
        raise ValueError(
            f"model.lora_rank={model.lora_rank} on random weights never learns to read; set model.pretrained_text, or "
            "leave lora_rank at None"
        )
    if model.visual.pretrained is not None:
        return
    for name, why in {
        "frozen_batch_norm": "normalises nothing and the run would not learn",
        "frozen": "sees nothing and never learns to",
        "lora_rank": "sees nothing and hardly learns to",
    }.items():
        if getattr(model.visual, name):
            raise ValueError(
                f"model.visual.{name} on random weights {why}; set model.visual.pretrained, or leave {name} off"
            )


def refuse_rates_of_nothing(optim: OptimConfig, model: ModelConfig) -> None:
    """Raise ValueError if rates of pre-trained parts are set for a network without any."""
    if any((model.visual.pretrained, model.pretrained_text, model.initial_weights)):
        return
    for name, unset in {"pretrained_rate": 1.0, "layer_decay": 1.0, "frozen_steps": 0}.items():
        if (value := getattr(optim, name)) != unset:
            raise ValueError(
                f"optim.{name}={value} has no effect on random weights; set model.visual.pretrained, "
                f"model.pretrained_text or model.initial_weights, or leave it at {unset}"
            )


def validate_finite(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for a NaN or an infinite number. The other rules miss NaN: all comparisons with it are false."""
    for name, value in fields.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name} must be a finite number, got {number}")


def refuse_small_sizes(model: ModelConfig) -> None:
    """Raise ValueError for a size of the network with which it cannot be built."""
    refuse_below(model, "model", hidden=1, num_layers=1, num_heads=1, feed_forward=1, max_positions=1)
    if min(model.visual.channels) < 1:
        raise ValueError(f"model.visual.channels must be at least 1 each, got {model.visual.channels}")
    if not 0 <= model.dropout < 1:
        raise ValueError(f"model.dropout must lie in [0, 1), got {model.dropout}")
    if model.initial_std <= 0:
        raise ValueError(f"model.initial_std must be above 0, got {model.initial_std}")


def nearest_multiples(batch: int, workers: int) -> str:
    """Return the remedy for a batch that is not a multiple of the number of workers."""
    below, above = batch // workers * workers, -(-batch // workers) * workers
    return f"take {above}" if below == 0 else f"take {below} or {above}"
