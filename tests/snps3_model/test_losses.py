"""The losses against their formulas written out, and rows of weight 0 against batches without them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from batches import random_batch, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import SiglipConfig, SiglipModel

from pipeline.records import IGNORED_LABEL
from pipeline.stream.transforms import normalise
from snps3_model.config import ObjectiveConfig
from snps3_model.downstream import answering
from snps3_model.draws import masked_positions
from snps3_model.gather import local_gather
from snps3_model.losses import (
    gvtm_level1,
    gvtm_level1_queued,
    gvtm_level2,
    itm,
    lvwm,
    masked_words,
    mil_nce,
    mil_nce_of_middle_frames,
    sigmoid,
    weighted_mean,
)
from snps3_model.negatives import hard_negatives
from snps3_model.noise import pair_noise

TEMPERATURE = 0.05


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers in double precision that want a gradient."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_()


def mil_nce_by_hand(scores: list[list[float]]) -> float:
    """−(1/B) Σᵢ log exp(sᵢᵢ) / (Σⱼ exp(sⱼᵢ) + Σ_{j≠i} exp(sᵢⱼ)), in Python's numbers."""
    size, total = len(scores), 0.0
    for i in range(size):
        column = sum(math.exp(scores[j][i]) for j in range(size))
        row = sum(math.exp(scores[i][j]) for j in range(size) if j != i)
        total -= math.log(math.exp(scores[i][i]) / (column + row))
    return total / size


def test_the_sigmoid_loss_is_that_of_siglip() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = sizes | {"patch_size": 8, "image_size": 16}
    torch.manual_seed(0)
    siglip = SiglipModel(
        SiglipConfig(text_config=sizes | {"vocab_size": 9, "projection_size": 16}, vision_config=vision)
    )
    siglip.logit_scale.data.fill_(1.5)
    siglip.logit_bias.data.fill_(-2.0)
    tokens, images = torch.randint(0, 9, (5, 4)), torch.randn(5, 3, 16, 16)
    theirs = siglip(input_ids=tokens, pixel_values=images, return_loss=True)
    weight = torch.ones(5)
    torch.testing.assert_close(sigmoid(theirs.logits_per_text, weight), theirs.loss, rtol=1e-5, atol=1e-6)
    with_stranger = F.pad(theirs.logits_per_text, (0, 1, 0, 1), value=9.0)
    ours = sigmoid(with_stranger, F.pad(weight, (0, 1)))
    torch.testing.assert_close(ours, theirs.loss, rtol=1e-5, atol=1e-6)


