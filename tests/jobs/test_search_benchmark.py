"""`search-scale`: its mixture has the moments of what it is fitted to, and its truth is that of a search."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from jobs.benchmarks.search_scale import MODEL, asked, best_of_all, mixture, write_part
from jobs.inference.window_index import WindowIndex


def test_a_mixture_has_the_means_and_covariances_of_its_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.eye(6)[[0, 1]].repeat_interleave(torch.tensor([300, 100]), 0)
    spread = torch.diag(torch.tensor([0.0, 0.0, 0.06, 0.04, 0.02, 0.0]))
    rows = normalize(centers + torch.randn(400, 6, generator=generator) @ spread, dim=1)
    drawn = mixture(rows[:, None], generator)(20_000)
    assert drawn.shape == (20_000, 1, 6)
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(20_000, 1))
    for axis, share in ((0, 0.75), (1, 0.25)):
        group, of_group = drawn[drawn[:, 0, axis] > 0.5][:, 0], rows[rows[:, axis] > 0.5]
        assert len(group) / 20_000 == pytest.approx(share, abs=0.02)
        torch.testing.assert_close(group.mean(0), of_group.mean(0), atol=0.003, rtol=0)
        torch.testing.assert_close(group.T.cov(), of_group.T.cov(), atol=4e-4, rtol=0)


def test_the_truth_of_all_questions_is_that_of_each_alone(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    for part in range(3):
        vectors = normalize(torch.randn(50 + part, 2, 16, generator=generator), dim=-1)
        write_part(f"{tmp_path}/part-{part}.parquet", vectors)
    queries = normalize(torch.randn(4, 16, generator=generator), dim=-1)
    truth = best_of_all(WindowIndex.open(str(tmp_path), MODEL, 16), queries, 0.05)
    rows, facts = asked(str(tmp_path), queries, 0.05)
    assert [row.tolist() for row in rows] == truth.tolist()
    assert facts["p50_ms"] <= facts["p95_ms"]
