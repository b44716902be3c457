"""Retrieval metrics from a score matrix. Pure, numpy only.

    scores (Q, C), relevant (Q, C) ──placements──► per query: wrong candidates above, tied right, tied wrong
                                                      │ recalls_at, ranks       (one number per query)
                                                      └ direction_metrics       (means and their bootstrap intervals)

Ties. A query's rank is that of its best right candidate. Candidates that tie with it count as randomly ordered, and
every metric is the expected value over that order: a scorer that gives all candidates the same score gets exactly
chance, neither 1 nor 0. Without ties this is the usual definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

RECALL_RANKS = (1, 5, 10)
"""The k of the reported recalls; their mean is the mean recall."""
QUERIES_AT_ONCE = 256
"""Rows of a score matrix that are compared at once."""


@dataclass(frozen=True, kw_only=True)
class Placements:
    """The position of each query's best right candidate, as counts."""

    num_above: Int[np.ndarray, " Q"]
    """Candidates with a higher score; all of them are wrong."""
    num_tied_right: Int[np.ndarray, " Q"]
    """Right candidates with that score: at least 1, the best one itself."""
    num_tied_wrong: Int[np.ndarray, " Q"]
    """Wrong candidates with that score."""


def placements(scores: Float[np.ndarray, "Q C"], relevant: Bool[np.ndarray, "Q C"]) -> Placements:
    """Return the position of each query's best right candidate; `relevant` marks the right ones.

    Raise ValueError for a query without a right candidate and for NaN scores.
    """
    starts = range(0, len(scores), QUERIES_AT_ONCE)
    return placements_of((scores[i : i + QUERIES_AT_ONCE] for i in starts), relevant)


def placements_of(blocks: Iterable[Float[np.ndarray, "q C"]], relevant: Bool[np.ndarray, "Q C"]) -> Placements:
    """Return `placements` of scores that arrive in blocks of rows, so that memory never holds the whole matrix."""
    if relevant.size == 0:
        raise ValueError(f"scores must hold at least one query and one candidate, got shape {relevant.shape}")
    if not relevant.any(axis=1).all():
        query = int(np.flatnonzero(~relevant.any(axis=1))[0])
        raise ValueError(f"every query needs at least one right candidate, query {query} has none; leave it out")
    counts, start = [], 0
    for scores in blocks:
        if np.isnan(scores.max()):
            raise ValueError(
                f"scores must be numbers, got {int(np.isnan(scores).sum())} NaN; look at the loss of this model"
            )
        counts.append(_counts(scores, relevant[start : start + len(scores)]))
        start += len(scores)
    return Placements(**{name: np.concatenate([part[name] for part in counts]) for name in counts[0]})


def _counts(scores: Float[np.ndarray, "Q C"], relevant: Bool[np.ndarray, "Q C"]) -> dict[str, Int[np.ndarray, " Q"]]:
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    tied = scores == best
    return {
        "num_above": (scores > best).sum(axis=1),
        "num_tied_right": (tied & relevant).sum(axis=1),
        "num_tied_wrong": (tied & ~relevant).sum(axis=1),
    }


def recalls_at(k: int, placed: Placements) -> Float[np.ndarray, " Q"]:
    """Return per query the probability that a right candidate is among the first `k`: 0 or 1 without ties.

    `k - num_above` of the tied candidates are drawn without replacement; the query misses if all of them are wrong.
    """
    if k < 1:
        raise ValueError(f"k of recall@k must be at least 1, got {k}")
    num_tied = placed.num_tied_right + placed.num_tied_wrong
    num_drawn = np.clip(k - placed.num_above, 0, num_tied)
    miss = np.ones(len(num_tied))
    for drawn in range(int(num_drawn.max())):
        still_wrong = np.maximum(placed.num_tied_wrong - drawn, 0) / np.maximum(num_tied - drawn, 1)
        miss *= np.where(drawn < num_drawn, still_wrong, 1.0)
    return 1.0 - miss


def ranks(placed: Placements) -> Float[np.ndarray, " Q"]:
    """Return the expected rank of the best right candidate per query, counted from 1.

    If w wrong candidates are shuffled with r right ones, on average w / (r + 1) of them precede the first right one.
    """
    return placed.num_above + placed.num_tied_wrong / (placed.num_tied_right + 1) + 1.0


def recall_at(k: int, scores: Float[np.ndarray, "Q C"], relevant: Bool[np.ndarray, "Q C"]) -> float:
    """Return the share of queries with a right candidate among the first `k`, in [0, 1]."""
    return float(recalls_at(k, placements(scores, relevant)).mean())