def test_a_clip_of_equal_frames_has_the_sigmoid_loss_of_its_image() -> None:
    network, batch = tiny_network(ObjectiveConfig(sigmoid=1.0)), random_batch(4)
    frames = normalise(batch.frames[:, :1]).double()
    image = dataclasses.replace(batch, frames=batch.frames[:, :1], frame_pad_mask=batch.frame_pad_mask[:, :1])
    still = dataclasses.replace(image, frame_pad_mask=image.frame_pad_mask.repeat(1, 3, 1, 1))
    losses = [
        network(shown, shape)["sigmoid"] for shown, shape in ((image, frames), (still, frames.repeat(1, 3, 1, 1, 1)))
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_mil_nce_is_its_formula(size: int) -> None:
    scores = normal(size, size)
    weight = torch.ones(size, dtype=torch.float64)
    assert mil_nce(scores, weight).item() == pytest.approx(mil_nce_by_hand(scores.tolist()), abs=1e-13)


def learned_pairs(num_rows: int, *parts: tuple[int, ...]) -> list[Tensor]:
    """Tensors (num_rows, …, 64) with noise around a vector of length 4 per row, in numbers that bfloat16 holds."""
    rng = torch.Generator().manual_seed(0)
    base = 0.5 * torch.randn(num_rows, 64, generator=rng)
    return [
        (base.view(num_rows, *[1] * len(part), 64) + 0.2 * torch.randn(num_rows, *part, 64, generator=rng)).bfloat16()
        for part in parts
    ]


def learned_scores(*shape: int) -> Tensor:
    """Scores that are 7.5 higher in the first column, or on the diagonal of a square, in numbers of bfloat16."""
    rng = torch.Generator().manual_seed(1)
    scores, rows = torch.randn(*shape, generator=rng) / 2, torch.arange(shape[0])
    scores[rows, rows if shape[0] == shape[1] else 0] += 7.5
    return scores.bfloat16()


ONES = torch.ones(16, dtype=torch.bfloat16)
LEARNED: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "mil_nce": (lambda s: mil_nce(s, ONES.to(s.dtype)), [learned_scores(16, 16)]),
    "middle frames": (lambda s: mil_nce_of_middle_frames(s, ONES.to(s.dtype)), [learned_scores(16, 16, 2)]),
    "level 1": (
        lambda t, v: gvtm_level1(t, v, ONES.to(t.dtype), temperature=2.0, gather=local_gather),
        learned_pairs(16, (), (3,)),
    ),
    "queues": (
        lambda t, v, tk, vk, tq, vq: gvtm_level1_queued(
            t, v, tk, vk, tq, vq, ONES.to(t.dtype), temperature=1.5, gather=local_gather
        ),
        [*learned_pairs(16, (), (3,), (), (3,)), *(rows.flip(1) for rows in learned_pairs(16, (), ()))],
    ),
    "lvwm": (lambda w, v: lvwm(w, v, ONES.to(w.dtype), gather=local_gather), learned_pairs(16, (3,), (3,))),
    "itm": (
        lambda t, f: itm(t, f, ONES.to(t.dtype), gather=local_gather),
        [learned_scores(16, 2).flip(1), learned_scores(16, 2)],
    ),
    "level 2": (
        lambda s: gvtm_level2(
            s[:, 0], s[:, 1:], torch.ones(16, 4, dtype=torch.bool), ONES.to(s.dtype), gather=local_gather
        ),
        [learned_scores(16, 5)],
    ),
    "masked words": (
        lambda s: masked_words(s, torch.zeros(16, dtype=torch.long), gather=local_gather),
        [learned_scores(16, 40)],
    ),
    "answering": (
        lambda s: answering(s, torch.zeros(16, 1, dtype=torch.long), ONES.to(s.dtype), False, local_gather),
        [learned_scores(16, 40)],
    ),
    "several answers": (
        lambda s: answering(s, torch.zeros(16, 1, dtype=torch.long), ONES.to(s.dtype), True, local_gather),
        [learned_scores(16, 40) - 5],
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_a_small_loss_of_bfloat16_features_is_that_of_the_same_numbers_in_double_precision(name: str) -> None:
    """Log-sum-exp minus the true score is a small difference of large numbers."""
    function, features = LEARNED[name]
    results = {}
    for dtype in (torch.bfloat16, torch.float64):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in features]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = function(*inputs)
        gradients = torch.autograd.grad(loss, inputs)
        results[dtype] = (loss.detach().double(), [gradient.double() for gradient in gradients])
    (loss, gradients), (expected, exact) = results.values()
    assert 1e-4 < expected < 0.5
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    for gradient, truth in zip(gradients, exact, strict=True):
        assert (gradient - truth).norm() < 0.01 * truth.norm()


def test_chance_is_the_logarithm_of_all_candidates() -> None:
    for size in (1, 2, 64):
        loss = mil_nce(torch.full((size, size), 3.0, dtype=torch.float64), torch.ones(size, dtype=torch.float64))
        assert loss.item() == pytest.approx(math.log(2 * size - 1), abs=1e-12)


def test_level_1_is_mil_nce_of_the_frames_joined_scores() -> None:
    text, video = normal(4, 6), normal(4, 3, 6, seed=1)
    by_hand = [
        [math.log(sum(math.exp((text[i] @ video[j, t]).item() / TEMPERATURE) for t in range(3))) for j in range(4)]
        for i in range(4)
    ]
    loss = gvtm_level1(text, video, torch.ones(4).double(), temperature=TEMPERATURE, gather=local_gather)
    assert loss.item() == pytest.approx(mil_nce_by_hand(by_hand), rel=1e-13)


def test_lvwm_joins_words_and_frames_and_scales_nothing() -> None:
    words, video = normal(4, 2, 6), normal(4, 3, 6, seed=1)
    by_hand = [
        [
            math.log(sum(math.exp((words[i, k] @ video[j, t]).item()) for k in range(2) for t in range(3)))
            for j in range(4)
        ]
        for i in range(4)
    ]
    loss = lvwm(words, video, torch.ones(4).double(), gather=local_gather)
    assert loss.item() == pytest.approx(mil_nce_by_hand(by_hand), rel=1e-13)


def off_diagonal(scores: Tensor) -> Tensor:
    size = len(scores)
    return scores[~torch.eye(size, dtype=torch.bool)].view(size, size - 1)


def level_2(scores: Tensor, weight: Tensor) -> Tensor:
    """ℒ4 with every pair of a score matrix."""
    clips, clips_usable = hard_negatives(scores, weight, len(scores) - 1)
    captions, captions_usable = hard_negatives(scores.T, weight, len(scores) - 1)
    negatives = torch.cat([scores.gather(1, clips), scores.T.gather(1, captions)], dim=1)
    usable = torch.cat([clips_usable, captions_usable], dim=1)
    return gvtm_level2(scores.diagonal(), negatives, usable, weight, gather=local_gather)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_level_2_over_every_pair_is_mil_nce(size: int) -> None:
    scores, weight = normal(size, size), torch.ones(size, dtype=torch.float64)
    everything = torch.cat([off_diagonal(scores), off_diagonal(scores.T)], dim=1)
    usable = torch.ones_like(everything, dtype=torch.bool)
    loss = gvtm_level2(scores.diagonal(), everything, usable, weight, gather=local_gather)
    assert loss.item() == pytest.approx(mil_nce_by_hand(scores.tolist()), abs=1e-13)
    assert level_2(scores, weight).item() == pytest.approx(loss.item(), abs=1e-13)


def level_1_of(features: Tensor, weight: Tensor) -> Tensor:
    text, video = features[:, 0], features[:, 1:]
    return gvtm_level1(text, video, weight, temperature=TEMPERATURE, gather=local_gather)


def level_2_of(features: Tensor, weight: Tensor) -> Tensor:
    return level_2(features[:, 0] @ features[:, 1].T, weight)


def lvwm_of(features: Tensor, weight: Tensor) -> Tensor:
    return lvwm(features[:, :2], features[:, 2:], weight, gather=local_gather)


@pytest.mark.parametrize("loss", [level_1_of, level_2_of, lvwm_of])
@pytest.mark.parametrize("out", [(0,), (1, 4), (2, 3, 4, 5), (0, 1, 2, 3, 4), ()])
def test_rows_of_weight_0_change_no_loss_and_no_gradient(loss, out: tuple[int, ...]) -> None:
    features = normal(6, 4, 5)
    kept = [row for row in range(6) if row not in out]
    weight = torch.tensor([float(row in kept) for row in range(6)], dtype=torch.float64)
    with_them = loss(features, weight)
    (gradient,) = torch.autograd.grad(with_them, features)
    without = features[kept].detach().requires_grad_()
    expected = loss(without, torch.ones(len(kept), dtype=torch.float64))
    (expected_gradient,) = torch.autograd.grad(expected, without)
    torch.testing.assert_close(with_them, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient[kept], expected_gradient, rtol=1e-12, atol=1e-13)
    assert not gradient[list(out)].any()


@pytest.mark.parametrize("loss", [level_1_of, level_2_of, lvwm_of])
def test_a_batch_without_any_usable_row_has_loss_0_and_gradient_0(loss) -> None:
    features = normal(3, 4, 5)
    value = loss(features, torch.zeros(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value, features)
    assert value.item() == 0
    assert not gradient.any()


def test_the_weighted_mean_of_nothing_is_0() -> None:
    assert weighted_mean(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1.0, 1.0, 0.0])).item() == 2
    assert weighted_mean(torch.tensor([1.0]), torch.zeros(1)).item() == 0


