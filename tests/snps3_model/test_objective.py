"""What enters which loss, and what must change none: padding, rows of weight 0, and the way pairs are chosen."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from batches import CLS, MASK, MAX_TOKENS, NUM_WORDS, PAD, SEP, VOCABULARY, part, random_batch, tiny_network
from pretended_device import on_device
from torch import Tensor

from pipeline.records import Batch
from pipeline.stream.transforms import normalise
from snps3_model.config import ModelConfig, ObjectiveConfig, reference_objective
from snps3_model.draws import attentive, moved_frames
from snps3_model.importance import attentive_masks
from snps3_model.negatives import hard_negatives
from snps3_model.noise import word_noise
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

LOSSES = ("gvtm_level1", "gvtm_level2", "masked_words_text", "masked_words_cross", "lvwm")
ALL_LOSSES = (*LOSSES, "itm", "clip_order")
OBJECTIVES = {
    "exact": ObjectiveConfig(),
    "hard": ObjectiveConfig(num_hard_negatives=2),
    "drawn": ObjectiveConfig(num_hard_negatives=2, negative_spread=1.0),
    "queues": ObjectiveConfig(queue_length=32, queue_momentum=0.9),
    "itm": ObjectiveConfig(itm=1.0),
    "hard itm": ObjectiveConfig(itm=1.0, itm_negative="hard"),
    "attentive": ObjectiveConfig(attentive_share=1.0),
    "middle frames, both stages": ObjectiveConfig(frames="middle", lvwm_stage="both"),
    "published": reference_objective(queue_length=32, queue_momentum=0.9),
    "published nearest": reference_objective(queue_length=32, mining="nearest", reweight_easy=True),
    "published top_k": reference_objective(queue_length=32, mining="top_k"),
}


def only(name: str, **changes: Any) -> ObjectiveConfig:
    """One loss alone."""
    return ObjectiveConfig(**dict.fromkeys(LOSSES, 0.0) | {name: 1.0} | changes)


def run(network: Pretraining, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of a weighted sum of them; each weight another, so that no two can be confused."""
    losses = network(batch, normalise(batch.frames).double())
    total = torch.stack([loss * (1 + ALL_LOSSES.index(name)) for name, loss in losses.items()]).sum()
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


def test_one_hard_negative_each_way_is_scored_pair_by_pair() -> None:
    network, batch = (
        tiny_network(only("gvtm_level2", num_hard_negatives=1, negative_spread=0.0)),
        random_batch(4, seed=2),
    )
    (loss,) = run(network, batch)[0].values()
    model = network.model
    with torch.no_grad():
        video = model.encode_video(normalise(batch.frames).double(), batch.frame_pad_mask)
        text = model.encode_text(batch.token_ids, batch.token_mask)
        dual = (torch.einsum("qd,ctd->qct", text.vector, video.vectors) / network.config.temperature).logsumexp(-1)
        dual.fill_diagonal_(-torch.inf)

        def score(caption: int, clip: int) -> Tensor:
            tokens = video.tokens[clip : clip + 1]
            return model.match(model.fuse(batch.token_ids[[caption]], batch.token_mask[[caption]], tokens).pooled)

        wanted = []
        for row in range(4):
            true = score(row, row)
            candidates = [true, score(row, int(dual[row].argmax())), score(int(dual[:, row].argmax()), row)]
            wanted.append(torch.cat(candidates).logsumexp(0) - true)
    torch.testing.assert_close(loss, torch.cat(wanted).mean(), rtol=1e-10, atol=0)


