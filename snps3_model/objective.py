"""From a batch to its losses: which passes of the network, and which loss is computed from which pass.

| pass | over | serves |
|---|---|---|
| text | raw caption | GVTM level 1, LVWM, the choice of hard negatives, attentive masking |
| text | masked caption | ℒ1 |
| cross | masked caption, own clip | ℒ2 |
| cross | raw caption, own clip and wrong clips, own clip and wrong captions | GVTM level 2 |
| cross | raw caption and a false one, own clip | ITM |

Switches of `ObjectiveConfig` let GVTM level 2 and ITM read the masked caption and ℒ1 the raw one, as published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from pipeline.records import IGNORED_LABEL, Batch, LengthGroup
from snps3_model import losses
from snps3_model.config import ObjectiveConfig, refuse_order_without_time
from snps3_model.gather import Gather, local_gather
from snps3_model.importance import attentive_masks, words_importance
from snps3_model.passes import Features, by_length, combined, groups_of, in_chunks
from snps3_model.published_negatives import easy_weights, mined_clips, with_true_clip
from snps3_model.queues import MomentumQueues
from snps3_model.snps3 import SNPS3, CrossFeatures, TextFeatures, VideoFeatures, dual_scores
from snps3_model.visual import synchronise

TextOrCross = TypeVar("TextOrCross", TextFeatures, CrossFeatures)
"""Features with hidden states of a caption's tokens."""
LEAST_TEMPERATURE = 0.01
"""Where a learned temperature stops (CLIP)."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What a step draws beyond its batch. A function of the clips of the global batch, on any number of ranks."""

    masked_token_ids: Int64[Tensor, "b L"]
    """For ℒ1 and ℒ2, and where ITM reads masks: the batch's own, or those of attentive masking."""
    labels: Int64[Tensor, "b L"]
    most_masked: int
    """No row has more labels."""
    false_ids: Int64[Tensor, "b F"] | None = None
    """A false caption of each clip, for ITM."""
    false_mask: Bool[Tensor, "b F"] | None = None
    has_false: Bool[Tensor, " b"] | None = None
    """False where the batch holds no other caption; None stands for all True."""