def bootstrap_intervals(
    values: Float[np.ndarray, "n metrics"],
    units: Int[np.ndarray, " n"] | None = None,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, "2 metrics"]:
    """Return the low and high ends of the 95 % percentile interval of each column's mean.

    Rows with the same number in `units` depend on each other and are resampled together; None: each row alone.
    """
    _, member = np.unique(np.arange(len(values)) if units is None else units, return_inverse=True)
    sizes = np.bincount(member)
    totals = np.zeros((len(sizes), values.shape[1]))
    np.add.at(totals, member, values)
    shares = np.full(len(sizes), 1 / len(sizes))
    drawn = np.random.default_rng(seed).multinomial(len(sizes), shares, size=num_resamples)
    means = (drawn @ totals) / (drawn @ sizes.astype(float))[:, None]
    return np.percentile(means, [2.5, 97.5], axis=0)


def with_intervals(
    columns: Mapping[str, Float[np.ndarray, " n"]], units: Int[np.ndarray, " n"] | None = None, **bootstrap: int
) -> dict[str, float]:
    """Return the mean of each column under its name, with the ends of its interval as `_low` and `_high`."""
    values = np.stack(list(columns.values()), axis=1)
    bounds = bootstrap_intervals(values, units, **bootstrap)
    results = {}
    for name, mean, low, high in zip(columns, values.mean(axis=0), *bounds, strict=True):
        results |= {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}
    return results


def direction_metrics(
    scores: Float[np.ndarray, "Q C"],
    relevant: Bool[np.ndarray, "Q C"],
    prefix: str,
    *,
    units: Int[np.ndarray, " Q"] | None = None,
    **bootstrap: int,
) -> dict[str, float]:
    """Return `{prefix}r1`, `r5`, `r10`, `mean_recall`, each with `_low` and `_high`, `median_rank` and `mean_rank`; the
    rows of `scores` are queries."""
    return placed_metrics(placements(scores, relevant), prefix, units=units, **bootstrap)


def placed_metrics(
    placed: Placements, prefix: str, *, units: Int[np.ndarray, " Q"] | None = None, **bootstrap: int
) -> dict[str, float]:
    """Return `direction_metrics` of placements."""
    recalls = {f"{prefix}r{k}": recalls_at(k, placed) for k in RECALL_RANKS}
    recalls[f"{prefix}mean_recall"] = np.mean(list(recalls.values()), axis=0)
    expected = ranks(placed)
    middles = {f"{prefix}median_rank": float(np.median(expected)), f"{prefix}mean_rank": float(expected.mean())}
    return with_intervals(recalls, units, **bootstrap) | middles


def both_directions(
    scores: Float[np.ndarray, "texts clips"], prefix: str, score: str
) -> dict[str, Float[np.ndarray, "Q C"]]:
    """Return per direction the prefix of its keys and the matrix whose rows are its queries: texts for t2v, clips for
    v2t."""
    name = f"{score}_" if score else ""
    return {f"{prefix}/t2v/{name}": scores, f"{prefix}/v2t/{name}": scores.T}


def group_hits(scores: Float[np.ndarray, "N N"], groups: Int[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Return R@1 of each query among the candidates of its own group. Query i belongs to candidate i; chance is one
    over the size of a group."""
    in_group = np.where(groups[:, None] == groups[None, :], scores, -np.inf)
    return recalls_at(1, placements(in_group, np.eye(len(scores), dtype=bool)))


def group_metrics(
    scores: Float[np.ndarray, "texts clips"], groups: Int[np.ndarray, " texts"], prefix: str, score: str = ""
) -> dict[str, float]:
    """Return in-group R@1 in both directions: `temporal/t2v/group_r1`, `_low`, `_high` for prefix `temporal`.

    The bootstrap resamples groups, since the clips of a group depend on each other.
    """
    results = {}
    for start, matrix in both_directions(scores, prefix, score).items():
        results |= with_intervals({f"{start}group_r1": group_hits(matrix, groups)}, groups)
    return results


def fuse(dual: Float[np.ndarray, "Q C"], cross: Float[np.ndarray, "Q C"]) -> Float[np.ndarray, "Q C"]:
    """Return the fused score: the sum of both, each standardised over the whole matrix (mean 0, standard deviation 1).

    No weight is tuned. Standardising the whole matrix, not each row, keeps each score's order of the texts for a clip
    as well as that of the clips for a text. A constant score adds nothing.
    """
    if dual.shape != cross.shape:
        raise ValueError(f"both scores must rank the same pairs, got shapes {dual.shape} and {cross.shape}")
    return standardised(dual) + standardised(cross)


def standardised(scores: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """Return `scores` with mean 0 and standard deviation 1 over all entries, in float64; zeros if all are equal."""
    values = scores.astype(np.float64)
    if values.min() == values.max():
        return np.zeros_like(values)
    return (values - values.mean()) / values.std()
