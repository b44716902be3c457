"""What a step is said to take against what it was seen to take."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cluster.plan import GFLOPS_PER_PAIR, PlanConfig, train_gflops_per_clip
from jobs.launch.step_memory import memory_line, memory_problems, num_chunks, step_shape
from jobs.run.config import OptimConfig, Placement, PretrainConfig
from jobs.run.presets import PRESETS
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


def shape_of(config: PretrainConfig) -> StepShape:
    return step_shape(config.data, config.text, config.masking, config.optim, config.placement, 30_522)


def one_gpu(name: str, **changes: Any) -> PretrainConfig:
    """A published preset on a single GPU, with other fields of its placement."""
    config = PRESETS[name][1]()
    return dataclasses.replace(config, placement=dataclasses.replace(config.placement, num_workers=1, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "tiny"])
def test_a_published_preset_fits_the_gpus_that_it_names_and_compares_their_own_pairs(name: str) -> None:
    config = PRESETS[name][1]()
    assert memory_problems(config.model, config.objective, config.optim, config.placement, shape_of(config)) == []
    assert config.objective.pairs == "local"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "per_clip"), [("webvid_video_swin", 434), ("cc3m_video_swin", 253)])
def test_the_plan_of_a_cluster_counts_what_a_step_of_the_preset_does(name: str, per_clip: float) -> None:
    config = PRESETS[name][1]()
    shape = dataclasses.replace(shape_of(config), num_tokens=20)  # the captions of the plan's constants
    counted = step_cost(config.model, config.objective, config.optim, shape).flop / shape.num_clips / 1e9
    planned = train_gflops_per_clip(PlanConfig(clips=1, frames=shape.num_frames, batch_per_gpu=shape.num_clips))
    assert planned == pytest.approx(per_clip, abs=1)
    assert planned == pytest.approx(counted, rel=0.1)


def test_the_plan_of_a_cluster_counts_the_pairs_that_it_is_told() -> None:
    every, hard = (train_gflops_per_clip(PlanConfig(clips=1, pairs_per_clip=pairs)) for pairs in (128, 7))
    assert every - hard == pytest.approx(121 * GFLOPS_PER_PAIR)


@pytest.mark.slow
def test_all_pairs_of_128_clips_are_refused_on_one_gpu() -> None:
    config = one_gpu("webvid_video_swin")
    (problem,) = memory_problems(config.model, config.objective, config.optim, config.placement, shape_of(config))
    assert (needed := re.search(r"a step needs (\d+)\.\d GiB of each GPU, .* placement.gpu_memory_gib=80 ", problem))
    assert int(needed[1]) > 250


def test_a_step_that_a_gpu_cannot_hold_is_refused_with_the_fields_that_help() -> None:
    objective, optim = ObjectiveConfig(num_hard_negatives=1), OptimConfig()
    roomy, tight = (Placement(use_gpu=True, gpu_memory_gib=gib) for gib in (0.2, 0.02))
    assert memory_problems(MODEL, objective, optim, roomy, SHAPE) == []
    (problem,) = memory_problems(MODEL, objective, optim, tight, SHAPE)
    assert "set placement.rows_at_once (32, say), objective.num_hard_negatives (3, say)" in problem
    line = memory_line(MODEL, objective, optim, tight, SHAPE)
    assert line.split()[0] == re.findall(r"needs ([\d.]+) GiB", problem)[0]
    assert memory_problems(MODEL, objective, optim, dataclasses.replace(tight, use_gpu=False), SHAPE) == []


def test_chunks_are_counted_only_while_they_are_few() -> None:
    shape, every = dataclasses.replace(SHAPE, num_clips=128, rows_at_once=4), ObjectiveConfig()
    assert memory_line(MODEL, every, OptimConfig(), Placement(), shape).startswith("not counted: 4096 chunks")
    assert num_chunks(ObjectiveConfig(num_hard_negatives=3), shape) == 128 * 7 / 4
    assert num_chunks(every, SHAPE) == 1