@settings(deadline=None)
@given(size=st.integers(1, 9), count=st.integers(1, 10), seed=st.integers(0, 10_000), data=st.data())
def test_hard_negatives_are_the_best_wrong_and_usable_columns(size: int, count: int, seed: int, data) -> None:
    scores = normal(size, size, seed=seed)
    weight = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size)))
    columns, usable = hard_negatives(scores, weight, count)
    for row in range(size):
        found = columns[row, usable[row]].tolist()
        candidates = [column for column in range(size) if column != row and weight[column] == 1]
        assert found == sorted(candidates, key=lambda column: -scores[row, column].item())[:count]
        assert row not in columns[row, usable[row]]
    assert columns.shape == usable.shape == (size, min(count, size - 1))


def test_the_choice_of_negatives_passes_no_gradient() -> None:
    columns, usable = hard_negatives(normal(4, 4), torch.ones(4), 2)
    assert not columns.requires_grad
    assert not usable.requires_grad


def random_ids(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**62, (count,), generator=torch.Generator().manual_seed(seed))


def test_pair_noise_has_the_distribution_of_gumbel() -> None:
    noise = pair_noise(random_ids(400)).double().flatten().sort().values
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    expected = torch.exp(-torch.exp(-noise))
    observed = torch.arange(1, len(noise) + 1) / len(noise)
    assert (observed - expected).abs().max().item() < 1.63 / math.sqrt(len(noise))  # Kolmogorov-Smirnov at 1 %


