"""What the measurement `downstream` makes of the results of its runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs import ROOT
from jobs.benchmarks import downstream_scores
from jobs.benchmarks.downstream_scores import KEYS, SPENT, VARIANTS, compared, gap_closed
from jobs.run.fields import differences
from jobs.run.run_files import read_json, write_json


def results(score: float) -> dict[str, float]:
    keys = [key for keys in KEYS.values() for key in keys]
    return dict.fromkeys(keys, score) | dict.fromkeys(SPENT, 10.0)


def test_differences_are_paired_by_seed() -> None:
    rows = []
    for seed in range(3):
        scores = {variant: results(0.1 * seed) for variant in ("zero-shot", *VARIANTS)}
        scores |= {name: results(0.1 * seed + 0.25) for name in ("retrieval", "qa", "multiple-choice")}
        rows.append(scores)
    found = compared(rows)
    for difference in found["differences"].values():
        assert difference["seeds"] == pytest.approx([0.25] * 3)
        assert np.ptp(difference["interval"]) == pytest.approx(0)  # though the scores themselves vary
    assert np.ptp(found["scores"]["qa"]["test/accuracy"]["interval"]) > 0.1
    assert found["retrieval_gain"] == pytest.approx(0.25)
    assert found["multiple_choice"] == pytest.approx(0.35)
    assert found["seconds"]["qa"]["mean"] == 30.0


def test_the_gap_is_closed_from_the_question_to_the_ceiling() -> None:
    assert gap_closed(np.array([0.4, 0.7, 1.0]), np.array(0.4)) == pytest.approx([0.0, 0.5, 1.0])


def test_the_results_in_the_docs_are_those_of_todays_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing among them can be measured: a field that is added later has to be added to them."""
    saved = read_json(str(ROOT / downstream_scores.RESULTS))["fields"]
    write_json(path := f"{tmp_path}/corpus.json", {"content_hash": saved["pretrain.data.manifest_hash"]})
    monkeypatch.setattr(downstream_scores, "CORPUS", path)
    assert differences(saved, downstream_scores.settings()) == []
