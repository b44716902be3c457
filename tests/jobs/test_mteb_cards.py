"""Cards of mteb's scores, without mteb: what they refuse, what they say, and in which table they stand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from jobs import evaluate
from jobs.evaluation import mteb_cards
from jobs.evaluation.leaderboard import TableConfig, table
from jobs.evaluation.mteb_cards import MtebCard
from jobs.evaluation.scoring import EvaluateConfig
from jobs.inference.mteb_evaluation import evaluate_with_mteb

SCORES = {"recall_at_1": 0.25, "recall_at_5": 0.5, "recall_at_10": 0.75, "ndcg_at_10": 0.4}


def mteb_card(num_videos: int = 879, num_trained_on: int | None = None) -> MtebCard:
    return MtebCard(
        task="MSRVTTT2V",
        direction="t2v",
        split="test",
        mteb="2.26.24",
        dataset="mteb/MSR-VTT",
        dataset_revision="4661603cee25c1fd370e5478a2953203cf37155b",
        run="runs/x",
        weights="w",
        run_seed=0,
        num_frames=4,
        frame_size_px=48,
        num_queries=num_videos,
        num_videos=num_videos,
        num_texts=num_videos,
        num_trained_on=num_trained_on,
        num_selected_on=num_trained_on,
        main_score="ndcg_at_10",
        scores=SCORES,
        date="2026-01-01",
        hardware="",
        commit="",
    )


def test_a_card_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = mteb_cards.write_card(mteb_card(), str(tmp_path / "evaluation"))
    assert mteb_cards.read_cards(str(tmp_path)) == [mteb_card()]
    Path(path).write_text('{"task": "MSRVTTT2V"}')
    with pytest.raises(ValueError, match="is no card of mteb"):
        mteb_cards.read_cards(str(tmp_path))


def test_879_rows_are_not_the_1000_clips_of_the_published_table(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    mteb_cards.write_card(mteb_card(), str(tmp_path / "evaluation"))
    text = table(TableConfig(runs=(str(tmp_path),)))
    published, own = text.split("## MSRVTTT2V of mteb, 879 videos")
    assert tmp_path.name not in published
    assert f"| **{tmp_path.name}** | 25.0 | 50.0 | 75.0 | 40.0 | 879 videos" in own
    assert "879 of 1,000 videos: another test set than theirs" in own
    assert "mteb 2.26.24, mteb/MSR-VTT at 4661603cee25" in own


@pytest.mark.parametrize(
    ("num_trained_on", "caveats"),
    [(None, ["overlap with training clips not checked"]), (0, []), (3, ["trained on 3 of these clips"])],
)
def test_a_card_says_what_is_known_of_training_clips(num_trained_on: int | None, caveats: list[str]) -> None:
    found = mteb_card(1000, num_trained_on).caveats
    assert found[: len(caveats)] == caveats
    assert ("chosen on the same clips" in found) == bool(num_trained_on)


def test_without_mteb_the_command_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mteb" else find_spec(name))
    with pytest.raises(ValueError, match=r"needs mteb, which is not installed: pip install 'snps3-ray\[mteb\]'"):
        evaluate.main(["runs/x", "--mteb", "MSRVTTT2V"])


def test_options_of_our_own_evaluation_are_refused() -> None:
    with pytest.raises(ValueError, match="--rerank 5 has no effect with --mteb; leave it out"):
        evaluate_with_mteb(EvaluateConfig(run="runs/x", mteb="MSRVTTT2V", rerank=5))
    with pytest.raises(ValueError, match="name the folder of a run"):
        evaluate_with_mteb(EvaluateConfig(mteb="MSRVTTT2V"))
