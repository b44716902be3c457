"""Which clips the report of a run shows, and their pictures: a rule, so that nobody picks the pretty ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from snps3_model import metrics

NUM_TOP, NUM_QUERIES, NUM_GROUPS = 5, 5, 3
"""Best clips of each query, queries and temporal groups that are shown."""
NUM_FIRST = 32
"""Clips of the first batch whose captions may be shown with filled-in words."""
MAX_FRAMES, MAX_HEIGHT_PX = 6, 96
"""Of a filmstrip."""


def evenly(indices: Int[np.ndarray, " N"], count: int) -> list[int]:
    """Choose at most `count` of `indices`, evenly spaced from the first to the last."""
    if len(indices) == 0:
        return []
    places = np.unique(np.linspace(0, len(indices) - 1, count).round().astype(int))
    return [int(indices[place]) for place in places]


def shown_queries(
    scores: Float[np.ndarray, "Q C"], relevant: Bool[np.ndarray, "Q C"]
) -> list[tuple[int, float, list[tuple[int, float]]]]:
    """Return queries from the best answered to the worst: each with its rank, and its best clips with their places; the
    right clip comes last if it is not among them."""
    ranks = metrics.ranks(metrics.placements(scores, relevant))
    order = np.argsort(-scores, axis=1, kind="stable")
    queries = []
    for query in evenly(np.argsort(ranks, kind="stable"), NUM_QUERIES):
        clips = [(int(clip), float(place)) for place, clip in enumerate(order[query, :NUM_TOP], start=1)]
        if not relevant[query, [clip for clip, _ in clips]].any():
            right = next(int(clip) for clip in order[query] if relevant[query, clip])
            clips.append((right, float(ranks[query])))
        queries.append((query, float(ranks[query]), clips))
    return queries


def shown_groups(
    scores: Float[np.ndarray, "N N"], groups: Int[np.ndarray, " N"]
) -> list[tuple[int, Int[np.ndarray, " n"]]]:
    """Return temporal groups from the best to the worst answered: how many are right, and their clips."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    num_right = [int((scores[np.ix_(rows, rows)].argmax(axis=1) == np.arange(len(rows))).sum()) for rows in members]
    best_first = np.argsort(-np.asarray(num_right), kind="stable")
    return [(num_right[group], members[group]) for group in evenly(best_first, NUM_GROUPS)]


def shown_clips(
    scores: Float[np.ndarray, "Q C"],
    relevant: Bool[np.ndarray, "Q C"],
    groups: Int[np.ndarray, " C"] | None,
    num_filled: int,
) -> list[int]:
    """Return the columns of all clips that a report shows, `num_filled` of them for their filled-in words."""
    if groups is not None:
        shown = {int(row) for _, rows in shown_groups(scores, groups) for row in rows}
    else:
        shown = {clip for _, _, clips in shown_queries(scores, relevant) for clip, _ in clips}
    return sorted(shown | set(range(min(num_filled, scores.shape[1]))))


def thumbnails(frames: UInt8[Tensor, "B T H W 3"]) -> UInt8[np.ndarray, "B t h w 3"]:
    """Return a few frames of each clip at most `MAX_HEIGHT_PX` high, on the host."""
    chosen = np.unique(np.linspace(0, frames.shape[1] - 1, MAX_FRAMES).round().astype(int)).tolist()
    frames, height = frames[:, chosen], frames.shape[2]
    if height > MAX_HEIGHT_PX:
        size = (MAX_HEIGHT_PX, max(1, round(frames.shape[3] * MAX_HEIGHT_PX / height)))
        small = F.interpolate(frames.flatten(0, 1).permute(0, 3, 1, 2).float(), size, mode="area").round()
        frames = small.to(frames.dtype).permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])
    return frames.cpu().numpy()


def pictures_of(
    columns: Sequence[int], clip_ids: Int[np.ndarray, " C"], known: Sequence[Mapping[int, np.ndarray]]
) -> UInt8[np.ndarray, "n t h w 3"]:
    """Return the pictures of these columns, which the ranks know by the id of the clip."""
    merged = {clip_id: picture for of_rank in known for clip_id, picture in of_rank.items()}
    return np.stack([merged[int(clip_ids[column])] for column in columns])
