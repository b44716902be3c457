"""Metrics of retrieval in both directions of one score matrix, as a run reports them of several."""

from __future__ import annotations

from typing import Any

import numpy as np

from snps3_model.metrics import both_directions, direction_metrics


def retrieval_metrics(
    scores: np.ndarray, relevant: np.ndarray, prefix: str, *, score: str = "", **options: Any
) -> dict[str, float]:
    """Of the prefix `test` the keys `test/t2v/r1`, `test/v2t/median_rank`, …; with a `score` `test/t2v/dual_r1`."""
    result: dict[str, float] = {}
    for key, matrix in both_directions(scores, prefix, score).items():
        result |= direction_metrics(matrix, relevant if matrix is scores else relevant.T, key, **options)
    return result
