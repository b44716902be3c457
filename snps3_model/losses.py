"""The objectives of SNP-S3 as pure functions, each under the paper's name.

Every loss is the loss of the *global* batch and the same number on every rank: `gather` fetches the other ranks' rows,
with gradient. Since each rank then differentiates the same number and DDP averages, the gradient is exact for any
number of ranks. Rows of weight 0 change no loss and no gradient. All losses use at least single precision.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from pipeline.records import IGNORED_LABEL
from snps3_model.gather import Gather
from snps3_model.precision import in_single_precision
from snps3_model.snps3 import dual_scores

Frames = Literal["all", "middle"]
"""Which frames of a clip are matched; see ObjectiveConfig.frames."""
EXCLUDED = -1e9
"""A score that no softmax sees; finite, so that a row without any candidate still has a gradient of 0."""


@in_single_precision
def weighted_mean(loss: Float[Tensor, " B"], weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return the mean over the rows of weight 1; 0 if there is none."""
    return (loss * weight).sum() / weight.sum().clamp(min=1.0)


@in_single_precision
def products(equation: str, *factors: Tensor) -> Tensor:
    """Return `torch.einsum` of the factors, in single precision."""
    return torch.einsum(equation, *factors)


@in_single_precision
def log_share(true: Float[Tensor, " B"], others: Float[Tensor, "B N"]) -> Float[Tensor, " B"]:
    """Return the negative log-probability of the true candidate in a softmax over it and the others."""
    return torch.logsumexp(torch.cat([true[:, None], others], dim=1), dim=1) - true


@in_single_precision
def mil_nce(
    scores: Float[Tensor, "B B"], weight: Float[Tensor, " B"], importance: Float[Tensor, " B"] | None = None
) -> Float[Tensor, ""]:
    """Return MIL-NCE over caption × clip scores (§2.2): the true pair against its column and its row together.

    Chance is ln(2B − 1). `importance` scales the losses of rows, but not the divisor of their mean.
    """
    is_out = weight < 0.5
    scores = scores.masked_fill(is_out[:, None] | is_out[None, :], EXCLUDED)
    is_pair = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    both = torch.cat([scores, scores.T.masked_fill(is_pair, EXCLUDED)], dim=1)
    losses = torch.logsumexp(both, dim=1) - scores.diagonal()
    return weighted_mean(losses if importance is None else losses * importance, weight)


