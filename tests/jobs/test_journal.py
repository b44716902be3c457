"""What the processes of a run say: lines that can be read again, whoever wrote them, also after a restart."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.tracking.journal import FOLDER, Journal, read_journals


def test_lines_of_all_processes_are_read_in_order_of_time(tmp_path: Path) -> None:
    assert read_journals(str(tmp_path)) == []
    first, second = Journal(str(tmp_path), "rank-0"), Journal(str(tmp_path), "rank-1")
    first.note("start", step=0)
    second.note("start", step=0)
    first.flush()
    first.flush()
    first.note("step", step=1, loss=float("1.5"))
    first.flush()
    assert len(list((tmp_path / FOLDER).iterdir())) == 2
    second.flush()
    lines = read_journals(str(tmp_path))
    assert [(line["who"], line["event"], line["step"]) for line in lines] == [
        ("rank-0", "start", 0),
        ("rank-1", "start", 0),
        ("rank-0", "step", 1),
    ]
    assert lines[-1]["loss"] == 1.5
    assert all(line["time"].endswith("Z") for line in lines)


def test_a_process_that_starts_again_keeps_what_the_one_before_it_said(tmp_path: Path) -> None:
    for count in range(2):
        journal = Journal(str(tmp_path), "rank-0")
        journal.start = f"2026-01-01T00:00:0{count}.000Z"
        journal.note("start", step=count)
        journal.flush()
    assert [line["step"] for line in read_journals(str(tmp_path))] == [0, 1]
    assert all(json.loads(path.read_text()) for path in (tmp_path / FOLDER).iterdir())
