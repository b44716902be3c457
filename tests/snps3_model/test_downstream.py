"""The losses and scores of question answering and multiple choice against the plain way of computing them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from pipeline.records import IGNORED_LABEL, Batch, ChoiceBatch, QuestionBatch
from pipeline.stream.transforms import normalise
from snps3_model.downstream import Answering, Choosing
from tests.batches import MAX_TOKENS, PAD, random_batch, tiny_network

NUM_ANSWERS, NUM_OPTIONS = 7, 5


def columns(batch: Batch) -> dict[str, object]:
    return {field.name: getattr(batch, field.name) for field in dataclasses.fields(Batch)}


def questions(batch: Batch, width: int = 1, per_clip: int = 1) -> QuestionBatch:
    """The caption, and captions of other clips, as questions."""
    rng = torch.Generator().manual_seed(1)
    drawn = [torch.randperm(NUM_ANSWERS, generator=rng)[:width] for _ in range(len(batch.weight) * per_clip)]
    answers = torch.stack(drawn).unflatten(0, (-1, per_clip))
    ids, mask = (
        torch.stack([column.roll(shift, 0) for shift in range(per_clip)], 1)
        for column in (batch.token_ids, batch.token_mask)
    )
    weight = batch.weight[:, None].repeat(1, per_clip)
    return QuestionBatch(
        **columns(batch), question_ids=ids, question_mask=mask, question_weight=weight, answers=answers
    )


def answering(**options: bool) -> Answering:
    torch.manual_seed(0)
    return Answering(tiny_network(dtype=torch.float32).model, NUM_ANSWERS, **options).eval()


def test_answering_is_the_cross_entropy_of_usable_rows() -> None:
    network, batch = answering(), questions(random_batch(6, empty=(4,)))
    video = network.model.encode_video(normalise(batch.frames), batch.frame_pad_mask)
    logits = network.head(network.model.fuse(batch.token_ids, batch.token_mask, video.tokens).pooled)
    usable = batch.weight > 0.5
    wanted = F.cross_entropy(logits[usable], batch.answers[usable, 0, 0])
    torch.testing.assert_close(network(batch, normalise(batch.frames))["answering"], wanted)


def test_several_questions_about_a_clip_are_as_if_it_were_shown_for_each() -> None:
    network, batch = answering(), questions(random_batch(6, empty=(4,)), per_clip=3)
    batch.question_weight[1, 2] = 0.0
    frames = normalise(batch.frames)
    sums, counts = [], []
    for place in range(3):
        columns = {
            name: getattr(batch, name)[:, place : place + 1]
            for name in ("question_ids", "question_mask", "question_weight", "answers")
        }
        alone = dataclasses.replace(batch, **columns)
        counts.append(alone.question_weight.sum())
        sums.append(network(alone, frames)["answering"] * counts[-1])
    torch.testing.assert_close(network(batch, frames)["answering"], sum(sums) / sum(counts))


def test_several_right_answers_are_each_right_for_themselves() -> None:
    network, batch = answering(is_multi_label=True), questions(random_batch(4), width=3)
    batch.answers[1, 0, 1:] = IGNORED_LABEL
    video = network.model.encode_video(normalise(batch.frames), batch.frame_pad_mask)
    logits = network.logits(batch.token_ids, batch.token_mask, video.tokens)
    wanted = torch.zeros_like(logits)
    for row, (some,) in enumerate(batch.answers.tolist()):
        wanted[row, [number for number in some if number >= 0]] = 1.0
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(logits)
    torch.testing.assert_close(network(batch, normalise(batch.frames))["answering"], loss)


def test_choosing_scores_each_option_as_a_pair_of_its_own() -> None:
    torch.manual_seed(0)
    network, batch = Choosing(tiny_network(dtype=torch.float32).model).eval(), random_batch(4, empty=(2,))
    every = [batch, *(random_batch(4, seed=seed) for seed in range(1, NUM_OPTIONS))]
    ids = torch.stack([F.pad(one.token_ids, (0, MAX_TOKENS - one.token_ids.shape[1])) for one in every], dim=1)
    mask = ids != PAD
    answer = torch.tensor([0, 3, 1, 4])
    asked = ChoiceBatch(**columns(batch), option_ids=ids, option_mask=mask, answer=answer)
    video = network.model.encode_video(normalise(batch.frames), batch.frame_pad_mask)
    scores = torch.stack(
        [
            torch.cat(
                [network.model.score(ids[i : i + 1, o], mask[i : i + 1, o], video.tokens[i : i + 1]) for o in range(5)]
            )
            for i in range(4)
        ]
    )
    usable = batch.weight > 0.5
    wanted = F.cross_entropy(scores[usable], answer[usable])
    torch.testing.assert_close(network(asked, normalise(batch.frames))["choosing"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_rows_at_once_change_nothing(size: int) -> None:
    batch = questions(random_batch(6), per_clip=2)
    whole, parts = answering(), answering()
    parts.rows_at_once = size
    for network in (whole, parts):
        network(batch, normalise(batch.frames))["answering"].backward()
    for (name, one), (_, other) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        if one.grad is not None and "running" not in name and "visual" not in name:
            assert other.grad is not None
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_every_trained_part_gets_a_gradient() -> None:
    for network, batch in (
        (answering().train(), questions(random_batch(4))),
        (Choosing(tiny_network(dtype=torch.float32).model), None),
    ):
        if batch is None:
            base = random_batch(4)
            ids, mask = (t[:, None].repeat(1, NUM_OPTIONS, 1) for t in (base.token_ids, base.token_mask))
            batch = ChoiceBatch(
                **columns(base), option_ids=ids, option_mask=mask, answer=torch.zeros(4, dtype=torch.long)
            )
        (loss,) = network(batch, normalise(batch.frames)).values()
        loss.backward()
        without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []
