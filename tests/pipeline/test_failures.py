"""A corpus of which 2 % hang the decoder: what they cost a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from misbehaviour import hang
from PIL import Image

from pipeline.corpus.manifest import make_manifest, write_manifest
from pipeline.decode.config import Limits
from pipeline.records import DecodeError, Kind, Media, Reason
from pipeline.stream import failures, loader
from pipeline.stream.epoch_plan import Plan

NUM_CLIPS, HANGING, BATCH = 50, 7, 10
EPOCH = NUM_CLIPS // BATCH
LIMIT_SECONDS, TRIES = 0.3, 2


@pytest.fixture
def source(tmp_path: Path) -> loader.ClipSource:
    rows = []
    for number in range(NUM_CLIPS):
        Image.new("L", (16, 16), number).save(path := tmp_path / f"{number}.png")
        rows.append({"clip_id": number, "uri": str(path), "captions": ["grey"], "kind": Kind.IMAGE, "split": "train"})
        rows[-1] |= {"width": 16, "height": 16, "num_frames": 1, "bytes": path.stat().st_size, "checksum": ""}
    write_manifest(make_manifest("grey", str(tmp_path), rows), manifest := str(tmp_path / "manifest.parquet"))
    plan = Plan(seed=0, num_videos=0, num_images=NUM_CLIPS, global_batch=BATCH)
    settings = {"manifest_path": manifest, "split": "train", "num_frames": 1, "frame_size_px": 16}
    settings |= {"decoder": "pyav", "seed": 0}
    return loader.ClipSource(**settings, plan=plan, batch=BATCH, failures=str(tmp_path / "undecoded"))


def test_a_clip_that_hangs_costs_its_limit_once_in_a_run(
    source: loader.ClipSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs_seconds, isolated, hanging = [], loader.isolated, (tmp_path / f"{HANGING}.png").read_bytes()

    def timed(function: Callable[..., Any], data: Media, **arguments: Any) -> Any:
        if data != hanging:
            return isolated(function, data, **arguments)
        start = time.perf_counter()
        try:
            return isolated(hang, data, limits=Limits(seconds=LIMIT_SECONDS))
        finally:
            costs_seconds.append(time.perf_counter() - start)

    monkeypatch.setattr(loader, "isolated", timed)
    reasons = []
    for epoch in range(3):
        failures._read.cache_clear()  # as in another process
        for number in range(source.num_groups(EPOCH, 1)):
            settings: dict[str, Any] = {"start_step": epoch * EPOCH, "stop_step": (epoch + 1) * EPOCH, "num_ranks": 1}
            block = loader.decode_block(pa.table({"id": [number]}), source=source, **settings)
            reasons += [reason for reason in block["reason"].to_pylist() if reason]
    assert reasons == [Reason.TIMEOUT] * 3
    assert len(costs_seconds) == NUM_CLIPS * 0.02
    assert costs_seconds[0] >= TRIES * LIMIT_SECONDS
    assert isinstance(failures.read_failures(source.failures)[HANGING], DecodeError)
