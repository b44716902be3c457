from __future__ import annotations

import pytest

from pipeline.corpus.ledger import TooManyRejectedError, count_by_reason, read_ledger, refuse_above_share, write_ledger
from pipeline.records import Reason, Rejected, Stage


def lost(clip_id: int, reason: Reason = Reason.MISSING) -> Rejected:
    return Rejected(clip_id=clip_id, uri=f"/v/{clip_id}.mp4", stage=Stage.PREPARE, reason=reason, detail="because")


def test_what_is_written_is_read_in_order(tmp_path):
    path = str(tmp_path / "rejected.parquet")
    write_ledger([lost(2), lost(1, Reason.EMPTY), lost(1)], path)
    assert read_ledger(path) == [lost(1, Reason.EMPTY), lost(1), lost(2)]
    write_ledger([], path)
    assert read_ledger(path) == []


def test_order_changes_no_byte(tmp_path):
    write_ledger([lost(2), lost(1)], str(tmp_path / "a"))
    write_ledger([lost(1), lost(2)], str(tmp_path / "b"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_reasons_are_counted_the_frequent_first():
    counts = count_by_reason([lost(1), lost(2, Reason.EMPTY), lost(3, Reason.EMPTY)])
    assert list(counts.items()) == [(Reason.EMPTY, 2), (Reason.MISSING, 1)]


def test_too_many_are_refused_and_unnamed_files_do_not_count():
    rejected = [lost(1), lost(2, Reason.EMPTY), *(lost(i, Reason.NO_ANNOTATION) for i in range(50))]
    refuse_above_share(rejected, 40, 0.05, "ledger")
    refuse_above_share(rejected, 0, 0.05, "ledger")
    with pytest.raises(
        TooManyRejectedError,
        match=r"2 of 39 samples were rejected \(missing 1, empty 1\), 5\.1% is more than 5\.0%: see L",
    ):
        refuse_above_share(rejected, 39, 0.05, "L")
