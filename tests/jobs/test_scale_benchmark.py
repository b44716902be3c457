"""`scale`: its manifests hold what it measures with, and it counts what was read."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from jobs.benchmarks.support import report_run, scale_run
from jobs.benchmarks.support.invented_video import InventedVideo
from jobs.benchmarks.support.processes import private_and_shared_bytes
from jobs.benchmarks.support.synthetic_manifest import EVALUATION, write_synthetic
from pipeline.corpus.manifest import open_manifest, read_manifest
from pipeline.corpus.part_rows import GroupCache, PartRows
from pipeline.records import Kind
from pipeline.stream.loader import ClipSource, decode_share


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scale")
    write_synthetic(str(folder / "manifest"), 3000, str(folder / "videos.bin"))
    return str(folder / "manifest")


def test_the_clips_of_an_invented_manifest_are_read_checked_and_decoded(manifest: str) -> None:
    source = ClipSource(
        manifest_path=manifest,
        split="val",
        num_frames=2,
        frame_size_px=16,
        decoder=scale_run.DECODER,
        seed=0,
        plan=None,
        batch=8,
    )
    share = decode_share(source, 3, 0, 1)
    rows = read_manifest(manifest).rows("val", Kind.VIDEO).range(24, 32)
    assert share["weight"].to_pylist() == [1.0] * 8
    assert share["clip_id"].equals(rows["clip_id"])
    assert len({frames.as_buffer().to_pybytes() for frames in share["frames"]}) == 8
    assert InventedVideo.__module__ in scale_run.DECODER


def test_invented_rows_have_the_shape_of_webvid(manifest: str) -> None:
    table = read_manifest(manifest).table
    assert open_manifest(manifest).splits == {**EVALUATION, "train": 3000}
    assert table.nbytes / len(table) == pytest.approx(294, abs=40)
    assert np.mean([len(texts[0]) for texts in table["captions"].to_pylist()]) == pytest.approx(80, abs=15)


def test_the_bytes_that_are_counted_are_those_of_the_part(manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = open_manifest(manifest)
    rows = listing.rows("train", Kind.VIDEO)
    assert isinstance(rows, PartRows)
    monkeypatch.setattr(scale_run, "CACHE", cache := GroupCache(10))
    monkeypatch.setattr(scale_run, "split_clips", lambda *_: {Kind.VIDEO: PartRows(rows.folder, rows.parts, cache)})
    measured = scale_run.planned_rows(manifest, num_steps=20, batch=100)
    footers = sum(part.footer_bytes for part in rows.parts)
    counted = round(measured["row_bytes_read"] * 2000)
    content = sum(Path(rows.folder, part.name).stat().st_size for part in rows.parts) - footers - len("PAR1")
    assert content <= counted <= content + cache.num_groups_read * footers


def test_a_report_of_an_invented_manifest_is_measured(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_run.main(manifest, str(tmp_path / "page.html"))
    measured = json.loads(capsys.readouterr().out)
    assert f"{3000 + sum(EVALUATION.values()):,}" in (tmp_path / "page.html").read_text()
    assert measured["imports_mib"] > 0
    # of this process, which other tests have used: it may give memory back meanwhile
    assert measured["private_mib"] == pytest.approx(private_and_shared_bytes()[0] / 2**20, rel=0.2)


def test_memory_is_what_psutil_says() -> None:
    before = private_and_shared_bytes(os.getpid())[0]
    held = mmap.mmap(-1, 2**25, mmap.MAP_PRIVATE)  # an array might get memory that this process has used before
    held.write(b"1" * 2**25)
    private, shared = private_and_shared_bytes()
    assert private - before == pytest.approx(2**25, rel=0.2)
    assert private == pytest.approx(psutil.Process().memory_full_info().uss, rel=0.05)
    assert shared > 0
