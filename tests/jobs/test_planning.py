"""What a corpus would be made of, before any file is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.corpus.planning import Outline, Plan, describe_outline, with_nearest
from jobs.corpus.preparation import PrepareConfig, gather_inputs, plan
from jobs.prepare import main
from pipeline.records import Reason, Rejected, Stage


def settings(folder: Path) -> dict[str, str]:
    """Write a corpus with a clip that is there, one that is called otherwise, one that is gone and a wrong row."""
    for name in ("a.mp4", "x/v10.webm", "video100.mp4"):
        (folder / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "root" / name).touch()
    rows = [
        {"path": "a", "text": "a dog", "start": 1, "end": 2.5, "mood": "calm"},
        {"path": "v10.mp4", "text": "a cat"},
        {"path": "video10.mp4", "text": "a bird"},
        {"path": "", "text": "nobody"},
    ]
    (folder / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"root": f"{folder}/root", "out": f"{folder}/out"}


def toy(folder: Path) -> PrepareConfig:
    return PrepareConfig(corpus="toy", annotations=(f"{folder}/c.jsonl",), **settings(folder))


def planned(folder: Path) -> Plan:
    return plan(toy(folder))


def test_a_plan_says_what_was_taken_for_what(tmp_path: Path) -> None:
    text = describe_outline(gather_inputs(toy(tmp_path)).outline())
    assert "clip = path, caption = text, start = start, end = end" in text
    assert "1 by name alone: v10.mp4 is x/v10.webm" in text
    assert "1 not there: video10.mp4 (the nearest is video100.mp4)" in text
    assert "c.jsonl:4: needs clip_name" in text
    assert "a.mp4  train  1–2.5 s  'a dog'" in text


def test_files_that_are_read_alike_share_a_line() -> None:
    notes = ["a.csv: clip = path", "b.csv: clip = name", "c.csv: clip = path", "no split is named for 2 clips"]
    lines = describe_outline(Outline(notes=notes)).splitlines()[:3]
    assert lines == [
        "captions  a.csv, c.csv: clip = path",
        "captions  b.csv: clip = name",
        "captions  no split is named for 2 clips",
    ]


def test_wrong_rows_stand_in_the_ledger_and_missing_clips_with_the_nearest_name(tmp_path: Path) -> None:
    made = planned(tmp_path)
    (wrong,) = made.rejected("toy")
    assert (wrong.reason, wrong.uri) == (Reason.WRONG_ROW, f"{tmp_path}/c.jsonl:4")
    (clip,) = made.missing
    uri = made.source.uri(clip.relative_path)
    gone = Rejected(clip_id=1, uri=uri, stage=Stage.PREPARE, reason=Reason.MISSING, detail="it is not there")
    (named,) = with_nearest([gone], made)
    assert named.detail == "it is not there; the nearest is video100.mp4"


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = settings(tmp_path)
    options = ["--corpus", "toy", "--root", paths["root"], "--out", paths["out"]]
    main([*options, "--annotations", f"{tmp_path}/c.jsonl", "--dry-run"])
    assert "clips     train 3" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_signed_urls_are_shown_without_their_signature(tmp_path: Path) -> None:
    paths = settings(tmp_path)
    url = "https://host.example/gone.mp4?X-Amz-Signature=0123"
    (tmp_path / "c.csv").write_text(
        f"url,caption\n{url},a dog\nhttps://host.example/a.mp4?X-Amz-Signature=01,x,y\na,b\n"
    )
    config = PrepareConfig(corpus="toy", annotations=(f"{tmp_path}/c.csv",), **paths)
    shown = describe_outline(gather_inputs(config).outline()) + str(plan(config).rejected("toy"))
    assert "host.example/gone.mp4" in shown
    assert "X-Amz" not in shown
