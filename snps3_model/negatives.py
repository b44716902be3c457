"""Mining of negatives for GVTM level 2 by level-1 scores, without a gradient: hard negatives, and as published."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

SET_ASIDE = 100.0
"""Offset by which the published code moves the true pair's score, so that it is chosen last."""
LEAST_WEIGHT = 0.2


def hard_negatives(
    scores: Float[Tensor, "B B"], weight: Float[Tensor, " B"], count: int
) -> tuple[Int64[Tensor, "B k"], Bool[Tensor, "B k"]]:
    """Return for each row the `count` best-scoring columns other than its own, and which of them are usable."""
    is_pair = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    blocked = is_pair | (weight < 0.5)[None, :]
    best = scores.detach().masked_fill(blocked, -torch.inf).topk(min(count, len(scores) - 1), dim=1)
    return best.indices, best.values > -torch.inf


def mined_clips(
    scores: Float[Tensor, "b P"], own: Int64[Tensor, " b"], method: Literal["nearest", "top_k"]
) -> Int64[Tensor, "b b"]:
    """Return b clips of the pool for each of b captions, as published (§2.3, §8.5): those with the score `nearest` to
    that of the true clip `own`, or the highest (`top_k`), best first, before slot i goes to the true clip.

    A pool of only b clips includes the true one, which then occurs twice in its final row.
    """
    b = len(scores)
    true = scores.gather(1, own[:, None])
    if method == "nearest":
        ranking = -(scores - true).abs().scatter(1, own[:, None], SET_ASIDE)
    else:
        ranking = scores.scatter(1, own[:, None], true - SET_ASIDE)
    return ranking.topk(b, dim=1).indices


def with_true_clip(chosen: Int64[Tensor, "b b"], own: Int64[Tensor, " b"]) -> Int64[Tensor, "b b"]:
    """Return `chosen` with slot i of row i replaced by the true clip."""
    is_slot = torch.eye(len(chosen), dtype=torch.bool, device=chosen.device)
    return torch.where(is_slot, own[:, None], chosen)


def easy_weights(true_scores: Float[Tensor, " b"], weight: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return 1 for captions up to the mean level-1 score, less above it, at least 0.2 (the published code calls the
    mean "median").

    Only rows of weight 1 enter mean and minimum.
    """
    mean = (true_scores * weight).sum() / weight.sum().clamp(min=1.0)
    least = true_scores.masked_fill(weight < 0.5, torch.inf).min()
    smallest = torch.finfo(true_scores.dtype).tiny
    above = ((mean - least) / (true_scores - least).clamp(min=smallest)).clamp(min=LEAST_WEIGHT)
    return torch.where(true_scores > mean, above, 1.0)
