"""What enters which loss, and what must change none: padding, rows of weight 0, and the way pairs are chosen."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from batches import CLS, MASK, NUM_WORDS, PAD, SEP, part, random_batch, tiny_network
from torch import Tensor

from pipeline.records import Batch
from pipeline.transforms import normalise
from snps3_model.config import ModelConfig, ObjectiveConfig
from snps3_model.losses import hard_negatives
from snps3_model.objective import Pretraining, pair_indices

LOSSES = ("gvtm_level1", "gvtm_level2", "masked_words_text", "masked_words_cross", "lvwm")
OBJECTIVES = {
    "exact": ObjectiveConfig(),
    "hard": ObjectiveConfig(num_hard_negatives=2),
    "drawn": ObjectiveConfig(num_hard_negatives=2, negative_spread=1.0),
}


def only(name: str) -> ObjectiveConfig:
    """One loss alone."""
    return ObjectiveConfig(**dict.fromkeys(LOSSES, 0.0) | {name: 1.0})


def run(network: Pretraining, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of a weighted sum of them; each weight another, so that no two can be confused."""
    losses = network(batch, normalise(batch.frames).double())
    total = torch.stack([loss * (1 + LOSSES.index(name)) for name, loss in losses.items()]).sum()
    network.zero_grad(set_to_none=True)
    total.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def assert_same(network: Pretraining, first: Batch, second: Batch) -> None:
    """Two batches give one network the same losses, gradients and batch-norm statistics."""
    other = copy.deepcopy(network)
    for found, expected in zip(run(network, first), run(other, second), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(dict(network.named_buffers()), dict(other.named_buffers()), rtol=1e-11, atol=1e-12)


def padded(batch: Batch, length: int) -> Batch:
    """The same batch with more [PAD]."""
    more = length - batch.token_ids.shape[1]
    fill = {"token_ids": PAD, "masked_token_ids": PAD, "token_mask": False, "labels": -1}
    columns = {name: torch.nn.functional.pad(getattr(batch, name), (0, more), value=v) for name, v in fill.items()}
    return dataclasses.replace(batch, **columns)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_padded_captions_give_the_same_losses_and_gradients(objective: ObjectiveConfig) -> None:
    batch = random_batch(5)
    assert batch.token_ids.shape[1] < 16
    assert_same(tiny_network(objective), batch, padded(batch, 16))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
@pytest.mark.parametrize("empty", [(5,), (0, 3), (1, 2, 3, 4, 5)])
def test_rows_of_weight_0_change_nothing(objective: ObjectiveConfig, empty: tuple[int, ...]) -> None:
    batch = random_batch(6, empty=empty)
    kept = [row for row in range(6) if row not in empty]
    assert_same(tiny_network(objective), batch, part(batch, kept))


def test_a_batch_of_nothing_but_weight_0_moves_nothing() -> None:
    network = tiny_network()
    before = copy.deepcopy(dict(network.named_buffers()))
    losses, gradients = run(network, random_batch(3, empty=(0, 1, 2)))
    assert [loss.item() for loss in losses.values()] == [0.0] * 5
    assert all(not gradient.any() for gradient in gradients.values())
    torch.testing.assert_close(dict(network.named_buffers()), before, rtol=0, atol=0)


def test_level_2_of_all_hard_negatives_is_level_2_of_all_pairs() -> None:
    batch = random_batch(6, empty=(2,))
    exact, hard = tiny_network(), tiny_network(ObjectiveConfig(num_hard_negatives=5))
    for found, expected in zip(run(hard, batch), run(exact, batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_level_2_is_mil_nce_of_the_cross_scores_pair_by_pair() -> None:
    batch, network = random_batch(4), tiny_network(only("gvtm_level2"))
    (loss,) = run(network, batch)[0].values()
    model = network.model
    with torch.no_grad():
        tokens = model.encode_video(normalise(batch.frames).double(), batch.frame_pad_mask).tokens
        scores = torch.empty(4, 4, dtype=torch.float64)
        for i in range(4):
            for j in range(4):
                one = slice(i, i + 1)
                fused = model.fuse(batch.token_ids[one], batch.token_mask[one], tokens[j : j + 1])
                scores[i, j] = model.match(fused.pooled)
    wanted = torch.stack([scores[:, i].exp().sum() + scores[i].exp().sum() - scores[i, i].exp() for i in range(4)])
    torch.testing.assert_close(loss, (wanted.log() - scores.diagonal()).mean(), rtol=1e-10, atol=0)


def test_pairs_are_the_true_one_then_wrong_clips_then_wrong_captions() -> None:
    own, clips, captions = torch.tensor([4, 5]), torch.tensor([[7, 8], [9, 6]]), torch.tensor([[1, 3], [2, 0]])
    caption, clip = pair_indices(own, clips, captions)
    assert list(zip(caption.tolist(), clip.tolist(), strict=True)) == [
        *[(4, 4), (4, 7), (4, 8), (1, 4), (3, 4)],
        *[(5, 5), (5, 9), (5, 6), (2, 5), (0, 5)],
    ]


def test_a_spread_draws_other_negatives_for_other_batch_mates_and_the_same_twice(monkeypatch) -> None:
    chosen: list[Tensor] = []

    def noted(scores: Tensor, weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
        chosen.append(hard_negatives(scores, weight, count)[0])
        return hard_negatives(scores, weight, count)

    monkeypatch.setattr("snps3_model.losses.hard_negatives", noted)
    batch, network = random_batch(12), tiny_network(ObjectiveConfig(num_hard_negatives=1, negative_spread=50.0))
    for ids in (batch.clip_ids, batch.clip_ids, batch.clip_ids + 1):
        run(network, dataclasses.replace(batch, clip_ids=ids))
    first, second, third = chosen[0::2]
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_of_0_leaves_a_loss_out_and_the_others_as_they_are(name: str) -> None:
    batch = random_batch(4)
    everything, _ = run(tiny_network(), batch)
    without, _ = run(tiny_network(ObjectiveConfig(**{name: 0.0})), batch)
    alone, _ = run(tiny_network(only(name)), batch)
    assert set(everything) == set(LOSSES)
    assert without.keys() == everything.keys() - {name}
    assert alone.keys() == {name}
    for losses in (without, alone):
        torch.testing.assert_close(losses, {key: everything[key] for key in losses}, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "text_passes", "cross_passes"),
    [
        ("gvtm_level1", 1, 0),
        ("gvtm_level2", 0, 1),
        ("masked_words_text", 1, 0),
        ("masked_words_cross", 0, 1),
        ("lvwm", 1, 0),
    ],
)
def test_a_loss_alone_makes_its_own_passes_only(monkeypatch, name: str, text_passes: int, cross_passes: int) -> None:
    network, count = tiny_network(only(name)), {"encode_text": 0, "fuse_embedded": 0}
    for method in count:
        original = getattr(network.model, method)

        def counted(*args, method=method, original=original):
            count[method] += 1
            return original(*args)

        monkeypatch.setattr(network.model, method, counted)
    run(network, random_batch(3))
    assert (count["encode_text"], count["fuse_embedded"]) == (text_passes, cross_passes)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_alone_trains_all_that_may_be_trained(name: str) -> None:
    """DDP waits for the gradient of every parameter that wants one."""
    network = tiny_network(only(name))
    _, gradients = run(network, random_batch(4))
    assert {n for n, p in network.named_parameters() if p.requires_grad} == gradients.keys()


def test_masked_text_alone_reads_the_masked_caption() -> None:
    """The published code gave its text encoder the unmasked caption: a copy task (fault B2)."""
    batch, network, seen = random_batch(5), tiny_network(only("masked_words_text")), []
    network.model.bert.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    run(network, batch)
    (ids,) = seen
    assert (ids[batch.labels != -1] == MASK).all()
    assert torch.equal(ids, batch.masked_token_ids)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_words_never_see_the_hidden_word_and_matching_never_sees_a_mask(name: str) -> None:
    batch, network = random_batch(5), tiny_network(only(name))
    (loss,) = run(network, batch)[0].values()
    words = (batch.token_ids != PAD) & (batch.token_ids != CLS) & (batch.token_ids != SEP)
    other_raw = dataclasses.replace(batch, token_ids=torch.where(words, batch.token_ids ^ 1, batch.token_ids))
    other_masked = dataclasses.replace(
        batch, masked_token_ids=torch.where(words, batch.masked_token_ids ^ 1, batch.masked_token_ids)
    )
    changes_with_raw = run(network, other_raw)[0][name] != loss
    changes_with_masked = run(network, other_masked)[0][name] != loss
    is_masked_words = name.startswith("masked_words")
    assert (changes_with_raw.item(), changes_with_masked.item()) == (not is_masked_words, is_masked_words)


@pytest.mark.parametrize("name", LOSSES)
def test_text_alone_does_not_look_at_the_clip(name: str) -> None:
    batch, network = random_batch(5), tiny_network(only(name))
    (loss,) = run(network, batch)[0].values()
    turned = dataclasses.replace(batch, frames=batch.frames.flip(0), frame_pad_mask=batch.frame_pad_mask.flip(0))
    (other,) = run(network, turned)[0].values()
    assert (loss == other).item() == (name == "masked_words_text")


def test_lvwm_takes_the_hidden_states_at_the_chosen_words() -> None:
    batch, network = random_batch(5), tiny_network(only("lvwm"))
    (loss,) = run(network, batch)[0].values()
    again = dataclasses.replace(batch, word_positions=batch.word_positions.flip(1))
    torch.testing.assert_close(run(network, again)[0]["lvwm"], loss, rtol=1e-12, atol=0)
    first_only = dataclasses.replace(batch, word_positions=torch.zeros(5, NUM_WORDS, dtype=torch.int64))
    assert run(network, first_only)[0]["lvwm"] != loss


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ObjectiveConfig(temperature=0.0), r"objective\.temperature must be above 0, got 0\.0"),
        (lambda: ObjectiveConfig(num_hard_negatives=0), r"num_hard_negatives must be at least 1, got 0; None scores"),
        (lambda: ObjectiveConfig(negative_spread=-1.0), r"negative_spread must not be negative, got -1\.0"),
        (lambda: ObjectiveConfig(lvwm=-1.0), r"loss weights must not be negative, got .*'lvwm': -1\.0"),
        (lambda: ObjectiveConfig(**dict.fromkeys(LOSSES, 0.0)), "every loss weight of the objective is 0"),
        (lambda: ModelConfig(hidden=10, num_heads=4), r"model\.hidden must be divisible by .* got 10 and 4"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