@in_single_precision
def mil_nce_of_middle_frames(
    scores: Float[Tensor, "B B T"], weight: Float[Tensor, " B"], importance: Float[Tensor, " B"] | None = None
) -> Float[Tensor, ""]:
    """Return MIL-NCE as published for T > 1 (§2.2): the true clip's middle frame against its column's middle frames,
    and against every frame of the other clips of its row. Equal to `mil_nce` for T = 1."""
    B, T = len(scores), scores.shape[2]
    is_out = weight < 0.5
    scores = scores.masked_fill((is_out[:, None] | is_out[None, :])[..., None], EXCLUDED)
    middle = scores[..., T // 2]
    is_pair = torch.eye(B, dtype=torch.bool, device=scores.device)
    others = scores.masked_fill(is_pair[..., None], EXCLUDED).flatten(1)
    candidates = torch.cat([middle.T + math.log(T), others], dim=1)
    losses = torch.logsumexp(candidates, dim=1) - middle.diagonal() - math.log(T)
    return weighted_mean(losses if importance is None else losses * importance, weight)


def gvtm_level1(
    text: Float[Tensor, "b D"],
    video: Float[Tensor, "b T D"],
    weight: Float[Tensor, " b"],
    *,
    temperature: float | Float[Tensor, ""],
    frames: Frames = "all",
    gather: Gather,
) -> Float[Tensor, ""]:
    """Return ℒ3: MIL-NCE of the dual encoder's scores over the gathered batch."""
    if frames == "all":
        return mil_nce(dual_scores(gather(text), gather(video), temperature), gather(weight))
    cosines = products("qd,ctd->qct", gather(text), gather(video))
    return mil_nce_of_middle_frames(cosines / temperature, gather(weight))


@in_single_precision
def gvtm_level1_queued(
    text: Float[Tensor, "b D"],
    video: Float[Tensor, "b T D"],
    text_keys: Float[Tensor, "b D"],
    video_keys: Float[Tensor, "b T D"],
    text_queue: Float[Tensor, "K D"],
    video_queue: Float[Tensor, "K D"],
    weight: Float[Tensor, " b"],
    *,
    temperature: float | Float[Tensor, ""],
    gather: Gather,
) -> Float[Tensor, ""]:
    """Return ℒ3 over queues (§2.1): each frame is matched with its caption's key, and each caption with the keys of all
    its clip's frames, against the queued keys. The batch itself has no negatives. Chance for one frame is ln(K + 1)."""
    true_text = torch.einsum("btd,bd->bt", video, text_keys) / temperature
    other_texts = video @ text_queue.T / temperature
    of_frames = torch.logsumexp(torch.cat([true_text[..., None], other_texts], dim=-1), dim=-1) - true_text
    true_frames = torch.einsum("bd,btd->bt", text, video_keys) / temperature
    other_frames = text @ video_queue.T / temperature
    of_captions = torch.logsumexp(torch.cat([true_frames, other_frames], dim=-1), dim=-1)
    of_captions = of_captions - torch.logsumexp(true_frames, dim=-1)
    return global_mean((of_frames.mean(1) + of_captions) / 2, weight, gather)


def lvwm(
    words: Float[Tensor, "b K D"],
    video: Float[Tensor, "b T D"],
    weight: Float[Tensor, " b"],
    *,
    frames: Frames = "all",
    gather: Gather,
) -> Float[Tensor, ""]:
    """Return LVWM: K significant words of each caption matched with the gathered clips (§2.9).

    Word states are neither normalised nor projected: their length acts as the scale. Log-sum-exp joins the words, and
    a clip's frames.
    """
    words, video = gather(words), gather(video)
    similarities = products("ikd,jtd->ijkt", words, video)
    if frames == "all":
        return mil_nce(torch.logsumexp(similarities.flatten(2), dim=-1), gather(weight))
    return mil_nce_of_middle_frames(torch.logsumexp(similarities, dim=2), gather(weight))


@in_single_precision
def sigmoid(scores: Float[Tensor, "B B"], weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return SigLIP's loss over caption × clip scores, which classifies each pair alone as true or false: the sum over
    the clips of a caption, the mean over captions."""
    true = 2 * torch.eye(len(scores), device=scores.device, dtype=scores.dtype) - 1
    return weighted_mean((F.softplus(-true * scores) * weight).sum(1), weight)


class PairBias(nn.Module):
    """The learned bias that SigLIP adds to the score of every pair: it starts low, since nearly all pairs are false."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, scores: Float[Tensor, "B B"]) -> Float[Tensor, "B B"]:
        return scores + self.bias


@in_single_precision
def itm(
    true_pairs: Float[Tensor, "b 2"], false_pairs: Float[Tensor, "b 2"], weight: Float[Tensor, " b"], *, gather: Gather
) -> Float[Tensor, ""]:
    """Return the ITM loss: cross entropy of two classes, 1 for true pairs and 0 for as many false ones (§2.4)."""
    of_true = torch.logsumexp(true_pairs, dim=1) - true_pairs[:, 1]
    of_false = torch.logsumexp(false_pairs, dim=1) - false_pairs[:, 0]
    return global_mean((of_true + of_false) / 2, weight, gather)


def gvtm_level2(
    positive: Float[Tensor, " b"],
    negatives: Float[Tensor, "b N"],
    is_usable: Bool[Tensor, "b N"],
    weight: Float[Tensor, " b"],
    *,
    gather: Gather,
) -> Float[Tensor, ""]:
    """Return ℒ4: MIL-NCE of the cross encoder's scores; `negatives` are other clips for the caption and other captions
    for the clip. With all other clips and captions it equals `mil_nce` over all pairs."""
    return global_mean(log_share(positive, negatives.masked_fill(~is_usable, EXCLUDED)), weight, gather)


def masked_words(logits: Float[Tensor, "M V"], labels: Int64[Tensor, " M"], *, gather: Gather) -> Float[Tensor, ""]:
    """Return ℒ1 or ℒ2: the mean cross entropy over all labels of the global batch; 0 if there are none."""
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="none")
    return global_mean(losses, (labels != IGNORED_LABEL).to(losses.dtype), gather)


@in_single_precision
def global_mean(losses: Float[Tensor, " b"], weight: Float[Tensor, " b"], gather: Gather) -> Float[Tensor, ""]:
    """Return the weighted mean over the rows of all ranks."""
    sums = torch.stack([(losses * weight).sum(), weight.sum()])
    total = gather(sums[None]).sum(0)
    return total[0] / total[1].clamp(min=1.0)
