"""The losses of the table, computed from the passes of a step: one function per loss, of the same name.

Each returns the loss of the global batch, the same number on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline.records import IGNORED_LABEL, LengthGroup
from snps3_model import losses
from snps3_model.draws import masked_positions, moved_frames
from snps3_model.negatives import easy_weights, hard_negatives, mined_clips, with_true_clip
from snps3_model.noise import pair_noise
from snps3_model.passes import by_length, groups_of
from snps3_model.snps3 import dual_scores
from snps3_model.step import Step


def gvtm_level1(step: Step) -> Float[Tensor, ""]:
    """Return ℒ3 over the gathered batch, or in training over the queues if there are any."""
    batch, text, video, queues = step.batch, step.text, step.video, step.queues
    if queues is None:
        return losses.gvtm_level1(
            text.vector,
            video.vectors,
            batch.weight,
            temperature=step.temperature,
            frames=step.config.frames,
            gather=step.gather,
        )
    queues.follow(step.model)
    keys = queues.keys(step.frames, step.pad_mask, batch.token_ids, batch.token_mask)
    loss = losses.gvtm_level1_queued(
        text.vector,
        video.vectors,
        keys.text,
        keys.video,
        queues.text,
        queues.video,
        batch.weight,
        temperature=step.temperature,
        gather=step.gather,
    )
    queues.add(keys, batch.weight, step.gather)
    return loss


def sigmoid(step: Step) -> Float[Tensor, ""]:
    """Return SigLIP's loss over the gathered batch; a clip of equal frames scores like one frame."""
    text, video = step.gather(step.text.vector), step.gather(step.video.vectors)
    scores = dual_scores(text, video, step.temperature) - math.log(video.shape[1])
    return losses.sigmoid(step.heads["sigmoid"](scores), step.gather(step.batch.weight))


def gvtm_level2(step: Step) -> Float[Tensor, ""]:
    """Return ℒ4: over all pairs, over mined ones, or as published over mined clips."""
    config, batch = step.config, step.batch
    is_raw = config.matching_text == "raw"
    ids = batch.token_ids if is_raw else batch.masked_token_ids
    captions = step.embed_caption(ids, step.raw_text if is_raw else None)
    if config.mining == "both_ways" and config.num_hard_negatives is not None:
        positive, negatives, is_usable = hard_pairs(step, ids, captions)
        return losses.gvtm_level2(positive, negatives, is_usable, batch.weight, gather=step.gather)
    if config.mining == "both_ways":
        scores, importance = all_pairs(step, captions), None
        if config.pairs == "gathered":
            return losses.mil_nce(step.gather(scores), step.gather(batch.weight))
    else:
        scores, importance = mined_pairs(step, captions)
    of_rank = losses.mil_nce(scores, batch.weight, importance)
    return losses.global_mean(of_rank[None], batch.weight.sum()[None], step.gather)


def lvwm(step: Step) -> Float[Tensor, ""]:
    """Return LVWM with word vectors after the text pass, before it, or the sum of both losses."""
    batch, text = step.batch, step.text
    rows = torch.arange(len(batch.weight), device=batch.weight.device)[:, None]
    stages = {"after": [text.hidden], "before": [text.embedded], "both": [text.hidden, text.embedded]}
    terms = [
        losses.lvwm(
            states[rows, batch.word_positions],
            step.video.vectors,
            batch.weight,
            frames=step.config.frames,
            gather=step.gather,
        )
        for states in stages[step.config.lvwm_stage]
    ]
    return torch.stack(terms).sum()


def masked_words_text(step: Step) -> Float[Tensor, ""]:
    """Return ℒ1: from the masked caption alone, or as published from the raw one, which shows the answer."""
    text = step.text if step.config.text_alone == "raw" else step.masked_text
    logits, labels = masked_logits(step, text.hidden, step.model.text_word_logits)
    return losses.masked_words(logits, labels, gather=step.gather)


def masked_words_cross(step: Step) -> Float[Tensor, ""]:
    """Return ℒ2: from the masked caption and the clip."""
    logits, labels = masked_logits(step, step.fused.text_hidden, step.model.cross_word_logits)
    return losses.masked_words(logits, labels, gather=step.gather)


def itm(step: Step) -> Float[Tensor, ""]:
    """Return the ITM loss over each clip with its true caption and with a false one."""
    batch, draws, head = step.batch, step.draws, step.heads["itm"]
    assert draws.false_ids is not None, "draws for ITM hold false captions"
    assert draws.false_mask is not None, "draws for ITM hold false captions"
    is_raw = step.config.matching_text == "raw"
    true = step.fuse(step.model.embed_caption(batch.token_ids)) if is_raw else step.fused
    false_captions = step.model.embed_caption(draws.false_ids)
    false = step.in_chunks(step.model.fuse_embedded, false_captions, draws.false_mask, step.visual)
    weight = batch.weight if draws.has_false is None else batch.weight * draws.has_false
    return losses.itm(head(true.pooled), head(false.pooled), weight, gather=step.gather)