def test_a_spread_draws_other_negatives_for_other_batch_mates_and_the_same_twice(monkeypatch) -> None:
    chosen: list[Tensor] = []

    def noted(scores: Tensor, weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
        chosen.append(hard_negatives(scores, weight, count)[0])
        return hard_negatives(scores, weight, count)

    monkeypatch.setattr("snps3_model.loss_terms.hard_negatives", noted)
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
    network, count = tiny_network(only(name)), {"encode_embedded": 0, "fuse_embedded": 0, "score_embedded": 0}
    for method in count:
        original = getattr(network.model, method)

        def counted(*args, method=method, original=original):
            count[method] += 1
            return original(*args)

        monkeypatch.setattr(network.model, method, counted)
    run(network, random_batch(3))
    assert (count["encode_embedded"], count["fuse_embedded"] + count["score_embedded"]) == (text_passes, cross_passes)


@pytest.mark.parametrize("objective", [*map(only, LOSSES), only("lvwm", lvwm_stage="before")])
def test_a_loss_alone_trains_all_that_may_be_trained(objective: ObjectiveConfig) -> None:
    """DDP waits for the gradient of every parameter that wants one."""
    network = tiny_network(objective)
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
        (lambda: ObjectiveConfig(queue_length=0), r"queue_length must be at least 1, got 0; None contrasts within"),
        (lambda: ObjectiveConfig(attentive_share=1.5), r"attentive_share must lie in \[0, 1\], got 1\.5"),
        (lambda: ObjectiveConfig(reweight_easy=True), r"reweight_easy needs objective\.mining=nearest or top_k"),
        (lambda: ObjectiveConfig(mining="top_k", num_hard_negatives=2), r"num_hard_negatives=2; leave it None"),
        (lambda: ObjectiveConfig(lvwm=-1.0), r"loss weights must not be negative, got .*'lvwm': -1\.0"),
        (lambda: ObjectiveConfig(**dict.fromkeys(LOSSES, 0.0)), "every loss weight of the objective is 0"),
        (lambda: ModelConfig(hidden=10, num_heads=4), r"model\.hidden must be divisible by .* got 10 and 4"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_learned_temperature_starts_where_it_is_told_and_has_the_gradient_of_the_loss() -> None:
    batch = random_batch(5)
    fixed, learned = (tiny_network(ObjectiveConfig(learn_temperature=learned)) for learned in (False, True))
    losses, gradients = run(learned, batch)
    torch.testing.assert_close(losses, run(fixed, batch)[0], rtol=1e-6, atol=0)
    step = 1e-3
    nearby = [
        run(tiny_network(ObjectiveConfig(temperature=0.05 * math.exp(sign * step))), batch)[0]["gvtm_level1"]
        for sign in (1, -1)
    ]
    assert gradients["log_temperature"].item() == pytest.approx((nearby[0] - nearby[1]).item() / (2 * step), rel=1e-4)


def test_a_learned_temperature_stops_at_a_hundredth() -> None:
    network = tiny_network(ObjectiveConfig(learn_temperature=True))
    assert network.log_temperature is not None
    with torch.no_grad():
        network.log_temperature.fill_(-9.0)
        torch.testing.assert_close(network.temperature, torch.tensor(0.01).double())


def test_a_learned_temperature_comes_back_from_where_it_stops() -> None:
    """Overshooting the least temperature in a step is as stopping at it."""
    ways, batch = [], random_batch(8)
    for start in (0.01, 0.0099, 0.005):
        network = tiny_network(only("gvtm_level1", learn_temperature=True, temperature=start))
        optimizer = torch.optim.AdamW([network.log_temperature], lr=1e-2, weight_decay=0.0)
        for _ in range(5):
            optimizer.zero_grad()
            network(batch, normalise(batch.frames).double())["gvtm_level1"].backward()
            optimizer.step()
        ways.append(torch.as_tensor(network.temperature).item())
    assert ways[0] > 0.0104
    assert ways[1:] == pytest.approx(ways[:1] * 2, rel=1e-6)


def test_moved_frames_are_a_circle_of_other_places() -> None:
    ids = torch.randint(0, 2**62, (200,), generator=torch.Generator().manual_seed(0))
    for num_frames, num_moved in ((1, 0), (2, 2), (4, 2), (16, 2), (40, 6)):
        order, labels = moved_frames(ids, num_frames, ids.sum())
        assert torch.equal(order.sort(dim=1).values, torch.arange(num_frames).expand(200, -1))
        assert ((labels >= 0).sum(1) == num_moved).all()
        assert torch.equal(order[labels >= 0], labels[labels >= 0])
        assert (order[labels < 0] == torch.arange(num_frames).expand(200, -1)[labels < 0]).all()
    assert len(moved_frames(ids, 4, ids.sum())[0].unique(dim=0)) == 6  # every pair of the four


def test_the_clip_order_task_is_cross_entropy_at_the_places_of_moved_frames() -> None:
    network = tiny_network(only("clip_order"), num_temporal_layers=2)
    model, batch = network.model, random_batch(6, empty=(1,))
    losses, gradients = run(network, batch)
    assert losses.keys() == {"clip_order"}
    assert {n for n, p in network.named_parameters() if p.requires_grad} == gradients.keys()
    again = tiny_network(only("clip_order"), num_temporal_layers=2)
    pad_mask = batch.frame_pad_mask | (batch.weight < 0.5)[:, None, None, None]
    frames = again.model.encode_video(normalise(batch.frames).double(), pad_mask).frames
    swapped = again.model.look_over_time(frames.flip(1))  # two frames: each clip's change places
    logits = model.frame_places(swapped)[batch.weight > 0.5]  # pyright: ignore[reportOptionalCall]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor([1, 0]).repeat(5))
    torch.testing.assert_close(losses["clip_order"], expected.detach())


def test_both_matching_encoders_see_frames_in_their_time() -> None:
    model, batch = tiny_network(num_temporal_layers=1).model, random_batch(3)
    video = model.encode_video(normalise(batch.frames).double(), batch.frame_pad_mask)
    turned = model.look_over_time(video.frames.flip(1)).flip(1)
    assert (turned - video.tokens).abs().max() > 1e-3
    alone = model.look_over_time(video.frames[:1])
    torch.testing.assert_close(alone, video.tokens[:1])  # clips are not mixed (fault B14)


def test_the_clip_order_task_without_a_temporal_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clip_order=1\.0 needs the temporal encoder; set model\.num_temporal_layers"):
        tiny_network(ObjectiveConfig(clip_order=1.0))


def device_tensors(network: Pretraining, batch: Batch) -> list[Tensor]:
    return [*network.parameters(), *network.buffers(), *batch.tensors()]


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_a_step_on_one_device_waits_for_nothing(objective: ObjectiveConfig) -> None:
    network, batch = tiny_network(objective), random_batch(5)
    with on_device(device_tensors(network, batch)):
        losses = network(batch, normalise(batch.frames).double())
        torch.stack(list(losses.values())).sum().backward()


@pytest.mark.parametrize("name", ["hard", "itm"])
def test_captions_of_other_ranks_have_a_width_that_the_host_knows(name: str) -> None:
    """The same losses as with the width of their longest, for which a host would wait."""
    objective = {"hard": ObjectiveConfig(num_hard_negatives=2), "itm": only("itm")}[name]
    batch, losses = random_batch(5), []
    for width in (None, MAX_TOKENS + 1):
        network = tiny_network(objective)
        network.gather = lambda rows: torch.cat([rows, rows])
        shaped = dataclasses.replace(batch, max_tokens=width)
        with on_device(device_tensors(network, shaped)) if width else contextlib.nullcontext():
            found = network(shaped, normalise(batch.frames).double())
            torch.stack(list(found.values())).sum().backward()
        losses.append(found)
    torch.testing.assert_close(losses[0], losses[1])


def test_attentive_masking_without_the_id_of_the_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs the id of .MASK.; hand mask_id to Pretraining"):
        Pretraining(tiny_network().model, ObjectiveConfig(attentive_share=0.5))


def test_itm_of_a_batch_without_another_caption_is_0() -> None:
    batch = random_batch(3, empty=(0, 2))
    for one in (batch, part(batch, [1])):
        assert run(tiny_network(ObjectiveConfig(itm=1.0)), one)[0]["itm"] == 0


@pytest.mark.parametrize("choice", ["random", "hard"])
def test_the_false_caption_of_itm_is_another_one_that_is_usable(choice) -> None:
    batch = random_batch(6, empty=(1, 4))
    network = tiny_network(ObjectiveConfig(itm=1.0, itm_negative=choice))
    draws = network.step(batch, normalise(batch.frames).double()).draws
    assert draws.false_ids is not None
    usable = batch.weight > 0.5
    for row in usable.nonzero()[:, 0].tolist():
        same = (draws.false_ids[row] == batch.token_ids[:, : draws.false_ids.shape[1]]).all(1) & usable
        assert same.any()
        assert not same[row]


def test_attentive_masks_follow_importance_and_keep_the_number() -> None:
    """§2.7: max(⌊0.15 n⌋, 1) words, drawn in proportion to the attention that they receive."""
    length, rows = 22, 4000
    ids = torch.arange(10, 10 + length).repeat(rows, 1)
    ids[:, -2], ids[:, -1] = SEP, PAD
    mask = ids != PAD
    importance = torch.zeros(rows, length).index_fill(1, torch.tensor([3, 4, 5, 6]), 1.0)
    importance[:, 3] = 3.0
    noise = word_noise(torch.randint(2**62, (rows,)), length, torch.tensor(7))
    masked, labels = attentive_masks(ids, mask, importance, noise, separator_id=SEP, mask_id=MASK)
    chosen = labels != -1
    assert (chosen.sum(1) == int(0.15 * 19)).all()
    assert (masked[chosen] == MASK).all()
    assert torch.equal(torch.where(chosen, labels, masked), ids)
    counts = chosen.sum(0)
    assert counts[[3, 4, 5, 6]].sum() > 0.999 * 2 * rows
    first_or_second = 1 / 2 + 3 * (1 / 6) * (3 / 5)  # P(drawn at all) of weight 3 among 3, 1, 1, 1 in two draws
    assert counts[3].item() / rows == pytest.approx(first_or_second, abs=0.03)
    short = attentive_masks(
        ids[:1, :3], mask[:1, :3], importance[:1, :3], noise[:1, :3], separator_id=SEP, mask_id=MASK
    )[1]
    assert (short != -1).sum() == 1


def test_attentive_masking_happens_on_its_share_of_the_steps() -> None:
    network, base = tiny_network(ObjectiveConfig(attentive_share=0.5)), random_batch(3)
    step, changed = network.step(base, normalise(base.frames).double()), 0
    for number in range(400):
        step.batch = dataclasses.replace(base, clip_ids=base.clip_ids + 1000 * number)
        masked, _ = attentive(step, MASK)
        changed += not torch.equal(masked, base.masked_token_ids)
    assert 160 < changed < 240


@pytest.mark.parametrize("cross_network", ["shared", "separate"])
def test_the_baseline_has_a_cross_network_of_its_own(cross_network) -> None:
    config = dataclasses.replace(tiny_network().model.config, cross_network=cross_network, num_cross_layers=1)
    torch.manual_seed(0)
    model = SNPS3(config, vocabulary_size=VOCABULARY, pad_id=PAD, separator_id=SEP)
    network, batch = Pretraining(model, only("masked_words_cross")).double(), random_batch(4)
    _, gradients = run(network, batch)
    is_separate = cross_network == "separate"
    assert any(name.startswith("model.separate_cross.") for name in gradients) == is_separate
    assert any(name.startswith("model.bert.") for name in gradients) == (not is_separate)
    _, both = run(Pretraining(model, ObjectiveConfig()).requires_grad_().double(), batch)
    assert {n for n, _ in model.named_parameters()} == {n.removeprefix("model.") for n in both}


def test_published_level_2_is_the_mean_of_each_ranks_own_pairs() -> None:
    batch, local = random_batch(6), tiny_network(only("gvtm_level2", pairs="local"))
    exact = tiny_network(only("gvtm_level2"))
    halves = [part(batch, range(3)), part(batch, range(3, 6))]
    expected = sum(run(exact, half)[0]["gvtm_level2"] for half in halves) / 2
    gathered: list[Tensor] = []

    def two_ranks(rows: Tensor) -> Tensor:
        gathered.append(rows.detach())
        return torch.cat([rows, rows])

    found = []
    for half in halves:
        network = Pretraining(local.model, local.config, gather=two_ranks)
        found.append(run(network, half)[0]["gvtm_level2"])
    torch.testing.assert_close(sum(found) / 2, expected, rtol=1e-10, atol=0)
