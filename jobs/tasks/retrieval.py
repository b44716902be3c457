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
"""Rows of a score matrix that are worked out or sorted at a time."""


Fusion = Literal["sum", "cross"]
"""What orders the clips that the cross encoder scores: both scores, standardised and added, or its own."""
ChoosePairs = Callable[[Float[np.ndarray, "Q N"]], Bool[np.ndarray, "Q N"]]
"""From the dual scores, which pairs the cross encoder scores."""


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """How retrieval is measured."""

    queries: str = "first"
    """Captions that query: the `first` of each clip, `each` of them, or all of a clip joined to a `paragraph`."""
    rerank: int | None = None
    """Clips of each text, and texts of each clip, that the cross encoder orders anew; None: all."""
    fusion: Fusion = "sum"
    prior: str = "none"
    """`dual_softmax` adds scores with the prior of all queries in columns of their own."""
    seed: int = 0
    """Of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Every usable clip of a split, encoded once, on every rank, in the order in which they were read."""

    clip_ids: Int[Tensor, " N"]
    frame_tokens: Float[Tensor, "N S D"]
    frame_vectors: Float[Tensor, "N T D"]


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Texts, encoded once, on every rank."""

    token_ids: Int[Tensor, "Q L"]
    token_mask: Bool[Tensor, "Q L"]
    vectors: Float[Tensor, "Q D"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of each text (row) with each clip (column)."""

    clip_ids: Int[np.ndarray, " N"]
    dual: Float[np.ndarray, "Q N"]
    cross: Float[np.ndarray, "Q N"]
    """NaN where the cross encoder was not asked."""

    @property
    def fused(self) -> Float[np.ndarray, "Q N"]:
        """Both standardised over the whole matrix, and added."""
        return metrics.fuse(self.dual, self.cross)


OnEncoded = Callable[[Batch, Float[Tensor, "B S D"]], None]
"""Called with each batch and the tokens of its clips, while they are there."""


