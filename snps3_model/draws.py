"""Random draws of a step: masks that follow attention, and false captions for ITM."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.records import IGNORED_LABEL
from snps3_model.importance import attentive_masks, words_importance
from snps3_model.negatives import hard_negatives
from snps3_model.noise import hashed_uniform, pair_noise, word_noise
from snps3_model.step import Draws, Step

MOVED_SHARE = 0.15
"""Share of the frames that the clip-order task permutes."""


@torch.no_grad()
def draw(step: Step, mask_id: int | None) -> Draws:
    """Return this step's masks and false captions. They depend on the clip ids alone, not on a random generator."""
    batch, config = step.batch, step.config
    masked, labels, max_masked = batch.masked_token_ids, batch.labels, batch.max_masked
    if config.attentive_share:
        assert mask_id is not None, "refused when the network was built"
        masked, labels = attentive(step, mask_id)
    if max_masked is None or config.attentive_share:
        max_masked = labels.shape[1]
    if not config.itm:
        return Draws(masked_token_ids=masked, labels=labels, max_masked=max_masked)
    weight, gather = step.gather(batch.weight), step.gather
    if config.itm_negative == "hard":
        scores = step.dual_scores(gather, step.temperature)
    else:
        scores = pair_noise(gather(step.clip_ids))
    own_rows = step.rows_in(gather)
    false, has_false = own_rows, torch.zeros_like(own_rows, dtype=torch.bool)
    if len(weight) > 1:
        false, has_false = (rows[own_rows, 0] for rows in hard_negatives(scores.T, weight, 1))
    ids, mask = step.gathered_captions(batch.token_ids, gather)
    return Draws(
        masked_token_ids=masked,
        labels=labels,
        max_masked=max_masked,
        false_ids=ids[false],
        false_mask=mask[false],
        has_false=has_false,
    )


@torch.no_grad()
def attentive(step: Step, mask_id: int) -> tuple[Int64[Tensor, "b L"], Int64[Tensor, "b L"]]:
    """Return masked ids and labels: the batch's, or on `attentive_share` of the steps those drawn by attention."""
    batch, config, model = step.batch, step.config, step.model
    pool = step.gather(step.clip_ids).sum()
    is_attentive = hashed_uniform(pool[None], pool.new_zeros(1), pool) < config.attentive_share
    masked, labels = attentive_masks(
        batch.token_ids,
        batch.token_mask,
        words_importance(model.bert, step.text, batch.token_mask, config.attentive_layers),
        word_noise(step.clip_ids, batch.token_ids.shape[1], pool),
        separator_id=model.separator_id,
        mask_id=mask_id,
    )
    masked = torch.where(is_attentive, masked, batch.masked_token_ids)
    return masked, torch.where(is_attentive, labels, batch.labels)


def moved_frames(
    clip_ids: Int64[Tensor, " b"], num_frames: int, pool: Int64[Tensor, ""]
) -> tuple[Int64[Tensor, "b T"], Int64[Tensor, "b T"]]:
    """Return, for the clip-order task, the frame index at each position, and the labels: the same index where a frame
    was moved, `IGNORED_LABEL` elsewhere and in an image.

    15 % of the frames, at least two, rotate among their positions (frame order modelling; Li et al., EMNLP 2020).
    `pool` is the sum of the clip ids of the global batch.
    """
    places = torch.arange(num_frames, device=clip_ids.device)
    num_moved = min(max(2, round(MOVED_SHARE * num_frames)), num_frames)
    chosen = hashed_uniform(clip_ids, places, pool).argsort(dim=1)[:, :num_moved]
    order = places.expand(len(clip_ids), -1).scatter(1, chosen.roll(1, dims=1), chosen)
    return order, torch.where(order == places, IGNORED_LABEL, order)


def masked_positions(labels: Int64[Tensor, "b L"], most: int) -> Int64[Tensor, "b most"]:
    """Return the positions of each row's labels, in order, filled up with positions that have none; no row may have
    more than `most`. The shape does not depend on the labels' values, so the host need not wait for the device."""
    return (labels != IGNORED_LABEL).int().argsort(dim=1, descending=True, stable=True)[:, :most]
