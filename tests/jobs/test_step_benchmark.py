"""The two ways that the step benchmark compares compute the same losses and gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from batches import random_batch, tiny_network

from jobs.benchmarks.step_time import LEAST, ROWS, PublishedWay, compared, step
from pipeline.stream.transforms import normalise
from snps3_model.config import ObjectiveConfig


def test_the_published_way_of_computing_gives_our_losses_and_gradients() -> None:
    batch = random_batch(7)
    batch = dataclasses.replace(batch, frame_pad_mask=torch.zeros_like(batch.frame_pad_mask))
    ours, other = (tiny_network(dtype=torch.float32) for _ in range(2))
    published = PublishedWay(other.model, ObjectiveConfig())
    frames = normalise(batch.frames)
    results = []
    for network in (ours, published):
        losses = network(batch, frames)
        torch.stack(list(losses.values())).sum().backward()
        results.append({name: loss.detach() for name, loss in losses.items()})
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
    gradients = dict(other.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_ways_that_disagree_are_refused() -> None:
    run = {"losses": {"lvwm": 1.0}, "seconds": [2.0], "peak_bytes": 2**30}
    other = run | {"losses": {"lvwm": 1.1}, "seconds": [1.0]}
    with pytest.raises(AssertionError, match=r"no_visual: lvwm is 1\.1 and 1\.0 the published way"):
        compared("no_visual", {"published": [run], "ours": [other], "hard": [run]})
    same = run | {"seconds": [1.0]}
    found = compared("no_visual", {"published": [run], "ours": [same], "hard": [same]})
    assert found["speedup_no_visual"] == 2.0


def test_each_row_has_a_figure_to_reach_and_unknown_ones_are_refused() -> None:
    assert ROWS.keys() == LEAST.keys()
    with pytest.raises(ValueError, match="there is no row 'r51'; the rows are no_visual, r50, vst4"):
        step(rows=("r51",), data="somewhere")
