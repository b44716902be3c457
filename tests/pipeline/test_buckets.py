"""Rows in buckets: those on disk are those in memory, and names that may mean one file are in one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import buckets, sorted_rows
from pipeline.corpus.buckets import NUM_BUCKETS, Buckets, portions
from pipeline.corpus.manifest import make_manifest
from pipeline.corpus.names import NameIndex, bucket_of_name
from pipeline.corpus.sorted_rows import SortedRows

SCHEMA = pa.schema([("value", pa.int64())])


@pytest.mark.parametrize("rows_in_memory", [3, 10_000])
def test_a_bucket_gives_its_rows_in_their_order(rows_in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "ROWS_IN_MEMORY", rows_in_memory)
    rng, rows = np.random.default_rng(0), Buckets(SCHEMA)
    numbers = rng.integers(0, NUM_BUCKETS, 1000)
    for start in range(0, 1000, 7):
        values = range(start, min(start + 7, 1000))
        rows.add(numbers[values], pa.table({"value": values}))
    assert len(rows) == 1000
    for start, stop in ((0, 1), (17, 90), (250, 256)):
        expected = [number for number in np.argsort(numbers, kind="stable") if start <= numbers[number] < stop]
        assert sorted(rows.read(start, stop)["value"].to_pylist()) == sorted(expected)
        assert rows.read(start, start + 1)["value"].to_pylist() == np.flatnonzero(numbers == start).tolist()
    assert sorted(rows.read()["value"].to_pylist()) == list(range(1000))


def test_portions_are_all_buckets_and_as_large_as_may_be() -> None:
    counts = np.array([3, 0, 4, 9, 1, 1, 1])
    assert list(portions(counts, 7)) == [(0, 3), (3, 4), (4, 7)]
    assert list(portions(np.zeros(4, int), 7)) == [(0, 4)]


@given(st.text(), st.sampled_from(["", "v_", "v_v_", "a/", "T.tar/"]), st.sampled_from(["", ".mp4", ".WEBM", ".a.mp4"]))
def test_names_that_may_mean_one_file_are_in_one_bucket(stem: str, before: str, suffix: str) -> None:
    clip, file = f"{before}{stem}", f"x/{stem}{suffix}"
    if NameIndex([file]).candidates(clip):
        assert bucket_of_name(clip) == bucket_of_name(file)
    for other in (clip.swapcase(), f"v_{clip}", f"{clip}.mp4"):
        if NameIndex([file]).candidates(other):
            assert bucket_of_name(other) == bucket_of_name(file)


@pytest.mark.parametrize("rows_in_memory", [5, 10_000])
def test_rows_of_any_order_are_read_sorted(rows_in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "ROWS_IN_MEMORY", rows_in_memory)
    monkeypatch.setattr(sorted_rows, "ROWS_AT_ONCE", rows_in_memory)
    rng = np.random.default_rng(1)
    known = {"captions": ["x"], "width": 1, "height": 1, "num_frames": 1, "bytes": 1, "checksum": "c"}
    ids = rng.integers(0, 2**63 - 1, 90).tolist()
    kinds = zip(rng.choice(["train", "val"], 90), rng.choice(["image", "video"], 90), strict=True)
    rows = [
        known | {"clip_id": clip_id, "uri": f"{clip_id}", "split": str(split), "kind": str(kind)}
        for clip_id, (split, kind) in zip(ids, kinds, strict=True)
    ]
    table = make_manifest("toy", "/", rows).table
    shuffled = table.take(rng.permutation(90))
    added = SortedRows(shuffled.slice(start, 8) for start in range(0, 90, 8))
    order = [("split", "ascending"), ("kind", "ascending"), ("clip_id", "ascending")]
    assert pa.concat_tables(added.tables()).equals(table.sort_by(order))
    assert added.splits == make_manifest("toy", "/", rows).splits
