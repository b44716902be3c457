"""What a step is said to take against what it was seen to take."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from jobs.run.config import OptimConfig
from jobs.training.step_cost import MASK_ID, StepShape, full_batch, gather_of, step, step_cost
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


def measured_bytes(network: Pretraining, shape: StepShape, precision: str) -> int:
    """The most bytes that torch's allocator gave out during a step."""
    batch = full_batch(shape)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(network, batch, is_bf16=precision == "bf16").backward()
    held = most = 0
    kineto = seen.profiler.kineto_results  # type: ignore[union-attr]
    for event in sorted(kineto.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("name", CASES)
def test_a_step_takes_the_memory_that_was_predicted(name: str) -> None:
    visual, losses, sizes, precision = CASES[name]
    model = dataclasses.replace(MODEL, visual=VisualConfig(**visual))
    objective, shape = ObjectiveConfig(**losses), dataclasses.replace(SHAPE, **sizes)
    cost = step_cost(model, objective, OptimConfig(precision=precision), shape)
    made = SNPS3(model, vocabulary_size=shape.vocabulary_size, pad_id=0, separator_id=2)
    gather = gather_of(shape.num_ranks)
    network = Pretraining(made, objective, gather, mask_id=MASK_ID, rows_at_once=shape.rows_at_once)
    trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    assert (cost.weights_bytes, cost.optimizer_bytes) == (weights, 3 * trained)
    most = measured_bytes(network.train(), shape, precision)
    assert 0.9 < (cost.activation_bytes + trained) / most < 1.15
    if shape.rows_at_once is None:
        with FlopCounterMode(display=False) as counter:
            step(network, full_batch(shape), is_bf16=precision == "bf16").backward()
        assert cost.flop == counter.get_total_flops()
