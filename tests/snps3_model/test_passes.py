"""A batch in parts against the whole batch: losses, gradients, random draws and what stays in memory."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from batches import MASK, random_batch, tiny_network
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pipeline.stream.lengths import group_by_length
from pipeline.stream.transforms import normalise
from snps3_model.config import ObjectiveConfig, reference_objective
from snps3_model.objective import Pretraining
from snps3_model.passes import in_chunks
from snps3_model.snps3 import SNPS3

OBJECTIVES = {
    "exact": ObjectiveConfig(),
    "hard": ObjectiveConfig(num_hard_negatives=2, lvwm_stage="both"),
    "itm": ObjectiveConfig(itm=1.0, sigmoid=1.0),
    "attentive": ObjectiveConfig(attentive_share=1.0),
    "published": reference_objective(queue_length=32),
}
NUM_ROWS = 9


def network(objective: ObjectiveConfig, rows_at_once: int | None) -> Pretraining:
    """Equal weights for equal objectives; batch normalisation with stored statistics treats each clip by itself."""
    model = tiny_network(objective).model
    for norm in model.visual.norms:  # pyright: ignore[reportGeneralTypeIssues]
        norm.frozen = True
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Pretraining(model, objective, mask_id=MASK, rows_at_once=rows_at_once).double()


def one_pass(trained: Pretraining, *, max_length_groups: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Losses, gradients, and the numbers kept for the backward pass."""
    batch = random_batch(NUM_ROWS, seed=4, empty=(2, 8))
    if max_length_groups > 1:
        groups = group_by_length(batch.token_mask.sum(1).tolist(), max_length_groups)
        assert len(groups) == min(max_length_groups, len(set(batch.token_mask.sum(1).tolist())))
        batch = dataclasses.replace(batch, length_groups=groups)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.numel())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = trained(batch, normalise(batch.frames).double())
    torch.stack([loss * (1 + rank) for rank, loss in enumerate(losses.values())]).sum().backward()
    gradients = {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients, sum(kept.values())


@functools.cache
def whole_pass(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Return what `one_pass` gives for the whole batch, with padded captions."""
    return one_pass(network(OBJECTIVES[name], None))


@pytest.mark.parametrize("rows_at_once", [1, 4, NUM_ROWS])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunks_compute_what_the_whole_batch_does(name: str, rows_at_once: int) -> None:
    losses, gradients, kept = whole_pass(name)
    ours, our_gradients, our_kept = one_pass(network(OBJECTIVES[name], rows_at_once))
    torch.testing.assert_close(ours, losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(our_gradients, gradients, rtol=1e-10, atol=1e-12)
    assert our_kept < 0.6 * kept or rows_at_once == NUM_ROWS


@pytest.mark.parametrize("rows_at_once", [None, 2])
@pytest.mark.parametrize("max_length_groups", [2, NUM_ROWS])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_captions_at_their_own_length_compute_what_padded_ones_do(
    name: str, max_length_groups: int, rows_at_once: int | None
) -> None:
    losses, gradients, _ = whole_pass(name)
    trained = network(OBJECTIVES[name], rows_at_once)
    ours, our_gradients, _ = one_pass(trained, max_length_groups=max_length_groups)
    torch.testing.assert_close(ours, losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(our_gradients, gradients, rtol=1e-10, atol=1e-12)


def test_random_draws_are_repeated() -> None:
    torch.manual_seed(0)
    rows = torch.ones(10, 50, requires_grad=True)
    dropped = in_chunks(lambda part: torch.nn.functional.dropout(part, 0.5), rows, size=3)
    dropped.sum().backward()
    assert 0 < (dropped == 0).double().mean() < 1
    torch.testing.assert_close(rows.grad, dropped.detach(), rtol=0, atol=0)


def test_features_of_a_network_keep_their_kind() -> None:
    model: SNPS3 = tiny_network().model
    batch = random_batch(5)
    whole = model.encode_text(batch.token_ids, batch.token_mask)
    chunks = in_chunks(model.encode_text, batch.token_ids, batch.token_mask, size=2)
    assert type(chunks) is type(whole)
    torch.testing.assert_close(chunks.layers, whole.layers)
    torch.testing.assert_close(chunks.vector, whole.vector)
