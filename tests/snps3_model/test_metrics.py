"""Retrieval metrics against recorded numbers, against plain loops, and on what must be chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from golden import Recording, golden

from snps3_model import metrics
from tests.scores import retrieval_metrics

CASES = ["square_small", "square_large", "captions_per_video", "many_to_many"]
NAMES = ["r1", "r5", "r10", "mean_recall", "median_rank"]
RECORDED_TOLERANCE = 1e-12
IN_BATCH_TOLERANCE = 1e-10


def ranks_of(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    return metrics.ranks(metrics.placements(scores, relevant))


@pytest.fixture(scope="module")
def recorded() -> Recording:
    return golden("retrieval_metrics")


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
@pytest.mark.parametrize("case", CASES)
def test_golden_retrieval_metrics(recorded, case, direction):
    scores, relevant = recorded[f"in/{case}/similarity"], recorded[f"in/{case}/positives_{direction}"]
    ours = retrieval_metrics(scores, relevant, "test")
    for name in NAMES:
        expected = float(recorded[f"out/{case}/{direction}_{name}"])
        assert ours[f"test/{direction}/{name}"] == pytest.approx(expected, abs=RECORDED_TOLERANCE, rel=0)


@pytest.mark.parametrize("case", ["square_small", "square_large"])
def test_golden_in_batch_metrics(recorded, case):
    scores = recorded[f"in/{case}/similarity"]
    diagonal = np.eye(len(scores), dtype=bool)
    for k in metrics.RECALL_RANKS:
        share = metrics.recall_at(k, scores, diagonal) * len(scores) / (len(scores) + 1e-10)
        assert share == pytest.approx(float(recorded[f"out/{case}/in_batch_r{k}"]), abs=IN_BATCH_TOLERANCE, rel=0)
    assert np.median(ranks_of(scores, diagonal)) == float(recorded[f"out/{case}/in_batch_median_rank"])


def average_over_orders(scores: np.ndarray, relevant: np.ndarray, k: int) -> tuple[float, float]:
    """Recall@k and rank of one query as the mean over every order of the candidates that the scores allow."""
    found, positions = [], []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            first = next(place for place, candidate in enumerate(order) if relevant[candidate])
            found.append(first < k)
            positions.append(first + 1)
    return float(np.mean(found)), float(np.mean(positions))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_ties_count_as_the_mean_over_all_orders(k):
    rng = np.random.default_rng(7)
    scores = rng.integers(0, 3, size=(20, 6)).astype(float)
    relevant = rng.random((20, 6)) < 0.4
    relevant[np.arange(20), rng.integers(0, 6, 20)] = True
    by_hand = [average_over_orders(*query, k) for query in zip(scores, relevant, strict=True)]
    placed = metrics.placements(scores, relevant)
    np.testing.assert_allclose(metrics.recalls_at(k, placed), [recall for recall, _ in by_hand], atol=1e-12)
    np.testing.assert_allclose(metrics.ranks(placed), [rank for _, rank in by_hand], atol=1e-12)


def test_a_constant_score_gets_chance():
    relevant = np.eye(40, dtype=bool)
    ours = retrieval_metrics(np.zeros((40, 40)), relevant, "test")
    for direction, k in itertools.product(["t2v", "v2t"], metrics.RECALL_RANKS):
        assert ours[f"test/{direction}/r{k}"] == pytest.approx(k / 40)
        assert ours[f"test/{direction}/r{k}_low"] == pytest.approx(k / 40)
    assert ours["test/t2v/median_rank"] == pytest.approx(20.5)


def test_the_single_functions_agree_with_the_flat_keys():
    rng = np.random.default_rng(3)
    scores, relevant = rng.normal(size=(30, 30)), np.eye(30, dtype=bool)
    ours = retrieval_metrics(scores, relevant, "validation", score="dual")
    assert ours["validation/t2v/dual_r5"] == metrics.recall_at(5, scores, relevant)
    assert ours["validation/v2t/dual_median_rank"] == np.median(ranks_of(scores.T, relevant))
    assert ours["validation/t2v/dual_mean_rank"] == ranks_of(scores, relevant).mean()
    assert ours["validation/t2v/dual_mean_recall"] == pytest.approx(
        np.mean([metrics.recall_at(k, scores, relevant) for k in (1, 5, 10)])
    )
    order = np.argsort(-scores, axis=1)
    positions = [list(row).index(query) for query, row in enumerate(order)]
    assert ranks_of(scores, relevant).mean() == np.mean(positions) + 1


def test_shuffled_captions_give_chance():
    rng = np.random.default_rng(0)
    good = np.eye(400) + 0.1 * rng.normal(size=(400, 400))
    ours = retrieval_metrics(good[rng.permutation(400)], np.eye(400, dtype=bool), "test")
    assert ours["test/t2v/r1"] < 0.02
    assert metrics.recall_at(1, good, np.eye(400, dtype=bool)) > 0.9


def test_the_interval_is_that_of_resampling_queries_one_by_one():
    rng = np.random.default_rng(5)
    scores, relevant = rng.normal(size=(200, 200)) + 2.5 * np.eye(200), np.eye(200, dtype=bool)
    ours = retrieval_metrics(scores, relevant, "test", num_resamples=4000)
    hits = metrics.recalls_at(1, metrics.placements(scores, relevant))
    means = [rng.choice(hits, size=200).mean() for _ in range(4000)]
    half_a_query = 0.5 / 200
    assert ours["test/t2v/r1_low"] == pytest.approx(np.percentile(means, 2.5), abs=3 * half_a_query)
    assert ours["test/t2v/r1_high"] == pytest.approx(np.percentile(means, 97.5), abs=3 * half_a_query)
    assert ours == retrieval_metrics(scores, relevant, "test", num_resamples=4000)
    assert ours != retrieval_metrics(scores, relevant, "test", num_resamples=4000, seed=1)


def test_in_group_recall_is_the_mean_over_the_blocks():
    rng = np.random.default_rng(11)
    groups = rng.permutation(np.repeat(np.arange(10) * 100, 4))
    scores = rng.normal(size=(40, 40)) + np.eye(40)
    by_block = []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        by_block.append(metrics.recall_at(1, scores[np.ix_(rows, rows)], np.eye(4, dtype=bool)))
    hits = metrics.group_hits(scores, groups)
    assert hits.mean() == pytest.approx(np.mean(by_block))
    flat = metrics.group_metrics(scores, groups, "temporal", score="cross")
    assert flat["temporal/t2v/cross_group_r1"] == hits.mean()
    assert flat["temporal/t2v/cross_group_r1_low"] < hits.mean() < flat["temporal/t2v/cross_group_r1_high"]
    (_, high), *_ = metrics.bootstrap_intervals(metrics.group_hits(scores.T, groups)[:, None], groups).T
    assert flat["temporal/v2t/cross_group_r1_high"] == high


def test_in_group_recall_of_a_score_blind_to_the_group_is_chance():
    groups = np.repeat(np.arange(12), 4)
    blind = (groups[:, None] == groups[None, :]).astype(float)
    assert metrics.group_hits(blind, groups).mean() == pytest.approx(0.25)


def test_fusion_does_not_depend_on_the_scale_of_either_score():
    rng = np.random.default_rng(2)
    dual, cross = rng.normal(size=(8, 9)), rng.normal(size=(8, 9))
    np.testing.assert_allclose(metrics.fuse(3 * dual + 7, 0.01 * cross - 2), metrics.fuse(dual, cross), atol=1e-9)
    fused = metrics.fuse(dual, dual)
    np.testing.assert_allclose([fused.mean(), fused.std()], [0, 2], atol=1e-12)


def test_fusion_with_a_constant_score_keeps_the_other_order():
    cross = np.random.default_rng(4).normal(size=(8, 9))
    fused = metrics.fuse(np.full((8, 9), 0.1, dtype=np.float32), cross)
    assert (np.argsort(fused, axis=1) == np.argsort(cross, axis=1)).all()


def test_what_cannot_be_ranked_is_refused():
    scores, relevant = np.zeros((3, 3)), np.eye(3, dtype=bool)
    with pytest.raises(ValueError, match="query 1 has none"):
        metrics.recall_at(1, scores, relevant & (np.arange(3) != 1)[:, None])
    with pytest.raises(ValueError, match="1 NaN"):
        metrics.recall_at(1, np.where(np.eye(3)[::-1] * np.eye(3), np.nan, scores), relevant)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        metrics.recall_at(0, scores, relevant)
    with pytest.raises(ValueError, match="at least one query"):
        metrics.recall_at(1, np.zeros((0, 3)), np.zeros((0, 3), dtype=bool))
    with pytest.raises((ValueError, TypeError)):
        metrics.fuse(np.zeros((2, 3)), np.zeros((3, 2)))
