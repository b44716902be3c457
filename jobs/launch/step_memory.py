"""The memory and the cost of a step, and whether it fits into a GPU, before the run starts."""

from __future__ import annotations

import math

from jobs.run.config import DataConfig, OptimConfig, Placement, TextConfig
from jobs.training.step_cost import StepShape, step_cost
from pipeline.text.config import MaskingConfig
from snps3_model.config import ModelConfig, ObjectiveConfig

USABLE_SHARE = 0.9
"""Share of a GPU's memory; the rest is for its context, workspaces of its libraries, and fragmentation."""
REMEDY = (
    "set placement.rows_at_once (32, say), objective.num_hard_negatives (3, say) or optim.precision=bf16, or raise "
    "placement.num_workers"
)
MOST_CHUNKS = 30
"""Most chunks of (clip, caption) pairs whose cost is counted. More would take a minute, although only one chunk is in
memory at a time."""
GIB = 2**30


def step_shape(
    data: DataConfig,
    text: TextConfig,
    masking: MaskingConfig,
    optim: OptimConfig,
    placement: Placement,
    vocabulary_size: int,
) -> StepShape:
    """Return the largest share of a step that a worker may have: fewest workers, captions of maximum length."""
    return StepShape(
        num_clips=math.ceil(optim.global_batch / placement.fewest_workers),
        num_ranks=placement.fewest_workers,
        num_frames=data.num_frames,
        size_px=data.shown_px,
        num_tokens=text.max_tokens,
        num_words=text.num_words,
        num_masked=max(masking.min_masked, math.ceil(masking.ratio * text.max_tokens)),
        vocabulary_size=vocabulary_size,
        rows_at_once=placement.rows_at_once,
    )


def num_chunks(objective: ObjectiveConfig, shape: StepShape) -> int:
    """Return the number of chunks in which a worker's GVTM level-2 pairs pass through the network."""
    if shape.rows_at_once is None or not objective.gvtm_level2:
        return 1
    others = shape.num_clips * (shape.num_ranks if objective.pairs == "gathered" else 1)
    per_clip = others if objective.num_hard_negatives is None else 1 + 2 * objective.num_hard_negatives
    return math.ceil(shape.num_clips * per_clip / shape.rows_at_once)


def memory_line(
    model: ModelConfig, objective: ObjectiveConfig, optim: OptimConfig, placement: Placement, shape: StepShape
) -> str:
    """Return a line with the memory and the FLOP of a step on each worker."""
    if num_chunks(objective, shape) > MOST_CHUNKS:
        return f"not counted: {num_chunks(objective, shape)} chunks of pairs, one of them in memory at a time"
    cost = step_cost(model, objective, optim, shape)
    where = "GPU" if placement.use_gpu else "worker"
    return (
        f"{cost.peak_bytes / GIB:.1f} GiB on each {where}: weights {cost.weights_bytes / GIB:.2f}, optimizer and "
        f"gradients {cost.optimizer_bytes / GIB:.2f}, activations {cost.activation_bytes / GIB:.2f}; "
        f"{cost.flop / 1e12:.3g} TFLOP per step of {shape.num_clips} clips of its own"
    )


def memory_problems(
    model: ModelConfig, objective: ObjectiveConfig, optim: OptimConfig, placement: Placement, shape: StepShape
) -> list[str]:
    """Return why a step does not fit into a GPU, with the fields to change; empty for a run on CPUs."""
    if not placement.use_gpu or num_chunks(objective, shape) > MOST_CHUNKS:
        return []
    usable = USABLE_SHARE * placement.gpu_memory_gib * GIB
    cost = step_cost(model, objective, optim, shape)
    if cost.peak_bytes <= usable:
        return []
    return [
        f"a step needs {cost.peak_bytes / GIB:.1f} GiB of each GPU, {cost.activation_bytes / GIB:.1f} of them for "
        f"activations, and {USABLE_SHARE:.0%} of placement.gpu_memory_gib={placement.gpu_memory_gib:g} are "
        f"{usable / GIB:.1f}; {REMEDY}"
    ]