@torch.no_grad()
def encode_clips(
    model: SNPS3, batches: Iterable[Batch], gather: Gather, on_encoded: Sequence[OnEncoded] = ()
) -> Gallery:
    """The clips of a split from every rank's share of each step; all ranks must have equally many steps. Rejected
    clips are left out. No batch is kept."""
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
    """The places among `count` of which this rank takes care, as many on each rank; the last one may come again."""
    share = -(-count // world.size)
    return np.arange(world.rank * share, (world.rank + 1) * share).clip(max=count - 1)


@torch.no_grad()
def encode_texts(model: SNPS3, token_ids: Int[Tensor, "Q L"], token_mask: Bool[Tensor, "Q L"], world: World) -> Queries:
    """Texts, of which each rank encodes a share."""
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
    """The dual score of all pairs, and the cross score of those that `choose` picks by them; None picks all.

    `alive` is called after each part, since all pairs of a large split take long.
    """
    model.eval()
    dual = np.empty((len(queries.vectors), len(gallery.clip_ids)), np.float32)
    for start, rows in zip(range(0, len(dual), ROWS_AT_ONCE), queries.vectors.split(ROWS_AT_ONCE), strict=True):
        dual[start : start + len(rows)] = dual_scores(rows, gallery.frame_vectors, temperature).cpu().numpy()
    chosen = choose(dual) if choose else np.ones(dual.shape, bool)
    if choose:  # ranks on unlike machines may round otherwise, and must not choose other pairs
        bits = torch.from_numpy(np.packbits(chosen))[None].to(queries.vectors.device)
        chosen = np.unpackbits(world.gather(bits)[0].cpu().numpy(), count=dual.size).reshape(dual.shape).view(bool)
    text, clip = np.nonzero(chosen)
    own = share_of(len(text), world)
    scores = world.gather(cross_scores(model, queries, gallery.frame_tokens, text[own], clip[own], alive))[: len(text)]
    cross = np.full(dual.shape, np.nan, dual.dtype)
    cross[text, clip] = scores.cpu().numpy()
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
    """The cross encoder's score of each pair of a text and a clip.

    `PAIRS_AT_ONCE` pairs at a time, texts of equal length together, each part as wide as its longest text.
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
    """True at the `k` highest of each row; of equal ones the first."""
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
    """Two-stage scores: the `k` best clips of each text by the dual score, ordered anew; the others stay behind them in
    the dual score's order. With k = all clips this is `fused`, or the cross score.

    Each score is standardised over the pairs that are ordered anew. For the other direction, transpose both matrices.
    """
    return np.concatenate(list(reranked_rows(scored, k, fusion)))


def reranked_rows(scored: Scored, k: int, fusion: Fusion = "sum") -> Iterator[Float[np.ndarray, "q N"]]:
    """Yield the rows of `reranked`, `ROWS_AT_ONCE` at a time."""
    first = highest(scored.dual, k)
    if np.isnan(scored.cross[first]).any():
        raise ValueError(f"the cross encoder was not asked about all of the first {k} clips of each text")
    dual, cross = (metrics.standardised(matrix[first]) for matrix in (scored.dual, scored.cross))
    anew = dual + cross if fusion == "sum" else scored.cross[first].astype(np.float64)
    best, num_done = scored.dual.max(), 0
    for start in range(0, len(first), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        result = scored.dual[rows].astype(np.float64)
        result -= best
        result += anew.min()
        result -= 1.0
        result[first[rows]] = anew[num_done : num_done + first[rows].sum()]
        num_done += first[rows].sum()
        yield result


def first_of_both(dual: Float[np.ndarray, "Q N"], k: int) -> Bool[np.ndarray, "Q N"]:
    """True at the `k` best clips of each text and at the `k` best texts of each clip."""
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
    """R@1/5/10, ranks and intervals in both directions: of the score that orders in the end, of the dual score, and of
    the cross score where it was asked about all pairs (`rerank` is None).

    `owners`: the clip that each text was written for, if one clip asks by several: they count as one in the interval.
    """
    results: dict[str, float] = {}
    turned = dataclasses.replace(scored, dual=scored.dual.T, cross=scored.cross.T)
    k = options.rerank or max(scored.dual.shape)
    for direction, matrices, right, units in (("t2v", scored, relevant, owners), ("v2t", turned, relevant.T, None)):
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
    """Each candidate's score counts by how much it prefers the query to all others: a prior that a single query has
    not (Cheng et al., 2021), hence in columns of its own."""
    shifted = scores - scores.max(axis=0, keepdims=True)
    return scores + shifted - np.log(np.exp(shifted).sum(axis=0, keepdims=True))


def selectable_metrics(prefix: str, rerank: int | None = None) -> list[str]:
    """Names among the results of a split that are high for a good model: every recall, without the interval's ends."""
    two = np.eye(2)
    both = Scored(clip_ids=np.arange(2), dual=two, cross=two)
    every = retrieval_results(both, two > 0, prefix, RetrievalOptions(rerank=rerank))
    names = [name for name in every if not name.endswith(("rank", "_low", "_high"))]
    return sorted([*names, f"{prefix}/{MASKED_WORDS}"])


def group_results(scored: Scored, groups: Int[np.ndarray, " N"], prefix: str) -> dict[str, float]:
    """In-group R@1 of the cross score, and of the dual one."""
    results = metrics.group_metrics(scored.cross, groups, prefix)
    return results | metrics.group_metrics(scored.dual, groups, prefix, score="dual")


def true_of(texts: Sequence[str], captions: Sequence[Sequence[str]]) -> Bool[np.ndarray, "Q N"]:
    """True where a text is a caption of a clip. `captions`: all of each clip."""
    has: dict[str, list[int]] = {}
    for column, of_clip in enumerate(captions):
        for text in of_clip:
            has.setdefault(text, []).append(column)
    relevant = np.zeros((len(texts), len(captions)), bool)
    for row, text in enumerate(texts):
        relevant[row, has[text]] = True
    return relevant


def masked_states(model: SNPS3, batch: Batch, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B L D"]:
    """Hidden states of the masked captions, after the cross pass with their clips."""
    return model.fuse(batch.masked_token_ids, batch.token_mask, tokens).text_hidden


Filled = list[tuple[int, int, list[tuple[int, float]]]]
"""Of a caption its masked positions: (position, true id, [(guessed id, probability), …])."""


@torch.no_grad()
def fill_masked_words(
    model: SNPS3, batch: Batch, tokens: Float[Tensor, "B S D"], *, num_guesses: int = 3
) -> list[Filled]:
    """What the model guesses for the masked words of each caption."""
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
    """How many masked words the cross encoder fills in right at its first guess, and how many there are."""
    positions = masked_positions(batch.labels, batch.most_masked or batch.labels.shape[1])
    labels, hidden = batch.labels.gather(1, positions), masked_states(model, batch, tokens)
    chosen = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1])).flatten(0, 1)
    guessed = model.cross_word_logits(chosen).argmax(-1).view_as(labels)
    is_masked = (labels != IGNORED_LABEL) & (batch.weight > 0.5)[:, None]
    return torch.stack([((guessed == labels) & is_masked).sum(), is_masked.sum()])


def share_right(counts: Sequence[Int[Tensor, 2]], gather: Gather) -> float:
    """The share of the masked words of all ranks that are right."""
    right, total = gather(torch.stack([*counts]).sum(0, keepdim=True)).sum(0).tolist()
    return right / max(1, total)


def save_scores(path: str, scored: Scored, *, texts: Mapping[str, Any], **arrays: np.ndarray) -> None:
    """An .npz file without pickles: scores and `arrays` as they are, `texts` as JSON."""
    buffer = io.BytesIO()
    arrays |= {"clip_ids": scored.clip_ids, "dual": scored.dual, "cross": scored.cross}
    arrays |= {name: np.array(json.dumps(value)) for name, value in texts.items()}
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    storage.write_bytes_atomic(path, buffer.getvalue())


def load_scores(path: str) -> dict[str, Any]:
    """The arrays and texts that `save_scores` wrote."""
    with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as file:
        return {
            name: json.loads(str(file[name])) if file[name].dtype.kind == "U" else file[name] for name in file.files
        }