class Pretraining(nn.Module):
    """The network with its objectives; `forward` gives the unweighted losses of the global batch by name."""

    def __init__(
        self,
        model: SNPS3,
        config: ObjectiveConfig,
        gather: Gather = local_gather,
        rank: int = 0,
        *,
        mask_id: int | None = None,
        rows_at_once: int | None = None,
    ) -> None:
        """`rows_at_once` clips, captions or pairs at most pass through the network together, on this rank."""
        super().__init__()
        if config.attentive_share and mask_id is None:
            raise ValueError("objective.attentive_share needs the id of [MASK]; hand mask_id to Pretraining")
        refuse_order_without_time(config, model.config)
        self.model, self.config, self.gather, self.rank, self.mask_id = model, config, gather, rank, mask_id
        self.rows_at_once = rows_at_once
        self.log_temperature: nn.Parameter | None = None
        if config.learn_temperature and config.gvtm_level1:
            self.log_temperature = nn.Parameter(torch.tensor(config.temperature).log())
        self.queues: MomentumQueues | None = None
        if config.gvtm_level1 and config.queue_length is not None:
            self.queues = MomentumQueues(
                model, length=config.queue_length, momentum=config.queue_momentum, end=config.queue_end
            )
        self.itm_head = nn.Linear(model.config.hidden, 2) if config.itm else None
        synchronise(model, gather)
        freeze_unreached(model, config)

    def forward(
        self, batch: Batch, frames: Float[Tensor, "B T 3 H W"], draws: Draws | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """`frames` are the batch's frames after augmentation and normalisation on the device. `draws` are made from
        the clip ids if they are not given."""
        config, model = self.config, self.model
        pad_mask = batch.frame_pad_mask | (batch.weight < 0.5)[:, None, None, None]
        video = self.in_chunks(model.encode_video, frames, pad_mask)
        text, masked_text = self.encode_texts(batch, draws)
        draws = draws or self.draw(batch, text, video)
        visual = model.embed_frames(video.tokens) if needs_cross(config) else video.tokens
        result: dict[str, Tensor] = {}
        if config.gvtm_level1 and text:
            result["gvtm_level1"] = self.match_wholes(batch, frames, pad_mask, text, video)
        if config.gvtm_level2:
            result["gvtm_level2"] = self.match_pairs(batch, text, video, visual)
        if config.lvwm and text:
            result["lvwm"] = self.match_words(batch, text, video)
        if config.masked_words_text:
            if masked_text is None and config.text_alone == "masked":
                (masked_text,) = self.encode_text(batch, draws.masked_token_ids)
            shown = text if config.text_alone == "raw" else masked_text
            assert shown is not None, "captions are encoded where ℒ1 reads them"
            result["masked_words_text"] = self.fill_words(shown.hidden, draws, model.text_words)
        fused = None
        if config.masked_words_cross or (config.itm and config.matching_text == "masked"):
            fused = self.fuse(batch, self.embed_caption(draws.masked_token_ids, masked_text), visual)
        if config.masked_words_cross and fused:
            hidden = fused.text_hidden
            result["masked_words_cross"] = self.fill_words(hidden, draws, model.cross_words)
        if config.itm:
            result["itm"] = self.tell_true_from_false(batch, draws, visual, fused)
        if config.clip_order:
            result["clip_order"] = self.place_frames(batch, video.frames)
        return result

    def match_wholes(self, batch: Batch, frames: Tensor, pad_mask: Tensor, text: TextFeatures, video: VideoFeatures):
        """ℒ3 over the gathered batch, or in training over the queues if there are any."""
        temperature, gather, queues = self.temperature, self.gather, self.queues
        if queues is None or not self.training:
            kept = self.config.frames
            return losses.gvtm_level1(
                text.vector, video.vectors, batch.weight, temperature=temperature, frames=kept, gather=gather
            )
        queues.follow(self.model)
        keys = queues.keys(frames, pad_mask, batch.token_ids, batch.token_mask)
        loss = losses.gvtm_level1_queued(
            text.vector,
            video.vectors,
            keys.text,
            keys.video,
            queues.text,
            queues.video,
            batch.weight,
            temperature=temperature,
            gather=gather,
        )
        queues.add(keys, batch.weight, gather)
        return loss

    def match_words(self, batch: Batch, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """LVWM with word vectors after the text pass, before it, or a loss of each."""
        rows = torch.arange(len(batch.weight), device=batch.weight.device)[:, None]
        stages = {"after": [text.hidden], "before": [text.embedded], "both": [text.hidden, text.embedded]}
        parts = [
            losses.lvwm(
                states[rows, batch.word_positions],
                video.vectors,
                batch.weight,
                frames=self.config.frames,
                gather=self.gather,
            )
            for states in stages[self.config.lvwm_stage]
        ]
        return torch.stack(parts).sum()

    def fill_words(self, hidden: Float[Tensor, "b L D"], draws: Draws, head: nn.Module) -> Tensor:
        """ℒ1 or ℒ2; only masked positions are projected onto the vocabulary."""
        chosen = losses.masked_positions(draws.labels, draws.most_masked)
        labels = draws.labels.gather(1, chosen).flatten()
        hidden = hidden.gather(1, chosen[..., None].expand(-1, -1, hidden.shape[-1])).flatten(0, 1)
        table = self.model.word_embeddings if head is self.model.text_words else self.model.cross_word_embeddings
        return losses.masked_words(head(hidden, table), labels, gather=self.gather)

    def match_pairs(
        self, batch: Batch, text: TextFeatures | None, video: VideoFeatures, visual: Float[Tensor, "b S D"]
    ) -> Tensor:
        """ℒ4: over all pairs, over mined ones, or as published over mined clips."""
        is_raw = self.config.matching_text == "raw"
        ids = batch.token_ids if is_raw else batch.masked_token_ids
        captions = self.embed_caption(ids, text if is_raw else None)
        if self.config.mining != "both_ways":
            return self.match_mined_clips(
                batch, captions, visual, self.level1_scores(batch, text, video, everywhere=True)
            )
        if self.config.num_hard_negatives is None:
            return self.match_all_pairs(batch, captions, visual)
        return self.match_hard_pairs(batch, ids, captions, visual, self.level1_scores(batch, text, video))

    def match_all_pairs(self, batch: Batch, captions: Tensor, visual: Tensor) -> Tensor:
        """ℒ4 over this rank's captions with every clip of the pool."""
        clips = self.pool(visual)
        every = torch.arange(len(clips), device=clips.device).expand(len(captions), -1)
        scores = self.match_scores(batch, captions, clips, every)
        if self.config.pairs == "gathered":
            return losses.mil_nce(self.gather(scores), self.gather(batch.weight))
        return self.mean_of_ranks(losses.mil_nce(scores, batch.weight), batch)

    def match_hard_pairs(self, batch: Batch, ids: Tensor, captions: Tensor, visual: Tensor, scores: Tensor) -> Tensor:
        """ℒ4 over each true pair of this rank, its hard negative clips and its hard negative captions of the pool,
        hard by the dual `scores` of the pool."""
        weight, clips = self.pool(batch.weight), self.pool(visual)
        count, own = self.config.num_hard_negatives, self.own_rows(len(ids))
        assert count is not None, "match_all_pairs needs no choice"
        wrong_clips, clips_usable = (rows[own] for rows in losses.hard_negatives(scores, weight, count))
        wrong_captions, captions_usable = (rows[own] for rows in losses.hard_negatives(scores.T, weight, count))
        of_captions = self.match_scores(batch, captions, clips, torch.cat([own[:, None], wrong_clips], dim=1))
        pooled_ids, pooled_mask = self.pooled_captions(ids, batch.token_mask)
        pooled = self.model.embed_caption(pooled_ids)

        def score(caption: Tensor, clip: Tensor) -> Tensor:
            return self.model.score_embedded(pooled[caption], pooled_mask[caption], clips[clip])

        negatives, usable = of_captions[:, 1:], clips_usable
        if wrong_captions.numel():  # none in a batch of one
            clip = own.repeat_interleave(wrong_captions.shape[1])
            of_clips = self.in_chunks(score, wrong_captions.flatten(), clip).view(wrong_captions.shape)
            negatives = torch.cat([negatives, of_clips], dim=1)
            usable = torch.cat([usable, captions_usable], dim=1)
        return losses.gvtm_level2(of_captions[:, 0], negatives, usable, batch.weight, gather=self.gather)

    def match_mined_clips(self, batch: Batch, captions: Tensor, visual: Tensor, scores: Tensor) -> Tensor:
        """ℒ4 over the published choice of as many clips per caption as this rank has rows (§2.3), by the dual `scores`
        of all ranks."""
        method = self.config.mining
        assert method != "both_ways", "match_hard_pairs mines both ways"
        clips, own = self.gather(visual), self.own_rows(len(captions), everywhere=True)
        is_out = self.gather(batch.weight) < 0.5
        rows = scores[own].masked_fill(is_out[None, :], losses.EXCLUDED)
        place = ((batch.weight > 0.5).long().cumsum(0) - 1).clamp(min=0)  # rows of weight 0 take no candidate away
        chosen = with_true_clip(mined_clips(rows, own, method)[:, place], own)
        matched = self.match_scores(batch, captions, clips, chosen)
        importance = easy_weights(scores[own, own], batch.weight) if self.config.reweight_easy else None
        return self.mean_of_ranks(losses.mil_nce(matched, batch.weight, importance), batch)

    def match_scores(
        self,
        batch: Batch,
        captions: Float[Tensor, "b L D"],
        clips: Float[Tensor, "P S D"],
        chosen: Int64[Tensor, "b n"],
    ) -> Float[Tensor, "b n"]:
        """The cross encoder's score of each embedded caption, raw or masked, with the embedded clips chosen for it."""

        def of_group(group: LengthGroup) -> Tensor:
            def score(caption: Tensor, clip: Tensor) -> Tensor:
                text, mask = captions[caption, : group.num_tokens], batch.token_mask[caption, : group.num_tokens]
                return self.model.score_embedded(text, mask, clips[clip])

            clip = chosen[group.rows]
            return self.in_chunks(score, group.rows.repeat_interleave(clip.shape[1]), clip.flatten()).view(clip.shape)

        return by_length(of_group, groups_of(batch))

    def mean_of_ranks(self, loss: Float[Tensor, ""], batch: Batch) -> Float[Tensor, ""]:
        """The mean of what each rank computed from its own usable rows."""
        return losses.global_mean(loss[None], batch.weight.sum()[None], self.gather)

    def tell_true_from_false(
        self, batch: Batch, draws: Draws, visual: Float[Tensor, "b S D"], fused: CrossFeatures | None
    ) -> Tensor:
        """ITM: each clip with its own caption and with a false one."""
        assert self.itm_head is not None, "ITM is built with its head"
        assert draws.false_ids is not None, "draws for ITM hold false captions"
        assert draws.false_mask is not None, "draws for ITM hold false captions"
        if self.config.matching_text == "raw" or fused is None:
            fused = self.fuse(batch, self.model.embed_caption(batch.token_ids), visual)
        false_captions = self.model.embed_caption(draws.false_ids)
        false = self.in_chunks(self.model.fuse_embedded, false_captions, draws.false_mask, visual)
        weight = batch.weight if draws.has_false is None else batch.weight * draws.has_false
        return losses.itm(self.itm_head(fused.pooled), self.itm_head(false.pooled), weight, gather=self.gather)

    def place_frames(self, batch: Batch, frames: Float[Tensor, "b T D"]) -> Tensor:
        """The clip-order task: where each frame that was moved belongs."""
        assert self.model.frame_places is not None, "refused when this was built"
        clip_ids = batch.clip_ids * (batch.weight > 0.5)
        order, labels = losses.moved_frames(clip_ids, frames.shape[1], self.gather(clip_ids).sum())
        labels = labels.masked_fill((batch.weight < 0.5)[:, None], IGNORED_LABEL)
        moved = frames.gather(1, order[..., None].expand_as(frames))
        logits = self.model.frame_places(self.in_chunks(self.model.look_over_time, moved))
        return losses.masked_words(logits.flatten(0, 1), labels.flatten(), gather=self.gather)

    @torch.no_grad()
    def draw(self, batch: Batch, text: TextFeatures | None, video: VideoFeatures) -> Draws:
        """This step's masks and false captions."""
        masked, labels, most = batch.masked_token_ids, batch.labels, batch.most_masked
        if self.config.attentive_share:
            masked, labels = self.attentive(batch, text)
        if most is None or self.config.attentive_share:
            most = labels.shape[1]
        if not self.config.itm:
            return Draws(masked_token_ids=masked, labels=labels, most_masked=most)
        weight = self.gather(batch.weight)
        if self.config.itm_negative == "hard":
            assert text is not None, "the raw caption is encoded where dual scores are needed"
            scores = dual_scores(self.gather(text.vector), self.gather(video.vectors), self.temperature)
        else:
            scores = losses.pair_noise(self.gather(batch.clip_ids * (batch.weight > 0.5)))
        own = self.own_rows(len(batch.weight), everywhere=True)
        false, has_false = own, torch.zeros_like(own, dtype=torch.bool)
        if len(weight) > 1:
            false, has_false = (rows[own, 0] for rows in losses.hard_negatives(scores.T, weight, 1))
        ids, mask = self.gathered_captions(batch.token_ids, batch.token_mask)
        return Draws(
            masked_token_ids=masked,
            labels=labels,
            most_masked=most,
            false_ids=ids[false],
            false_mask=mask[false],
            has_false=has_false,
        )

    def attentive(self, batch: Batch, text: TextFeatures | None) -> tuple[Tensor, Tensor]:
        """The batch's masks, or on `attentive_share` of the steps those drawn by attention."""
        assert text is not None, "the raw caption is encoded where its attention is needed"
        assert self.mask_id is not None, "refused when this was built"
        clip_ids, config = batch.clip_ids * (batch.weight > 0.5), self.config
        step = self.gather(clip_ids).sum()
        is_attentive = losses.hashed_uniform(step[None], step.new_zeros(1), step) < config.attentive_share
        importance = words_importance(self.model.bert, text, batch.token_mask, config.attentive_layers)
        masked, labels = attentive_masks(
            batch.token_ids,
            batch.token_mask,
            importance,
            losses.word_noise(clip_ids, batch.token_ids.shape[1], step),
            separator_id=self.model.separator_id,
            mask_id=self.mask_id,
        )
        masked = torch.where(is_attentive, masked, batch.masked_token_ids)
        return masked, torch.where(is_attentive, labels, batch.labels)

    def encode_texts(self, batch: Batch, draws: Draws | None) -> tuple[TextFeatures | None, TextFeatures | None]:
        """The text pass over the captions as they are, and over the masked ones if they are known before it; both
        together, so that the layers' weights are read once."""
        config, masked_ids = self.config, batch.masked_token_ids
        if draws:
            masked_ids = draws.masked_token_ids
        is_known = draws is not None or not config.attentive_share
        if not needs_raw_text(config):
            return None, None
        if not (config.masked_words_text and config.text_alone == "masked" and is_known):
            return self.encode_text(batch, batch.token_ids)[0], None
        raw, masked = self.encode_text(batch, batch.token_ids, masked_ids)
        return raw, masked

    def encode_text(self, batch: Batch, *versions: Int64[Tensor, "b L"]) -> list[TextFeatures]:
        """The text pass over versions of the batch's captions."""
        both = self.over_captions(self.model.encode_embedded, batch, self.model.embed_text(torch.cat(versions)))
        size = len(batch.weight)
        return [
            combined([both], lambda parts, start=start: parts[0][start : start + size])
            for start in range(0, size * len(versions), size)
        ]

    def embed_caption(self, ids: Int64[Tensor, "b L"], text: TextFeatures | None) -> Float[Tensor, "b L D"]:
        """Captions as the cross pass reads them; those that the text pass embedded, if it is the same network."""
        if text is not None and self.model.separate_cross is None:
            return text.embedded
        return self.model.embed_caption(ids)

    def fuse(self, batch: Batch, captions: Float[Tensor, "b L D"], visual: Float[Tensor, "b S D"]) -> CrossFeatures:
        """The cross pass over the batch's embedded captions, raw or masked, each with its own clip."""
        return self.over_captions(self.model.fuse_embedded, batch, captions, visual)

    def over_captions(
        self, function: Callable[..., TextOrCross], batch: Batch, captions: Float[Tensor, "vb L D"], *rows: Tensor
    ) -> TextOrCross:
        """`function(captions, mask, *rows)`, each group at its own length.

        `captions` are versions of the batch's, one below the other. They come embedded: every look into the table of
        words costs a gradient as large as the table.
        """
        num_versions, width = len(captions) // len(batch.weight), captions.shape[1]
        mask = batch.token_mask.repeat(num_versions, 1)
        if self.config.attentive_share:  # the attention of [PAD] counts there
            return self.in_chunks(function, captions, mask, *rows)

        def of_group(group: LengthGroup) -> TextOrCross:
            chosen = (tensor.index_select(0, group.rows)[:, : group.num_tokens] for tensor in (captions, mask))
            others = (tensor.index_select(0, group.rows) for tensor in rows)
            return self.in_chunks(function, *chosen, *others).widened(width)

        return by_length(of_group, groups_of(batch, num_versions))

    def in_chunks(self, function: Callable[..., Features], *rows: Tensor) -> Features:
        """`function` of `rows`, as many at a time as memory is meant for."""
        return in_chunks(function, *rows, size=self.rows_at_once)

    @property
    def weights(self) -> dict[str, float]:
        """What each loss counts in the total."""
        return self.config.weights

    @property
    def temperature(self) -> float | Float[Tensor, ""]:
        """What the cosines of GVTM level 1 are divided by."""
        if self.log_temperature is None:
            return self.config.temperature
        return self.log_temperature.exp().clamp(min=LEAST_TEMPERATURE)

    @property
    def pool(self) -> Gather:
        """The gather of GVTM level 2: all ranks' rows, or as published this rank's own."""
        return self.gather if self.config.pairs == "gathered" else local_gather

    def own_rows(self, count: int, *, everywhere: bool = False) -> Int64[Tensor, " b"]:
        """Where this rank's rows lie in the pool, or among the rows of all ranks."""
        first = self.rank * count if everywhere or self.config.pairs == "gathered" else 0
        return torch.arange(count, device=self.model.word_embeddings.device) + first

    @torch.no_grad()
    def level1_scores(
        self, batch: Batch, text: TextFeatures | None, video: VideoFeatures, *, everywhere: bool = False
    ) -> Float[Tensor, "P P"]:
        """Dual scores of the pool by which negatives are chosen; the published mining takes bare cosines."""
        assert text is not None, "the raw caption is encoded where dual scores are needed"
        config, pool = self.config, self.gather if everywhere else self.pool
        temperature = self.temperature if config.mining == "both_ways" else 1.0
        scores = dual_scores(pool(text.vector), pool(video.vectors), temperature)
        if config.negative_spread and config.mining == "both_ways":
            usable_ids = pool(batch.clip_ids * (batch.weight > 0.5))
            scores = scores / config.negative_spread + losses.pair_noise(usable_ids)
        return scores

    def pooled_captions(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask of the captions of the pool."""
        return self.gathered_captions(ids, mask) if self.config.pairs == "gathered" else (ids, mask)

    def gathered_captions(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask of every rank's captions, padded to the longest of them.

        Its length is asked of the device: one wait per step, of several ranks only.
        """
        if self.gather is local_gather:
            return ids, mask
        room = self.model.config.max_positions - ids.shape[1]
        ids = self.gather(nn.functional.pad(ids, (0, room)))
        mask = self.gather(nn.functional.pad(mask, (0, room)).to(torch.uint8)).bool()
        longest = int(mask.sum(1).max())
        return ids[:, :longest], mask[:, :longest]


def needs_raw_text(config: ObjectiveConfig) -> bool:
    """Whether a loss or a choice needs the text pass over the raw caption."""
    chooses_pairs = config.gvtm_level2 and (config.num_hard_negatives or config.mining != "both_ways")
    reads_raw = config.masked_words_text and config.text_alone == "raw"
    hard_itm = config.itm and config.itm_negative == "hard"
    return bool(config.gvtm_level1 or config.lvwm or chooses_pairs or reads_raw or hard_itm or config.attentive_share)


def needs_cross(config: ObjectiveConfig) -> bool:
    """Whether a loss needs the cross pass."""
    return bool(config.gvtm_level2 or config.masked_words_cross or config.itm)


def freeze_unreached(model: SNPS3, config: ObjectiveConfig) -> None:
    """Parts of `model` that no active loss reaches want no gradient: DDP would wait for it and refuse the next."""
    is_dual = config.gvtm_level1 or config.lvwm
    is_fused = needs_cross(config)
    is_matched = config.gvtm_level2 or config.itm
    reached: dict[nn.Module, float] = {
        model.visual: is_dual or is_fused,
        model.video_head: is_dual,
        model.text_pooler: config.gvtm_level1,
        model.cross_pooler: is_matched,
        model.similarity: config.gvtm_level2,
        model.text_words: config.masked_words_text,
        model.cross_words: config.masked_words_cross,
    }
    is_shared = model.separate_cross is None
    reached[model.bert] = is_dual or config.masked_words_text or (is_fused and is_shared)
    if model.separate_cross is not None:
        reached[model.separate_cross] = is_fused
    if model.temporal is not None and model.frame_places is not None:
        reached[model.temporal] = is_dual or is_fused or bool(config.clip_order)
        reached[model.frame_places] = config.clip_order
        reached[model.visual] = reached[model.temporal]
    if model.parts is not None:
        reached[model.parts] = is_fused
    for module, is_reached in reached.items():
        if not is_reached:
            module.requires_grad_(False)
