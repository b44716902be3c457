"""The passes of a batch through the network, from which the losses are computed.

| pass | over | serves |
|---|---|---|
| `text` | raw caption | GVTM level 1, LVWM, the choice of hard negatives, attentive masking |
| `masked_text` | masked caption | ℒ1 |
| `fused` | masked caption, own clip | ℒ2 |

GVTM level 2 and ITM run additional passes over pairs. Switches of `ObjectiveConfig` let them read the masked caption
and ℒ1 the raw one, as published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from pipeline.records import Batch, LengthGroup
from snps3_model.config import ObjectiveConfig
from snps3_model.gather import Gather, local_gather
from snps3_model.passes import Features, by_length, combined, groups_of, in_chunks
from snps3_model.queues import MomentumQueues
from snps3_model.snps3 import SNPS3, CrossFeatures, TextFeatures, VideoFeatures, dual_scores

TextOrCross = TypeVar("TextOrCross", TextFeatures, CrossFeatures)
"""Features with hidden states of a caption's tokens."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random draws of a step: a function of the clips of the global batch, on any number of ranks."""

    masked_token_ids: Int64[Tensor, "b L"]
    """For ℒ1 and ℒ2, and for ITM if it reads masked captions: those of the batch, or of attentive masking."""
    labels: Int64[Tensor, "b L"]
    max_masked: int
    """Upper bound of the labels of a row."""
    false_ids: Int64[Tensor, "b F"] | None = None
    """A false caption of each clip, for ITM."""
    false_mask: Bool[Tensor, "b F"] | None = None
    has_false: Bool[Tensor, " b"] | None = None
    """False where the batch holds no other caption; None stands for all True."""