def clip_order(step: Step) -> Float[Tensor, ""]:
    """Return the loss of the clip-order task: the prediction of the true position of each moved frame."""
    frames, model = step.video.frames, step.model
    assert model.frame_places is not None, "refused when the network was built"
    order, labels = moved_frames(step.clip_ids, frames.shape[1], step.gather(step.clip_ids).sum())
    labels = labels.masked_fill((step.batch.weight < 0.5)[:, None], IGNORED_LABEL)
    moved = frames.gather(1, order[..., None].expand_as(frames))
    logits = model.frame_places(step.in_chunks(model.look_over_time, moved))
    return losses.masked_words(logits.flatten(0, 1), labels.flatten(), gather=step.gather)


def masked_logits(
    step: Step, hidden: Float[Tensor, "b L D"], head: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, "M V"], Int64[Tensor, " M"]]:
    """Return vocabulary logits and labels of the masked positions; others are not projected onto the vocabulary."""
    positions = masked_positions(step.draws.labels, step.draws.max_masked)
    labels = step.draws.labels.gather(1, positions).flatten()
    hidden = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1])).flatten(0, 1)
    return head(hidden), labels


def all_pairs(step: Step, captions: Float[Tensor, "b L D"]) -> Float[Tensor, "b P"]:
    """Return the scores of this rank's captions with every clip of the pool."""
    clips = step.pool(step.visual)
    every = torch.arange(len(clips), device=clips.device).expand(len(captions), -1)
    return pair_scores(step, captions, clips, every)


def hard_pairs(
    step: Step, ids: Int64[Tensor, "b L"], captions: Float[Tensor, "b L D"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b N"], Bool[Tensor, "b N"]]:
    """Return the scores of this rank's true pairs, the scores of their hard negative clips and captions from the pool,
    and which negatives are usable. Hardness is the dual score, with noise if `negative_spread` is above 0."""
    config, pool, count = step.config, step.pool, step.config.num_hard_negatives
    assert count is not None, "all_pairs needs no choice"
    scores = step.dual_scores(pool, step.temperature)
    if config.negative_spread:
        scores = scores / config.negative_spread + pair_noise(pool(step.clip_ids))
    weight, clips, own_rows = pool(step.batch.weight), pool(step.visual), step.rows_in(pool)
    wrong_clips, clips_usable = (rows[own_rows] for rows in hard_negatives(scores, weight, count))
    wrong_captions, captions_usable = (rows[own_rows] for rows in hard_negatives(scores.T, weight, count))
    of_captions = pair_scores(step, captions, clips, torch.cat([own_rows[:, None], wrong_clips], dim=1))
    pooled_ids, pooled_mask = step.gathered_captions(ids, pool)
    pooled = step.model.embed_caption(pooled_ids)

    def score(caption: Tensor, clip: Tensor) -> Tensor:
        return step.model.score_embedded(pooled[caption], pooled_mask[caption], clips[clip])

    negatives, usable = of_captions[:, 1:], clips_usable
    if wrong_captions.numel():  # none in a batch of one
        clip = own_rows.repeat_interleave(wrong_captions.shape[1])
        of_clips = step.in_chunks(score, wrong_captions.flatten(), clip).view(wrong_captions.shape)
        negatives = torch.cat([negatives, of_clips], dim=1)
        usable = torch.cat([usable, captions_usable], dim=1)
    return of_captions[:, 0], negatives, usable


def mined_pairs(
    step: Step, captions: Float[Tensor, "b L D"]
) -> tuple[Float[Tensor, "b b"], Float[Tensor, " b"] | None]:
    """Return scores over the published choice of as many clips per caption as this rank has rows (§2.3), and the
    importance of its rows. Clips of all ranks are ranked by cosines without a temperature."""
    config, weight = step.config, step.batch.weight
    assert config.mining != "both_ways", "hard_pairs mines both ways"
    scores, clips, own_rows = step.dual_scores(step.gather, 1.0), step.gather(step.visual), step.rows_in(step.gather)
    is_out = step.gather(weight) < 0.5
    rows = scores[own_rows].masked_fill(is_out[None, :], losses.EXCLUDED)
    place = ((weight > 0.5).long().cumsum(0) - 1).clamp(min=0)  # rows of weight 0 use up no candidate
    chosen = with_true_clip(mined_clips(rows, own_rows, config.mining)[:, place], own_rows)
    importance = easy_weights(scores[own_rows, own_rows], weight) if config.reweight_easy else None
    return pair_scores(step, captions, clips, chosen), importance


def pair_scores(
    step: Step,
    captions: Float[Tensor, "b L D"],
    clips: Float[Tensor, "P S D"],
    chosen: Int64[Tensor, "b n"],
) -> Float[Tensor, "b n"]:
    """Return the cross encoder's score of each embedded caption, raw or masked, with the embedded clips `chosen`."""

    def of_group(group: LengthGroup) -> Tensor:
        def score(caption: Tensor, clip: Tensor) -> Tensor:
            text, mask = captions[caption, : group.num_tokens], step.batch.token_mask[caption, : group.num_tokens]
            return step.model.score_embedded(text, mask, clips[clip])

        clip = chosen[group.rows]
        return step.in_chunks(score, group.rows.repeat_interleave(clip.shape[1]), clip.flatten()).view(clip.shape)

    return by_length(of_group, groups_of(step.batch))
