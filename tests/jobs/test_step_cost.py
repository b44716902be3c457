"""What a step is said to take against what it was seen to take."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from cluster.plan import GFLOPS_PER_PAIR, PlanConfig, train_gflops_per_clip
from jobs.benchmarks.step_memory import CASES, MODEL, SHAPE, compared
from jobs.launch.step_memory import memory_line, memory_problems, num_chunks, step_shape
from jobs.run.config import OptimConfig, Placement, PretrainConfig
from jobs.run.presets import PRESETS
from jobs.training.step_cost import StepShape, full_batch, step, step_cost
from snps3_model.config import ObjectiveConfig


@pytest.mark.parametrize("name", CASES)
def test_a_step_takes_the_memory_that_was_predicted(name: str) -> None:
    row = compared(name)
    cost, network, shape = row.cost, row.network, row.shape
    trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    assert (cost.weights_bytes, cost.optimizer_bytes) == (weights, 3 * trained)
    assert 0.9 < row.ratio < 1.15
    if shape.rows_at_once is None:
        with FlopCounterMode(display=False) as counter:
            step(network, full_batch(shape), is_bf16=row.precision == "bf16").backward()
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
@pytest.mark.parametrize(
    ("name", "per_clip"),
    [("webvid_video_swin", 434), ("cc3m_video_swin", 253), ("coco_vg_resnet50", 483), ("coco_vg_pvt", 585)],
)
def test_the_plan_of_a_cluster_counts_what_a_step_of_the_preset_does(name: str, per_clip: float) -> None:
    config = PRESETS[name][1]()
    shape = dataclasses.replace(shape_of(config), num_tokens=20)  # the captions of the plan's constants
    counted = step_cost(config.model, config.objective, config.optim, shape).flop / shape.num_clips / 1e9
    model: Any = config.model.visual.encoder
    plan_config = PlanConfig(
        clips=1, frames=shape.num_frames, batch_per_gpu=shape.num_clips, model=model, shown_px=shape.size_px
    )
    planned = train_gflops_per_clip(plan_config)
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
