"""From a batch to its losses: which passes of the network, and which loss is computed from which pass.

| pass | over | serves |
|---|---|---|
| text | raw caption | GVTM level 1, LVWM |
| text | masked caption | ℒ1 |
| cross | masked caption, own clip | ℒ2 |
| cross | raw caption, own clip and hard negatives | GVTM level 2 |
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pipeline.records import Batch
from snps3_model import losses
from snps3_model.config import ObjectiveConfig
from snps3_model.snps3 import SNPS3, TextFeatures, VideoFeatures, dual_scores
from snps3_model.visual import Gather, local_gather, synchronise


class Pretraining(nn.Module):
    """The network with its objectives; `forward` gives the unweighted losses of the global batch by name."""

    def __init__(self, model: SNPS3, config: ObjectiveConfig, gather: Gather = local_gather, rank: int = 0) -> None:
        super().__init__()
        self.model, self.config, self.gather, self.rank = model, config, gather, rank
        synchronise(model, gather)
        freeze_unreached(model, config)

    def forward(self, batch: Batch, frames: Float[Tensor, "B T 3 H W"]) -> dict[str, Float[Tensor, ""]]:
        """`frames` are the batch's frames after augmentation and normalisation on the device."""
        config, model, gather = self.config, self.model, self.gather
        pad_mask = batch.frame_pad_mask | (batch.weight < 0.5)[:, None, None, None]
        video = model.encode_video(frames, pad_mask)
        result: dict[str, Tensor] = {}
        if config.gvtm_level1 or config.gvtm_level2 or config.lvwm:
            text = model.encode_text(batch.token_ids, batch.token_mask)
            if config.gvtm_level1:
                result["gvtm_level1"] = losses.gvtm_level1(
                    text.vector, video.vectors, batch.weight, temperature=config.temperature, gather=gather
                )
            if config.gvtm_level2:
                result["gvtm_level2"] = self.match_pairs(batch, text, video)
            if config.lvwm:
                rows = torch.arange(len(batch.weight), device=batch.weight.device)[:, None]
                words = text.hidden[rows, batch.word_positions]
                result["lvwm"] = losses.lvwm(words, video.vectors, batch.weight, gather=gather)
        result |= self.fill_masked_words(batch, video)
        return result

    def fill_masked_words(self, batch: Batch, video: VideoFeatures) -> dict[str, Tensor]:
        """ℒ1 from the masked caption alone, ℒ2 with the clip."""
        model, chosen = self.model, losses.masked_positions(batch.labels)
        labels = batch.labels[chosen]
        result: dict[str, Tensor] = {}
        if self.config.masked_words_text:
            hidden = model.encode_text(batch.masked_token_ids, batch.token_mask).hidden[chosen]
            logits = model.text_words(hidden, model.word_embeddings)
            result["masked_words_text"] = losses.masked_words(logits, labels, gather=self.gather)
        if self.config.masked_words_cross:
            hidden = model.fuse(batch.masked_token_ids, batch.token_mask, video.tokens).text_hidden[chosen]
            logits = model.cross_words(hidden, model.word_embeddings)
            result["masked_words_cross"] = losses.masked_words(logits, labels, gather=self.gather)
        return result

    def match_pairs(self, batch: Batch, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """ℒ4 over each local pair, its hard negative clips and its hard negative captions of the gathered pool."""
        B = len(batch.weight)
        weight, clips = self.gather(batch.weight), self.gather(video.tokens)
        ids, mask = self.gather_captions(batch)
        with torch.no_grad():
            scores = dual_scores(self.gather(text.vector), self.gather(video.vectors), self.config.temperature)
            if self.config.negative_spread:
                usable_ids = self.gather(batch.clip_ids * (batch.weight > 0.5))
                scores = scores / self.config.negative_spread + losses.pair_noise(usable_ids)
        count = self.config.num_hard_negatives or len(scores) - 1
        own = torch.arange(B, device=ids.device) + self.rank * B
        wrong_clips, clips_usable = (rows[own] for rows in losses.hard_negatives(scores, weight, count))
        wrong_captions, captions_usable = (rows[own] for rows in losses.hard_negatives(scores.T, weight, count))
        caption, clip = pair_indices(own, wrong_clips, wrong_captions)
        fused = self.model.fuse(ids[caption], mask[caption], clips[clip])
        matched = self.model.match(fused.pooled).view(B, -1)
        usable = torch.cat([clips_usable, captions_usable], dim=1)
        return losses.gvtm_level2(matched[:, 0], matched[:, 1:], usable, batch.weight, gather=self.gather)

    def gather_captions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Token ids and mask of every rank's captions, padded to the longest of them."""
        room = self.model.config.max_positions - batch.token_ids.shape[1]
        ids = self.gather(nn.functional.pad(batch.token_ids, (0, room)))
        mask = self.gather(nn.functional.pad(batch.token_mask, (0, room)).to(torch.uint8)).bool()
        longest = int(mask.sum(1).max())
        return ids[:, :longest], mask[:, :longest]


def freeze_unreached(model: SNPS3, config: ObjectiveConfig) -> None:
    """Parts of `model` that no active loss reaches want no gradient: DDP would wait for it and refuse the next."""
    is_dual = config.gvtm_level1 or config.lvwm
    reached = {
        model.visual: is_dual or config.gvtm_level2 or config.masked_words_cross,
        model.video_head: is_dual,
        model.text_pooler: config.gvtm_level1,
        model.cross_pooler: config.gvtm_level2,
        model.similarity: config.gvtm_level2,
        model.text_words: config.masked_words_text,
        model.cross_words: config.masked_words_cross,
    }
    for module, is_reached in reached.items():
        if not is_reached:
            module.requires_grad_(False)


def pair_indices(
    own: Int64[Tensor, " B"], wrong_clips: Int64[Tensor, "B k"], wrong_captions: Int64[Tensor, "B k"]
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]]:
    """Caption and clip of each pair to score: per row the true pair, k wrong clips, k wrong captions."""
    own = own[:, None]
    caption = torch.cat([own, own.expand_as(wrong_clips), wrong_captions], dim=1)
    clip = torch.cat([own, wrong_clips, own.expand_as(wrong_captions)], dim=1)
    return caption.flatten(), clip.flatten()