def test_pair_noise_is_unrelated_between_rows_columns_and_directions() -> None:
    for ids in (random_ids(300), torch.arange(300)):
        noise = pair_noise(ids).double()
        related = torch.corrcoef(torch.cat([noise, noise.T]))
        related.fill_diagonal_(0)
        assert related.abs().max().item() < 6 / math.sqrt(300)
        assert len(noise.unique()) > 0.98 * noise.numel()


def test_pair_noise_is_a_function_of_the_clips_of_the_batch() -> None:
    ids = random_ids(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    shuffled = pair_noise(ids[order])
    torch.manual_seed(6)
    assert torch.equal(shuffled, pair_noise(ids)[order][:, order])
    another_mate = torch.cat([ids[:-1], random_ids(1, seed=2)])
    assert not torch.isclose(pair_noise(another_mate)[:49, :49], pair_noise(ids)[:49, :49]).any()


def test_noisy_scores_choose_in_proportion_to_their_softmax() -> None:
    scores = torch.tensor([0.0, 0.5, 1.0, 2.0])
    wins = torch.zeros(4)
    for batch in range(10):
        noisy = pair_noise(random_ids(200, seed=batch)) + scores.repeat(200, 50)
        for block in noisy.split(4, dim=1):
            wins += torch.bincount(block.argmax(1), minlength=4)
    share = torch.softmax(scores, 0)
    error = (share * (1 - share) / wins.sum()).sqrt()
    assert ((wins / wins.sum() - share).abs() < 4 * error).all()


def test_masked_words_are_the_mean_cross_entropy_of_the_chosen_positions() -> None:
    logits, labels = normal(5, 7), torch.tensor([3, 0, 6, 6, 1])
    by_hand = [
        math.log(sum(math.exp(value) for value in row)) - row[label]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    loss = masked_words(logits, labels, gather=local_gather)
    assert loss.item() == pytest.approx(sum(by_hand) / 5, rel=1e-13)


def test_masked_words_without_any_label_are_0_with_a_gradient_of_0() -> None:
    hidden = normal(2, 3, 4)
    labels = torch.full((2, 3), IGNORED_LABEL)
    loss = masked_words(hidden.flatten(0, 1), labels.flatten(), gather=local_gather)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_label_0_is_a_word_and_the_ignored_label_is_none() -> None:
    labels = torch.tensor([[IGNORED_LABEL, 0, IGNORED_LABEL, 5], [3, IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL]])
    chosen = masked_positions(labels, 2)
    assert labels.gather(1, chosen).tolist() == [[0, 5], [3, IGNORED_LABEL]]
    logits = normal(4, 7)
    found = masked_words(logits, labels.gather(1, chosen).flatten(), gather=local_gather)
    expected = masked_words(logits[:3], torch.tensor([0, 5, 3]), gather=local_gather)
    torch.testing.assert_close(found, expected)
