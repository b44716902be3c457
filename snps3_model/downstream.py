"""The network on downstream tasks: open questions over a list of answers, and multiple choice among captions (§6).

| task | cross pass over | head |
|---|---|---|
| `Answering` | question, clip | pooled state → a score per answer |
| `Choosing` | each option, clip | the matching score that GVTM level 2 trains |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from pipeline.records import IGNORED_LABEL, Batch, ChoiceBatch, QuestionBatch
from snps3_model import losses
from snps3_model.gather import Gather, local_gather
from snps3_model.loss_table import CROSS
from snps3_model.objective import freeze_unreached
from snps3_model.passes import in_chunks
from snps3_model.precision import in_single_precision
from snps3_model.snps3 import SNPS3
from snps3_model.visual import synchronise


class QuestionModel(nn.Module):
    """The network on a task that answers questions about clips with the cross pass."""

    def __init__(self, model: SNPS3, reached: Collection[str], gather: Gather, rows_at_once: int | None) -> None:
        super().__init__()
        self.model, self.gather, self.rows_at_once = model, gather, rows_at_once
        synchronise(model, gather)
        freeze_unreached(model, CROSS | {"cross_pooler", *reached})

    def clip_tokens(self, batch: Batch, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B S D"]:
        """Return the tokens of the batch's clips; clips of weight 0 count as padding."""
        pad_mask = batch.frame_pad_mask | (batch.weight < 0.5)[:, None, None, None]
        return in_chunks(self.model.encode_video, frames, pad_mask, size=self.rows_at_once).tokens


class Answering(QuestionModel):
    """Video question answering as classification over a list of answers."""

    weights: Mapping[str, float] = MappingProxyType({"answering": 1.0})

    def __init__(
        self,
        model: SNPS3,
        num_answers: int,
        *,
        is_multi_label: bool = False,
        gather: Gather = local_gather,
        rows_at_once: int | None = None,
    ) -> None:
        """`is_multi_label`: each answer is right or wrong independently (binary cross entropy, as published)."""
        super().__init__(model, (), gather, rows_at_once)
        self.is_multi_label = is_multi_label
        self.head = nn.Linear(model.config.hidden, num_answers)

    def forward(self, batch: QuestionBatch, frames: Float[Tensor, "B T 3 H W"]) -> dict[str, Float[Tensor, ""]]:
        """Return the loss of the global batch under its name."""
        tokens = self.clip_tokens(batch, frames)
        columns = (batch.question_ids, batch.question_mask, batch.answers, batch.question_weight)
        ids, mask, answers, weight = (column.flatten(0, 1) for column in columns)
        clips = tokens.repeat_interleave(batch.question_ids.shape[1], dim=0)
        logits = in_chunks(self.logits, ids, mask, clips, size=self.rows_at_once)
        return {"answering": answering(logits, answers, weight, self.is_multi_label, self.gather)}

    def logits(
        self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"], frame_tokens: Float[Tensor, "B S D"]
    ) -> Float[Tensor, "B A"]:
        """Return a score per answer for each question about its clip."""
        return self.head(self.model.pooled(token_ids, token_mask, frame_tokens))


class Choosing(QuestionModel):
    """Multiple choice: the option with the highest matching score belongs to the clip."""

    weights: Mapping[str, float] = MappingProxyType({"choosing": 1.0})

    def __init__(self, model: SNPS3, *, gather: Gather = local_gather, rows_at_once: int | None = None) -> None:
        super().__init__(model, ("similarity",), gather, rows_at_once)

    def forward(self, batch: ChoiceBatch, frames: Float[Tensor, "B T 3 H W"]) -> dict[str, Float[Tensor, ""]]:
        """Return the loss of the global batch under its name."""
        scores = self.logits(batch.option_ids, batch.option_mask, self.clip_tokens(batch, frames))
        return {"choosing": choosing(scores, batch.answer, batch.weight, self.gather)}

    def logits(
        self,
        option_ids: Int64[Tensor, "B O L"],
        option_mask: Bool[Tensor, "B O L"],
        frame_tokens: Float[Tensor, "B S D"],
    ) -> Float[Tensor, "B O"]:
        """Return the matching score of each option with its clip."""
        num_options = option_ids.shape[1]
        clips = frame_tokens.repeat_interleave(num_options, dim=0)
        ids, mask = option_ids.flatten(0, 1), option_mask.flatten(0, 1)
        return in_chunks(self.model.score, ids, mask, clips, size=self.rows_at_once).view(-1, num_options)


@in_single_precision
def choosing(
    scores: Float[Tensor, "B O"], answer: Int64[Tensor, " B"], weight: Float[Tensor, " B"], gather: Gather
) -> Float[Tensor, ""]:
    """Return the cross entropy with the right option, the mean over the clips of the global batch."""
    return losses.global_mean(F.cross_entropy(scores, answer, reduction="none"), weight, gather)


@in_single_precision
def answering(
    logits: Float[Tensor, "B A"],
    answers: Int64[Tensor, "B N"],
    weight: Float[Tensor, " B"],
    is_multi_label: bool,
    gather: Gather,
) -> Float[Tensor, ""]:
    """Return the mean over the questions of the global batch of the cross entropy with the only answer, or of the
    binary cross entropy with several answers, summed over the list.

    `answers` are padded with `IGNORED_LABEL`; a question without a known answer needs weight 0.
    """
    if not is_multi_label:
        per_question = F.cross_entropy(logits, answers[:, 0].clamp(min=0), reduction="none")
    else:
        # a last column takes the padding and is cut off again
        targets = torch.zeros(len(logits), logits.shape[1] + 1, device=logits.device, dtype=logits.dtype)
        columns = torch.where(answers == IGNORED_LABEL, logits.shape[1], answers)
        targets = targets.scatter(1, columns, 1.0)[:, :-1]
        per_question = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    return losses.global_mean(per_question, weight, gather)
