"""Bytes of a step as a dry run counts them, over those that torch allocates on a CPU: `memory` of
`python jobs/benchmark.py`. The presets are only counted; none of them fits on a CPU.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.profiler import ProfilerActivity, profile

from jobs.launch.step_memory import GIB, USABLE_SHARE, step_shape
from jobs.run.config import OptimConfig, PretrainConfig
from jobs.run.presets import PRESETS
from jobs.training.step_cost import MASK_ID, StepCost, StepShape, full_batch, gather_of, step, step_cost
from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

MODEL = ModelConfig(hidden=64, num_layers=3, num_heads=4, feed_forward=256, max_positions=64)
SHAPE = StepShape(
    num_clips=8, num_ranks=1, num_frames=2, size_px=64, num_tokens=16, num_words=3, num_masked=3, vocabulary_size=500
)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "all pairs": ({}, {}, {"num_ranks": 2}, "fp32"),
    "hard negatives, bf16": ({}, {"num_hard_negatives": 2}, {}, "bf16"),
    "chunks": ({}, {"pairs": "local"}, {"rows_at_once": 16}, "fp32"),
    "resnet50": ({"encoder": "resnet50", "frozen_batch_norm": True}, {"pairs": "local"}, {"num_clips": 4}, "fp32"),
    "video swin": ({"encoder": "video_swin_tiny"}, {"pairs": "local"}, {"num_clips": 2}, "fp32"),
}
"""Changes of the visual encoder, the losses and the shape of a step, and its precision."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """The counted and the measured memory of a step."""

    cost: StepCost
    network: Pretraining
    shape: StepShape
    precision: str
    measured_bytes: int
    """Peak of allocated memory, without weights."""

    @property
    def ratio(self) -> float:
        """Counted over measured bytes of activations and gradients."""
        trained = sum(parameter.nbytes for parameter in self.network.parameters() if parameter.requires_grad)
        return (self.cost.activation_bytes + trained) / self.measured_bytes


def memory() -> dict[str, Any]:
    """Return the predicted over the measured peak of a step by case, and the share of an 80 GiB GPU that each preset
    takes."""
    ratios = {name: compared(name).ratio for name in CASES}
    presets = {name: preset_cost(make()) for name, (_, make) in PRESETS.items()}
    return {
        "predicted_over_measured": ratios,
        "lowest": min(ratios.values()),
        "highest": max(ratios.values()),
        "presets": presets,
        "presets_that_fit": sum(row["peak_gib"] <= USABLE_SHARE * row["gpu_memory_gib"] for row in presets.values()),
    }


def compared(name: str) -> Compared:
    """Count the memory of a step of a case, and measure it."""
    visual, losses, sizes, precision = CASES[name]
    model = dataclasses.replace(MODEL, visual=VisualConfig(**visual))
    objective, shape = ObjectiveConfig(**losses), dataclasses.replace(SHAPE, **sizes)
    cost = step_cost(model, objective, OptimConfig(precision=precision), shape)  # pyright: ignore[reportArgumentType]
    made = SNPS3(model, vocabulary_size=shape.vocabulary_size, pad_id=0, separator_id=2)
    gather = gather_of(shape.num_ranks)
    network = Pretraining(made, objective, gather, mask_id=MASK_ID, rows_at_once=shape.rows_at_once).train()
    most = measured_bytes(network, shape, precision)
    return Compared(cost=cost, network=network, shape=shape, precision=precision, measured_bytes=most)


def measured_bytes(network: Pretraining, shape: StepShape, precision: str) -> int:
    """Return the peak of the bytes that torch's allocator holds during a step."""
    batch = full_batch(shape)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(network, batch, is_bf16=precision == "bf16").backward()
    held = most = 0
    profiler: Any = seen.profiler
    for event in sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def preset_cost(config: PretrainConfig) -> dict[str, float]:
    """Return the cost of a step for each worker of a run."""
    size = config.text.vocabulary_size
    shape = step_shape(config.data, config.text, config.masking, config.optim, config.placement, size)
    cost = step_cost(config.model, config.objective, config.optim, shape)
    return {
        "weights_gib": cost.weights_bytes / GIB,
        "optimizer_gib": cost.optimizer_bytes / GIB,
        "activations_gib": cost.activation_bytes / GIB,
        "peak_gib": cost.peak_bytes / GIB,
        "gpu_memory_gib": config.placement.gpu_memory_gib,
        "tflop": cost.flop / 1e12,
    }
