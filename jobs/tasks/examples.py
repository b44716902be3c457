"""The clips that the report of a run shows, and their thumbnails. A fixed rule selects them, against cherry-picking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from snps3_model import metrics

NUM_TOP, NUM_QUERIES, NUM_GROUPS = 5, 5, 3
"""Numbers shown: best clips per query, queries, temporal groups."""
NUM_FIRST = 32
"""Most clips of the first batch whose captions are shown with predictions of masked words."""
MAX_FRAMES, MAX_HEIGHT_PX = 6, 96
"""Limits of a filmstrip."""


def evenly(indices: Int[np.ndarray, " N"], count: int) -> list[int]:
    """Choose at most `count` of `indices`, evenly spaced from the first to the last."""
    if len(indices) == 0:
        return []
    places = np.unique(np.linspace(0, len(indices) - 1, count).round().astype(int))
    return [int(indices[place]) for place in places]


def shown_queries(
    scores: Float[np.ndarray, "Q C"], relevant: Bool[np.ndarray, "Q C"]
) -> list[tuple[int, float, list[tuple[int, float]]]]:
    """Return (query, its rank, its best clips with their places) of some queries, from the best to the worst rank. The
    right clip is appended if it is not among the best."""
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
    """Return (number of right clips, clips) of some temporal groups, from the best to the worst."""
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
    """Return the columns of all clips that a report shows, with the first `num_filled` for their masked words."""
    if groups is not None:
        shown = {int(row) for _, rows in shown_groups(scores, groups) for row in rows}
    else:
        shown = {clip for _, _, clips in shown_queries(scores, relevant) for clip, _ in clips}
    return sorted(shown | set(range(min(num_filled, scores.shape[1]))))


def thumbnails(frames: UInt8[Tensor, "B T H W 3"]) -> UInt8[np.ndarray, "B t h w 3"]:
    """Return at most `MAX_FRAMES` frames of each clip, at most `MAX_HEIGHT_PX` high, on the host."""
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
    """Return the thumbnails of these columns. `known`: clip id → thumbnails, of each rank."""
    merged = {clip_id: picture for of_rank in known for clip_id, picture in of_rank.items()}
    return np.stack([merged[int(clip_ids[column])] for column in columns])
