"""Retrieval on a split: encode each clip and text once, score by both encoders, measure.

clips, texts ─ encode ─ gather ─► dual scores of all pairs ─ chosen ─► cross scores, a share of the pairs per rank
                                                       └── reranked ◄──┘   (the first k; k = all: exhaustive)
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cluster.world import World
from pipeline import storage
from pipeline.records import IGNORED_LABEL, Batch
from pipeline.stream.transforms import normalise
from snps3_model import metrics
from snps3_model.draws import masked_positions
from snps3_model.gather import Gather
from snps3_model.snps3 import SNPS3, dual_scores

MASKED_WORDS = "masked_word_accuracy"
PAIRS_AT_ONCE, TEXTS_AT_ONCE = 4096, 1024
"""Pairs of one cross pass, and texts of one text pass, during evaluation."""
ROWS_AT_ONCE = 256
"""Rows of a score matrix that are computed or sorted at a time."""


Fusion = Literal["sum", "cross"]
"""Score that orders the reranked clips: the sum of both standardised scores, or the cross encoder's score alone."""
ChoosePairs = Callable[[Float[np.ndarray, "Q N"]], Bool[np.ndarray, "Q N"]]
"""Maps the dual scores to a mask of the pairs that the cross encoder scores."""


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """How retrieval is evaluated."""

    queries: str = "first"
    """Query texts: the `first` caption of each clip, `each` caption, or all of a clip joined to a `paragraph`."""
    rerank: int | None = None
    """Clips of each text, and texts of each clip, that the cross encoder reranks; None: all."""
    fusion: Fusion = "sum"
    prior: str = "none"
    """`dual_softmax` adds separate metrics of scores with a prior over all queries."""
    seed: int = 0
    """Seed of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """All usable clips of a split, encoded, on every rank, in the order of reading."""

    clip_ids: Int[Tensor, " N"]
    frame_tokens: Float[Tensor, "N S D"]
    frame_vectors: Float[Tensor, "N T D"]


@dataclass(frozen=True, kw_only=True)
class Queries:
    """All query texts, encoded, on every rank."""

    token_ids: Int[Tensor, "Q L"]
    token_mask: Bool[Tensor, "Q L"]
    vectors: Float[Tensor, "Q D"]

    def row(self, i: int) -> Queries:
        """Return the query `i` alone."""
        parts = (self.token_ids, self.token_mask, self.vectors)
        ids, mask, vectors = (part[i : i + 1] for part in parts)
        return Queries(token_ids=ids, token_mask=mask, vectors=vectors)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of each text (row) with each clip (column)."""

    clip_ids: Int[np.ndarray, " N"]
    dual: Float[np.ndarray, "Q N"]
    cross: Float[np.ndarray, "Q N"]
    """NaN for pairs that the cross encoder did not score."""

    @property
    def fused(self) -> Float[np.ndarray, "Q N"]:
        """Return the sum of both scores, each standardised over the whole matrix."""
        return metrics.fuse(self.dual, self.cross)


OnEncoded = Callable[[Batch, Float[Tensor, "B S D"]], None]
"""Called with each batch and the tokens of its clips, before the batch is dropped."""


@torch.no_grad()
def encode_clips(
    model: SNPS3, batches: Iterable[Batch], gather: Gather, on_encoded: Sequence[OnEncoded] = ()
) -> Gallery:
    """Encode the clips of a split and gather them on all ranks, without rejected clips. All ranks must have the same
    number of batches. No batch is kept."""
    model.eval()
    parts = []
    for batch in batches:
        video = model.encode_video(normalise(batch.frames), batch.frame_pad_mask)
        for call in on_encoded:
            call(batch, video.tokens)
        parts.append([gather(column) for column in (batch.clip_ids, video.tokens, video.vectors, batch.weight)])
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    usable = (columns[-1] > 0.5).nonzero()[:, 0] if columns else ()  # the host waits here, once
    if not len(usable):
        raise ValueError("none of the clips could be decoded: there is nothing to score")
    clip_ids, tokens, vectors = (column[usable] for column in columns[:-1])
    return Gallery(clip_ids=clip_ids, frame_tokens=tokens, frame_vectors=vectors)


