"""Zero-shot retrieval on a split: encode each clip and caption once, score by both encoders, measure.

batches ─ encode ─ gather ─► every rank holds all features ─► dual scores of all pairs
                                                          └─► cross scores, a share of the captions per rank
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pipeline.records import IGNORED_LABEL, Batch
from pipeline.transforms import normalise
from snps3_model import metrics
from snps3_model.snps3 import SNPS3, dual_scores
from snps3_model.visual import Gather

PAIRS_AT_ONCE = 4096
"""Pairs of one cross pass during evaluation."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Every clip and caption of a split, on every rank, in the order of clip_id; rejected clips are left out."""

    clip_ids: Int[Tensor, " N"]
    frame_tokens: Float[Tensor, "N S D"]
    frame_vectors: Float[Tensor, "N T D"]
    text_vectors: Float[Tensor, "N D"]
    token_ids: Int[Tensor, "N L"]
    token_mask: Bool[Tensor, "N L"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of each caption (row) with each clip (column); column i is the clip that caption i was written for."""

    clip_ids: Int[np.ndarray, " N"]
    dual: Float[np.ndarray, "N N"]
    cross: Float[np.ndarray, "N N"]

    @property
    def fused(self) -> Float[np.ndarray, "N N"]:
        """Both standardised over the whole matrix, and added."""
        return metrics.fuse(self.dual, self.cross)


@torch.no_grad()
def encode(model: SNPS3, batches: Iterable[Batch], gather: Gather, *, max_tokens: int) -> Features:
    """The features of a split from every rank's share of each step; all ranks must have equally many steps."""
    model.eval()
    parts = []
    for batch in batches:
        video = model.encode_video(normalise(batch.frames), batch.frame_pad_mask)
        text = model.encode_text(batch.token_ids, batch.token_mask)
        room = (0, max_tokens - batch.token_ids.shape[1])
        ids, mask = F.pad(batch.token_ids, room), F.pad(batch.token_mask, room)
        columns = (batch.clip_ids, video.tokens, video.vectors, text.vector, ids, mask.long(), batch.weight)
        gathered = [gather(column) for column in columns]
        usable = gathered[-1] > 0.5
        parts.append([column[usable] for column in gathered[:-1]])
    clip_ids, tokens, vectors, texts, ids, mask = (torch.cat(column) for column in zip(*parts, strict=True))
    longest = int(mask.sum(1).max())
    return Features(
        clip_ids=clip_ids,
        frame_tokens=tokens,
        frame_vectors=vectors,
        text_vectors=texts,
        token_ids=ids[:, :longest],
        token_mask=mask[:, :longest].bool(),
    )


@torch.no_grad()
def score(
    model: SNPS3,
    features: Features,
    gather: Gather,
    *,
    rank: int,
    num_ranks: int,
    temperature: float | Float[Tensor, ""],
    groups: Int[np.ndarray, " N"] | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Scored:
    """Both scores of all pairs. With `groups` the cross score is that of pairs within a group, and 0 elsewhere.

    `alive` is called after each part, since all pairs of a large split take long.
    """
    model.eval()
    dual = dual_scores(features.text_vectors, features.frame_vectors, temperature)
    num_clips = len(features.clip_ids)
    if groups is not None:
        return Scored(
            clip_ids=features.clip_ids.cpu().numpy(),
            dual=dual.cpu().numpy(),
            cross=cross_scores_in_groups(model, features, groups).cpu().numpy(),
        )
    share = -(-num_clips // num_ranks)
    captions = torch.arange(rank * share, (rank + 1) * share, device=dual.device).clamp(max=num_clips - 1)
    cross = gather(cross_scores(model, features, captions, alive))[:num_clips]
    return Scored(clip_ids=features.clip_ids.cpu().numpy(), dual=dual.cpu().numpy(), cross=cross.cpu().numpy())


def cross_scores(
    model: SNPS3, features: Features, captions: Int[Tensor, " Q"], alive: Callable[[], None] = lambda: None
) -> Float[Tensor, "Q N"]:
    """The cross encoder's score of each of `captions` with every clip."""
    num_clips = len(features.clip_ids)
    rows_at_once = max(1, PAIRS_AT_ONCE // num_clips)
    rows = []
    for some in captions.split(rows_at_once):
        caption = some.repeat_interleave(num_clips)
        clips = features.frame_tokens.repeat(len(some), 1, 1)
        scores = model.score(features.token_ids[caption], features.token_mask[caption], clips)
        rows.append(scores.view(len(some), num_clips))
        alive()
    return torch.cat(rows)


def retrieval_results(scored: Scored, captions: Sequence[str], prefix: str) -> dict[str, float]:
    """R@1/5/10, ranks and intervals of the fused score and of both parts. Equal captions share their clips."""
    relevant = same_caption(captions)
    results: dict[str, float] = {}
    for name, matrix in (("", scored.fused), ("dual", scored.dual), ("cross", scored.cross)):
        results |= metrics.retrieval_metrics(matrix, relevant, prefix, score=name)
    return results


def selectable_metrics(prefix: str) -> list[str]:
    """Names among the results of a split that are high for a good model: every recall, without the interval's ends."""
    two = np.eye(2)
    names = retrieval_results(Scored(clip_ids=np.arange(2), dual=two, cross=two), ["a", "b"], prefix)
    return sorted(name for name in names if not name.endswith(("rank", "_low", "_high")))


def group_results(scored: Scored, groups: Int[np.ndarray, " N"], prefix: str) -> dict[str, float]:
    """In-group R@1 of the cross score, and of the dual one."""
    results = metrics.group_metrics(scored.cross, groups, prefix)
    return results | metrics.group_metrics(scored.dual, groups, prefix, score="dual")


def same_caption(captions: Sequence[str]) -> Bool[np.ndarray, "N N"]:
    """True where caption and clip belong together: the clip's own caption, or one with the same words."""
    words = np.array(captions)
    return words[:, None] == words[None, :]


def cross_scores_in_groups(model: SNPS3, features: Features, groups: Int[np.ndarray, " N"]) -> Float[Tensor, "N N"]:
    """The cross encoder's score of each caption with the clips of its own group, 0 elsewhere."""
    caption, clip = (torch.from_numpy(index) for index in np.nonzero(groups[:, None] == groups[None, :]))
    scores = torch.zeros(len(groups), len(groups), device=features.frame_tokens.device)
    for texts, clips in zip(caption.split(PAIRS_AT_ONCE), clip.split(PAIRS_AT_ONCE), strict=True):
        clip_tokens = features.frame_tokens[clips]
        scores[texts, clips] = model.score(features.token_ids[texts], features.token_mask[texts], clip_tokens)
    return scores


@torch.no_grad()
def fill_masked_words(
    model: SNPS3, batch: Batch, *, num_guesses: int = 3
) -> list[list[tuple[int, int, list[tuple[int, float]]]]]:
    """For each caption its masked positions: (position, true id, [(guessed id, probability), …])."""
    model.eval()
    video = model.encode_video(normalise(batch.frames), batch.frame_pad_mask)
    hidden = model.fuse(batch.masked_token_ids, batch.token_mask, video.tokens).text_hidden
    rows = []
    for row in range(len(batch.weight)):
        positions = (batch.labels[row] != IGNORED_LABEL).nonzero()[:, 0]
        probabilities = model.cross_words(hidden[row, positions], model.word_embeddings).softmax(-1)
        best = probabilities.topk(num_guesses, dim=-1)
        rows.append(
            [
                (int(position), int(batch.labels[row, position]), list(zip(ids.tolist(), values.tolist(), strict=True)))
                for position, ids, values in zip(positions, best.indices, best.values, strict=True)
            ]
        )
    return rows


def thumbnails(batches: Iterable[Batch]) -> UInt8[np.ndarray, "N T H W 3"]:
    """The frames of this rank's usable clips."""
    return np.concatenate([batch.frames[batch.weight > 0.5].cpu().numpy() for batch in batches])
