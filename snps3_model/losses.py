"""The objectives of SNP-S3 as pure functions, each under the paper's name.

Every loss is the loss of the *global* batch and the same number on every rank: `gather` brings the other ranks' rows,
with gradient. Since each rank then differentiates the same number and DDP averages, the gradient is exact for any
number of ranks. Rows of weight 0 change no loss and no gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline.records import IGNORED_LABEL
from snps3_model.snps3 import dual_scores
from snps3_model.visual import Gather

EXCLUDED = -1e9
"""A score that no softmax sees; finite, so that a row without any candidate still has a gradient of 0."""


def weighted_mean(loss: Float[Tensor, " B"], weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean over the rows of weight 1; 0 when there is none."""
    return (loss * weight).sum() / weight.sum().clamp(min=1.0)


def mil_nce(scores: Float[Tensor, "B B"], weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """MIL-NCE over caption × clip scores (§2.2): the true pair against its column and its row together.

    Chance is ln(2B − 1).
    """
    is_out = weight < 0.5
    scores = scores.masked_fill(is_out[:, None] | is_out[None, :], EXCLUDED)
    is_pair = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    both = torch.cat([scores, scores.T.masked_fill(is_pair, EXCLUDED)], dim=1)
    return weighted_mean(torch.logsumexp(both, dim=1) - scores.diagonal(), weight)


def gvtm_level1(
    text: Float[Tensor, "b D"],
    video: Float[Tensor, "b T D"],
    weight: Float[Tensor, " b"],
    *,
    temperature: float,
    gather: Gather,
) -> Float[Tensor, ""]:
    """ℒ3: MIL-NCE of the dual encoder's scores over the gathered batch."""
    scores = dual_scores(gather(text), gather(video), temperature)
    return mil_nce(scores, gather(weight))


def lvwm(
    words: Float[Tensor, "b K D"],
    video: Float[Tensor, "b T D"],
    weight: Float[Tensor, " b"],
    *,
    gather: Gather,
) -> Float[Tensor, ""]:
    """LVWM: K significant words of each caption matched with the gathered clips (§2.9).

    Word states are neither normalised nor projected: their length is the scale. Words, and a clip's frames, are
    joined by log-sum-exp.
    """
    words, video = gather(words), gather(video)
    similarities = torch.einsum("ikd,jtd->ijkt", words, video)
    return mil_nce(torch.logsumexp(similarities.flatten(2), dim=-1), gather(weight))


def hard_negatives(
    scores: Float[Tensor, "B B"], weight: Float[Tensor, " B"], count: int
) -> tuple[Int64[Tensor, "B k"], Bool[Tensor, "B k"]]:
    """For each row the `count` best-scoring columns other than its own, and which of them are usable."""
    is_pair = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    blocked = is_pair | (weight < 0.5)[None, :]
    best = scores.detach().masked_fill(blocked, -torch.inf).topk(min(count, len(scores) - 1), dim=1)
    return best.indices, best.values > -torch.inf


def pair_noise(clip_ids: Int64[Tensor, " B"]) -> Float[Tensor, "B B"]:
    """Gumbel noise for each ordered pair of the global batch, a function of the clips that meet in it alone.

    Added to scores, the k highest are k draws without replacement from their softmax. No generator is involved, so
    the draws are the same on any number of ranks and after a resume.
    """
    rows = clip_ids * 0x5851F42D4C957F2D + clip_ids.sum()
    mixed = (rows[:, None] ^ (clip_ids * 0x14057B7EF767814F)[None, :]) * 0x2545F4914F6CDD1D
    mixed = (mixed ^ (mixed >> 29)) * 0x1D8E4E27C47D124F
    uniform = ((mixed >> 40) & 0x7FFFFF).double().add(0.5) / 0x800000
    return -torch.log(-torch.log(uniform)).float()


def gvtm_level2(
    positive: Float[Tensor, " b"],
    negatives: Float[Tensor, "b N"],
    is_usable: Bool[Tensor, "b N"],
    weight: Float[Tensor, " b"],
    *,
    gather: Gather,
) -> Float[Tensor, ""]:
    """ℒ4: MIL-NCE of the cross encoder's scores; `negatives` are other clips for the caption and other captions for
    the clip. With all of both it equals `mil_nce` over all pairs."""
    candidates = torch.cat([positive[:, None], negatives.masked_fill(~is_usable, EXCLUDED)], dim=1)
    losses = torch.logsumexp(candidates, dim=1) - positive
    return global_mean(losses, weight, gather)


def masked_words(logits: Float[Tensor, "M V"], labels: Int64[Tensor, " M"], *, gather: Gather) -> Float[Tensor, ""]:
    """ℒ1 and ℒ2: cross entropy at the masked positions, mean over those of the global batch; 0 when there is none."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return global_mean(losses, torch.ones_like(losses), gather)


def global_mean(losses: Float[Tensor, " b"], weight: Float[Tensor, " b"], gather: Gather) -> Float[Tensor, ""]:
    """Weighted mean over the rows of all ranks."""
    sums = torch.stack([(losses * weight).sum(), weight.sum()])
    total = gather(sums[None]).sum(0)
    return total[0] / total[1].clamp(min=1.0)


def masked_positions(labels: Int64[Tensor, "b L"]) -> Bool[Tensor, "b L"]:
    """True where a masked-word loss scores."""
    return labels != IGNORED_LABEL