def share_of(count: int, world: World) -> Int[np.ndarray, " n"]:
    """Return the indices below `count` of this rank's share. All ranks have equally many; the last index may repeat."""
    share = -(-count // world.size)
    return np.arange(world.rank * share, (world.rank + 1) * share).clip(max=count - 1)


@torch.no_grad()
def encode_texts(model: SNPS3, token_ids: Int[Tensor, "Q L"], token_mask: Bool[Tensor, "Q L"], world: World) -> Queries:
    """Encode texts, a share on each rank, and gather them."""
    model.eval()
    rows = torch.from_numpy(share_of(len(token_ids), world)).to(token_ids.device)
    parts = [model.encode_text(token_ids[part], token_mask[part]).vector for part in rows.split(TEXTS_AT_ONCE)]
    vectors = world.gather(torch.cat(parts))[: len(token_ids)]
    return Queries(token_ids=token_ids, token_mask=token_mask, vectors=vectors)


@torch.no_grad()
def score(
    model: SNPS3,
    queries: Queries,
    gallery: Gallery,
    world: World,
    *,
    temperature: float | Float[Tensor, ""],
    choose: ChoosePairs | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Scored:
    """Return the dual score of all pairs, and the cross score of the pairs that `choose` selects (None: all).

    `alive` is called after each part, because scoring all pairs of a large split takes long.
    """
    model.eval()
    dual = np.empty((len(queries.vectors), len(gallery.clip_ids)), np.float32)
    for start, rows in zip(range(0, len(dual), ROWS_AT_ONCE), queries.vectors.split(ROWS_AT_ONCE), strict=True):
        dual[start : start + len(rows)] = dual_scores(rows, gallery.frame_vectors, temperature).cpu().numpy()
    chosen = choose(dual) if choose else np.ones(dual.shape, bool)
    if choose:  # ranks take the choice of the first: machines may round differently, but all must score the same pairs
        bits = torch.from_numpy(np.packbits(chosen))[None].to(queries.vectors.device)
        chosen = np.unpackbits(world.gather(bits)[0].cpu().numpy(), count=dual.size).reshape(dual.shape).view(bool)
    text, clip = np.nonzero(chosen)
    part = share_of(len(text), world)
    flat = world.gather(cross_scores(model, queries, gallery.frame_tokens, text[part], clip[part], alive))[: len(text)]
    cross = np.full(dual.shape, np.nan, dual.dtype)
    cross[text, clip] = flat.cpu().numpy()
    return Scored(clip_ids=gallery.clip_ids.cpu().numpy(), dual=dual, cross=cross)


@torch.no_grad()
def cross_scores(
    model: SNPS3,
    queries: Queries,
    frame_tokens: Float[Tensor, "N S D"],
    text: Int[np.ndarray, " P"],
    clip: Int[np.ndarray, " P"],
    alive: Callable[[], None] = lambda: None,
) -> Float[Tensor, " P"]:
    """Return the cross encoder's score of each pair of a text and a clip.

    Process `PAIRS_AT_ONCE` pairs at a time, sorted by the length of the text, each part padded to its longest text.
    """
    device, parts = frame_tokens.device, []
    lengths = queries.token_mask.sum(1).cpu().numpy()
    order = np.argsort(lengths[text], kind="stable")
    for start in range(0, len(text), PAIRS_AT_ONCE):
        pairs = order[start : start + PAIRS_AT_ONCE]
        texts, clips = text[pairs], clip[pairs]
        width, rows = int(lengths[texts].max()), torch.from_numpy(texts).to(device)
        ids, mask = queries.token_ids[rows, :width], queries.token_mask[rows, :width]
        parts.append(model.score(ids, mask, frame_tokens[torch.from_numpy(clips).to(device)]).float())
        alive()
    return torch.cat(parts)[torch.from_numpy(np.argsort(order, kind="stable")).to(device)]


def highest(scores: Float[np.ndarray, "Q N"], k: int) -> Bool[np.ndarray, "Q N"]:
    """Return a mask of the `k` highest scores of each row; among ties, the first."""
    if k >= scores.shape[1]:
        return np.ones(scores.shape, bool)
    chosen = np.empty(scores.shape, bool)
    for start in range(0, len(scores), ROWS_AT_ONCE):
        rows = scores[start : start + ROWS_AT_ONCE]
        least = np.partition(rows, -k, axis=1)[:, -k, None]
        above, tied = rows > least, rows == least
        is_among_first = tied.cumsum(axis=1) <= k - above.sum(axis=1, keepdims=True)
        chosen[start : start + ROWS_AT_ONCE] = above | (tied & is_among_first)
    return chosen


def reranked(scored: Scored, k: int, fusion: Fusion = "sum") -> Float[np.ndarray, "Q N"]:
    """Return two-stage scores: the `k` best clips of each text by the dual score are reranked; the others follow in the
    dual score's order. With k = all clips, this is `fused`, or the cross score.

    Each score is standardised over the reranked pairs. For the other direction, transpose both matrices.
    """
    return np.concatenate(list(reranked_rows(scored, k, fusion)))


def reranked_rows(scored: Scored, k: int, fusion: Fusion = "sum") -> Iterator[Float[np.ndarray, "q N"]]:
    """Yield the rows of `reranked`, `ROWS_AT_ONCE` at a time."""
    first = highest(scored.dual, k)
    if np.isnan(scored.cross[first]).any():
        raise ValueError(f"the cross encoder was not asked about all of the first {k} clips of each text")
    dual, cross = (metrics.standardised(matrix[first]) for matrix in (scored.dual, scored.cross))
    final = dual + cross if fusion == "sum" else scored.cross[first].astype(np.float64)
    best, num_done = scored.dual.max(), 0
    for start in range(0, len(first), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        result = scored.dual[rows].astype(np.float64)
        result -= best  # with the next two lines: below every reranked pair
        result += final.min()
        result -= 1.0
        result[first[rows]] = final[num_done : num_done + first[rows].sum()]
        num_done += first[rows].sum()
        yield result


def first_of_both(dual: Float[np.ndarray, "Q N"], k: int) -> Bool[np.ndarray, "Q N"]:
    """Return a mask of the `k` best clips of each text and the `k` best texts of each clip."""
    chosen = highest(dual, k)
    chosen |= highest(dual.T, k).T
    return chosen


def retrieval_results(
    scored: Scored,
    relevant: Bool[np.ndarray, "Q N"],
    prefix: str,
    options: RetrievalOptions,
    owners: Int[np.ndarray, " Q"] | None = None,
) -> dict[str, float]:
    """Return R@1/5/10, ranks and intervals in both directions: of the final score, of the dual score, and of the cross
    score if it covers all pairs (`rerank` is None).

    `owners`: the clip of each text, if clips can have several: the bootstrap then draws clips, not texts.
    """
    results: dict[str, float] = {}
    flipped = dataclasses.replace(scored, dual=scored.dual.T, cross=scored.cross.T)
    k = options.rerank or max(scored.dual.shape)
    for direction, matrices, right, units in (("t2v", scored, relevant, owners), ("v2t", flipped, relevant.T, None)):
        rows = reranked_rows(matrices, k, options.fusion)
        placed = {"": metrics.placements_of(rows, right), "dual_": metrics.placements(matrices.dual, right)}
        if options.rerank is None:
            placed["cross_"] = metrics.placements(matrices.cross, right)
        if options.prior == "dual_softmax":
            normalised = dual_softmax(reranked(matrices, k, options.fusion))
            placed["dual_softmax_"] = metrics.placements(normalised, right)
        for name, of_name in placed.items():
            key = f"{prefix}/{direction}/{name}"
            results |= metrics.placed_metrics(of_name, key, seed=options.seed, units=units)
    return results


def dual_softmax(scores: Float[np.ndarray, "Q N"]) -> Float[np.ndarray, "Q N"]:
    """Add to each score its log-softmax over all queries of the candidate (Cheng et al., 2021). A single query has no
    such prior, so these metrics are reported separately."""
    shifted = scores - scores.max(axis=0, keepdims=True)
    return scores + shifted - np.log(np.exp(shifted).sum(axis=0, keepdims=True))


def selectable_metrics(prefix: str, rerank: int | None = None) -> list[str]:
    """Return the higher-is-better metrics of a split: all recalls, without bounds of intervals, and masked words."""
    two = np.eye(2)
    both = Scored(clip_ids=np.arange(2), dual=two, cross=two)
    results = retrieval_results(both, two > 0, prefix, RetrievalOptions(rerank=rerank))
    names = [name for name in results if not name.endswith(("rank", "_low", "_high"))]
    return sorted([*names, f"{prefix}/{MASKED_WORDS}"])


def group_results(scored: Scored, groups: Int[np.ndarray, " N"], prefix: str) -> dict[str, float]:
    """Return the in-group R@1 of the cross score and of the dual score."""
    results = metrics.group_metrics(scored.cross, groups, prefix)
    return results | metrics.group_metrics(scored.dual, groups, prefix, score="dual")


def true_of(texts: Sequence[str], captions: Sequence[Sequence[str]]) -> Bool[np.ndarray, "Q N"]:
    """Return a mask of the pairs whose text is a caption of the clip. `captions`: all captions of each clip."""
    columns: dict[str, list[int]] = {}
    for column, of_clip in enumerate(captions):
        for text in of_clip:
            columns.setdefault(text, []).append(column)
    relevant = np.zeros((len(texts), len(captions)), bool)
    for row, text in enumerate(texts):
        relevant[row, columns[text]] = True
    return relevant


def masked_states(model: SNPS3, batch: Batch, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B L D"]:
    """Return the hidden states of the masked captions after the cross pass with their clips."""
    return model.fuse(batch.masked_token_ids, batch.token_mask, tokens).text_hidden


Filled = list[tuple[int, int, list[tuple[int, float]]]]
"""The masked positions of a caption: (position, true id, [(guessed id, probability), …])."""


@torch.no_grad()
def fill_masked_words(
    model: SNPS3, batch: Batch, tokens: Float[Tensor, "B S D"], *, num_guesses: int = 3
) -> list[Filled]:
    """Return the model's best guesses for the masked words of each caption."""
    rows = []
    for hidden, labels in zip(masked_states(model, batch, tokens), batch.labels, strict=True):
        positions = (labels != IGNORED_LABEL).nonzero()[:, 0]
        probabilities = model.cross_word_logits(hidden[positions]).softmax(-1)
        best = probabilities.topk(num_guesses, dim=-1)
        guesses = [
            list(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        rows.append(list(zip(positions.tolist(), labels[positions].tolist(), guesses, strict=True)))
    return rows


@torch.no_grad()
def masked_words_right(model: SNPS3, batch: Batch, tokens: Float[Tensor, "B S D"]) -> Int[Tensor, 2]:
    """Return (number of masked words whose first guess by the cross encoder is right, number of masked words)."""
    positions = masked_positions(batch.labels, batch.max_masked or batch.labels.shape[1])
    labels, hidden = batch.labels.gather(1, positions), masked_states(model, batch, tokens)
    chosen = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1])).flatten(0, 1)
    guessed = model.cross_word_logits(chosen).argmax(-1).view_as(labels)
    is_masked = (labels != IGNORED_LABEL) & (batch.weight > 0.5)[:, None]
    return torch.stack([((guessed == labels) & is_masked).sum(), is_masked.sum()])


def share_right(counts: Sequence[Int[Tensor, 2]], gather: Gather) -> float:
    """Return the share of right guesses among the masked words of all ranks."""
    right, total = gather(torch.stack([*counts]).sum(0, keepdim=True)).sum(0).tolist()
    return right / max(1, total)


def save_scores(path: str, scored: Scored, *, texts: Mapping[str, Any], **arrays: np.ndarray) -> None:
    """Write an .npz file without pickles: scores and `arrays` as they are, `texts` as JSON."""
    buffer = io.BytesIO()
    arrays |= {"clip_ids": scored.clip_ids, "dual": scored.dual, "cross": scored.cross}
    arrays |= {name: np.array(json.dumps(value)) for name, value in texts.items()}
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    storage.write_bytes_atomic(path, buffer.getvalue())


def load_scores(path: str) -> dict[str, Any]:
    """Return the arrays and texts of a file of `save_scores`."""
    with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as file:
        return {
            name: json.loads(str(file[name])) if file[name].dtype.kind == "U" else file[name] for name in file.files
        }
