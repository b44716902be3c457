"""What a step draws beyond its batch: masks that follow attention, and false captions for ITM."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from snps3_model import losses
from snps3_model.importance import attentive_masks, words_importance
from snps3_model.step import Draws, Step


@torch.no_grad()
def draw(step: Step, mask_id: int | None) -> Draws:
    """This step's masks and false captions. No generator is involved: they depend on the clip ids alone."""
    batch, config = step.batch, step.config
    masked, labels, most_masked = batch.masked_token_ids, batch.labels, batch.most_masked
    if config.attentive_share:
        assert mask_id is not None, "refused when the network was built"
        masked, labels = attentive(step, mask_id)
    if most_masked is None or config.attentive_share:
        most_masked = labels.shape[1]
    if not config.itm:
        return Draws(masked_token_ids=masked, labels=labels, most_masked=most_masked)
    weight, gather = step.gather(batch.weight), step.gather
    if config.itm_negative == "hard":
        scores = step.dual_scores(gather, step.temperature)
    else:
        scores = losses.pair_noise(gather(step.clip_ids))
    own = step.rows_in(gather)
    false, has_false = own, torch.zeros_like(own, dtype=torch.bool)
    if len(weight) > 1:
        false, has_false = (rows[own, 0] for rows in losses.hard_negatives(scores.T, weight, 1))
    ids, mask = step.gathered_captions(batch.token_ids, gather)
    return Draws(
        masked_token_ids=masked,
        labels=labels,
        most_masked=most_masked,
        false_ids=ids[false],
        false_mask=mask[false],
        has_false=has_false,
    )


@torch.no_grad()
def attentive(step: Step, mask_id: int) -> tuple[Int64[Tensor, "b L"], Int64[Tensor, "b L"]]:
    """Masked ids and labels: the batch's, or on `attentive_share` of the steps those drawn by attention."""
    batch, config, model = step.batch, step.config, step.model
    pool = step.gather(step.clip_ids).sum()
    is_attentive = losses.hashed_uniform(pool[None], pool.new_zeros(1), pool) < config.attentive_share
    masked, labels = attentive_masks(
        batch.token_ids,
        batch.token_mask,
        words_importance(model.bert, step.text, batch.token_mask, config.attentive_layers),
        losses.word_noise(step.clip_ids, batch.token_ids.shape[1], pool),
        separator_id=model.separator_id,
        mask_id=mask_id,
    )
    masked = torch.where(is_attentive, masked, batch.masked_token_ids)
    return masked, torch.where(is_attentive, labels, batch.labels)