@dataclass(kw_only=True)
class Step:
    """One rank's share of a step, and the passes over it; a pass that several losses read runs once.

    `b` counts the rows of this rank, `B` those of all ranks, `P` those of the pool of GVTM level 2.
    """

    batch: Batch
    frames: Float[Tensor, "b T 3 H W"]
    """The batch's frames after augmentation and normalisation."""
    pad_mask: Bool[Tensor, "b T H W"]
    """True where a pixel is padding, and on every pixel of a row of weight 0."""
    model: SNPS3
    config: ObjectiveConfig
    gather: Gather
    rank: int
    rows_at_once: int | None
    temperature: float | Float[Tensor, ""]
    """Divisor of the cosines of GVTM level 1."""
    queues: MomentumQueues | None = None
    """In a training step, if GVTM level 1 contrasts with queues."""
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    """Additional modules of losses, by the loss's name."""
    video: VideoFeatures = field(init=False)
    visual: Float[Tensor, "b S D"] = field(init=False)
    """The visual part of the cross pass, embedded; only where a loss needs the cross pass."""
    draws: Draws = field(init=False)
    raw_text: TextFeatures | None = None
    known_masked_text: TextFeatures | None = None
    known_fused: CrossFeatures | None = None

    @property
    def text(self) -> TextFeatures:
        """The text pass over the raw captions; for losses whose entry `reads_raw_text`."""
        assert self.raw_text is not None, "the raw caption is encoded for losses whose entry says reads_raw_text"
        return self.raw_text

    @property
    def masked_text(self) -> TextFeatures:
        """The text pass over the masked captions."""
        if self.known_masked_text is None:
            (self.known_masked_text,) = self.encode_text(self.draws.masked_token_ids)
        return self.known_masked_text

    @property
    def fused(self) -> CrossFeatures:
        """The cross pass over the masked captions, each with its own clip."""
        if self.known_fused is None:
            captions = self.embed_caption(self.draws.masked_token_ids, self.known_masked_text)
            self.known_fused = self.fuse(captions)
        return self.known_fused

    @property
    def clip_ids(self) -> Int64[Tensor, " b"]:
        """Ids of the clips of weight 1, 0 elsewhere; random draws depend on them."""
        return self.batch.clip_ids * (self.batch.weight > 0.5)

    @property
    def pool(self) -> Gather:
        """The gather of GVTM level 2: all ranks' rows, or as published this rank's own."""
        return self.gather if self.config.pairs == "gathered" else local_gather

    def rows_in(self, pool: Gather) -> Int64[Tensor, " b"]:
        """Return the indices of this rank's rows among the rows that `pool` gathers."""
        count = len(self.batch.weight)
        first = 0 if pool is local_gather else self.rank * count
        return torch.arange(count, device=self.batch.weight.device) + first

    def dual_scores(self, pool: Gather, temperature: float | Float[Tensor, ""]) -> Float[Tensor, "P P"]:
        """Return the scores of all captions and clips of `pool`, by which negatives are chosen."""
        with torch.no_grad():  # torch.compile cannot pass a method through the decorator
            return dual_scores(pool(self.text.vector), pool(self.video.vectors), temperature)

    def encode_texts(self, draws: Draws | None, *, is_raw_needed: bool, is_masked_needed: bool) -> None:
        """Run the text pass over the raw captions, and over the masked ones if they are already known; both in one
        pass, so that the layers' weights are read once."""
        config, batch = self.config, self.batch
        if not is_raw_needed:
            return
        if not is_masked_needed or (draws is None and config.attentive_share):
            (self.raw_text,) = self.encode_text(batch.token_ids)
            return
        masked_ids = draws.masked_token_ids if draws else batch.masked_token_ids
        self.raw_text, self.known_masked_text = self.encode_text(batch.token_ids, masked_ids)

    def encode_text(self, *versions: Int64[Tensor, "b L"]) -> list[TextFeatures]:
        """Run one text pass over several versions of the batch's captions; return the features of each version."""
        both = self.over_captions(self.model.encode_embedded, self.model.embed_text(torch.cat(versions)))
        size = len(self.batch.weight)
        return [
            combined([both], lambda parts, start=start: parts[0][start : start + size])
            for start in range(0, size * len(versions), size)
        ]

    def embed_caption(self, ids: Int64[Tensor, "b L"], text: TextFeatures | None) -> Float[Tensor, "b L D"]:
        """Embed captions for the cross pass; reuse the text pass's embeddings if both share one network."""
        if text is not None and self.model.separate_cross is None:
            return text.embedded
        return self.model.embed_caption(ids)

    def fuse(self, captions: Float[Tensor, "b L D"]) -> CrossFeatures:
        """Run the cross pass over the batch's embedded captions, raw or masked, each with its own clip."""
        return self.over_captions(self.model.fuse_embedded, captions, self.visual)

    def over_captions(
        self, function: Callable[..., TextOrCross], captions: Float[Tensor, "vb L D"], *rows: Tensor
    ) -> TextOrCross:
        """Return `function(captions, mask, *rows)`, computed per length group without its padding.

        `captions` are the stacked versions of the batch's captions. They come embedded: every lookup in the word table
        costs a gradient as large as the table.
        """
        num_versions, width = len(captions) // len(self.batch.weight), captions.shape[1]
        mask = self.batch.token_mask.repeat(num_versions, 1)
        if self.config.attentive_share:  # the attention of [PAD] counts there
            return self.in_chunks(function, captions, mask, *rows)

        def of_group(group: LengthGroup) -> TextOrCross:
            texts = (tensor.index_select(0, group.rows)[:, : group.num_tokens] for tensor in (captions, mask))
            others = (tensor.index_select(0, group.rows) for tensor in rows)
            return self.in_chunks(function, *texts, *others).widened(width)

        return by_length(of_group, groups_of(self.batch, num_versions))

    def in_chunks(self, function: Callable[..., Features], *rows: Tensor) -> Features:
        """Return `function(*rows)`, computed on at most `rows_at_once` rows at a time."""
        return in_chunks(function, *rows, size=self.rows_at_once)

    def gathered_captions(
        self, ids: Int64[Tensor, "b L"], pool: Gather
    ) -> tuple[Int64[Tensor, "P F"], Bool[Tensor, "P F"]]:
        """Return token ids and mask of the captions of `pool`, padded to `batch.max_tokens`; if that is unknown, to
        the longest caption, for which the host waits."""
        mask, most = self.batch.token_mask, self.batch.max_tokens
        if pool is local_gather:
            return ids, mask
        room = (most or self.model.config.max_positions) - ids.shape[1]
        ids = pool(nn.functional.pad(ids, (0, room)))
        mask = pool(nn.functional.pad(mask, (0, room)).to(torch.uint8)).bool()
        longest = most or int(mask.sum(1).max())
        return ids[:, :longest], mask[:, :longest]
