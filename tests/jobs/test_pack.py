from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.benchmarks.support.search_run import in_turn
from jobs.corpus import packing
from jobs.corpus.packing import PackConfig
from pipeline import storage
from pipeline.corpus import buckets, media
from pipeline.corpus.caption_readers import Annotation
from pipeline.corpus.fetching import fetch
from pipeline.corpus.ledger import read_ledger
from pipeline.corpus.manifest import SCHEMA, make_manifest, read_manifest, write_manifest
from pipeline.corpus.sources import open_source
from pipeline.decode.codec import decode_clip, encode_video, known_info
from pipeline.decode.config import Limits
from pipeline.offline.shards import Content, PackingConfig, items_of, read_indexes, write_shard
from pipeline.offline.stages import KNOWN, clips_of, probe_batch
from pipeline.records import DecodeError, Kind, Reason, Stage


def frames_of(seed: int, num_frames: int = 20) -> np.ndarray:
    grey = np.random.default_rng(seed).integers(0, 255, (num_frames, 6, 8, 1), np.uint8)
    return grey.repeat(8, axis=1).repeat(8, axis=2).repeat(3, axis=3)


@pytest.fixture
def corpus(tmp_path):
    """A manifest of three videos, one of them with two clips, and an image."""
    root = tmp_path / "videos"
    for index in range(3):
        storage.write_bytes_atomic(str(root / f"{index}.mp4"), encode_video(frames_of(index), fps=10))
    buffer = io.BytesIO()
    Image.fromarray(frames_of(9)[0]).save(buffer, "PNG")
    storage.write_bytes_atomic(str(root / "image.png"), buffer.getvalue())
    more = {"captions": ("a caption",), "split": "train"}
    annotated = [Annotation(relative_path=f"{index}.mp4", kind=Kind.VIDEO, **more) for index in range(3)]
    annotated.append(
        Annotation(relative_path="0.mp4", kind=Kind.VIDEO, start_seconds=0.5, end_seconds=1.5, group="g", **more)
    )
    annotated.append(Annotation(relative_path="image.png", kind=Kind.IMAGE, **more))
    clips = clips_of(annotated, corpus="toy", source=open_source(str(root)))
    rows = probe_batch(pa.Table.from_pylist(clips, schema=KNOWN), "decord", Limits()).to_pylist()
    path = str(tmp_path / "manifest.parquet")
    write_manifest(make_manifest("toy", str(root), rows), path)
    return path


def packed(corpus: str, folder, **settings) -> tuple[list[dict], list[dict]]:
    """Rows of the manifest before and after packing, in the same order."""
    config = PackingConfig(**settings)
    before = read_manifest(corpus).table.to_pylist()
    after = write_shard(items_of(before, config), config, str(folder), Limits()).to_pylist()
    by_id = {row["clip_id"]: row for row in after}
    assert read_indexes(str(folder), config).to_pylist() == after
    return before, [by_id[row["clip_id"]] for row in before]


def decoded(row: dict, num_frames: int = 4) -> np.ndarray:
    return decode_clip(
        fetch(row["uri"], row["checksum"]),
        kind=Kind(row["kind"]),
        num_frames=num_frames,
        size_px=64,
        start_seconds=row["start_seconds"],
        end_seconds=row["end_seconds"],
        known=known_info(row) if row["kind"] == "video" else None,
    ).frames


def test_raw_shards_give_the_same_pixels(corpus, tmp_path):
    for before, after in zip(*packed(corpus, tmp_path / "shards", content=Content.RAW), strict=True):
        assert "#bytes=" in after["uri"]
        assert (after["checksum"], after["bytes"]) == (before["checksum"], before["bytes"])
        assert np.array_equal(decoded(before), decoded(after))


def test_clips_of_one_file_share_its_bytes(corpus, tmp_path):
    _, after = packed(corpus, tmp_path / "shards", content=Content.RAW)
    assert len(after) == 5
    assert len({row["uri"] for row in after}) == 4


def test_frames_in_shards_look_like_those_of_the_video(corpus, tmp_path):
    settings = {"num_frames": 20, "frame_size_px": 64, "quality": 95}
    for before, after in zip(*packed(corpus, tmp_path / "shards", **settings), strict=True):
        assert "#frames=" in after["uri"]
        assert (after["start_seconds"], after["end_seconds"]) == (None, None)
        assert (after["clip_id"], after["captions"], after["group"]) == (
            before["clip_id"],
            before["captions"],
            before["group"],
        )
        assert np.abs(decoded(before).astype(int) - decoded(after).astype(int)).mean() < 4
        if before["kind"] == "video":
            seconds = (before["end_seconds"] or 2.0) - (before["start_seconds"] or 0.0)
            assert after["duration_seconds"] == pytest.approx(seconds)
            assert after["num_frames"] == min(20, round(seconds * 10))


def test_frames_are_made_smaller_never_larger(corpus, tmp_path):
    _, small = packed(corpus, tmp_path / "small", num_frames=3, frame_size_px=32)
    _, same = packed(corpus, tmp_path / "same", num_frames=3, frame_size_px=999)
    assert {(row["width"], row["height"]) for row in small} == {(32, 24)}
    assert {(row["width"], row["height"]) for row in same} == {(64, 48)}
    assert {row["num_frames"] for row in small if row["kind"] == "video"} == {3}


def test_a_shard_is_a_table_that_others_can_read(corpus, tmp_path):
    _, after = packed(corpus, tmp_path / "shards", num_frames=3)
    (path,) = {media.file_of(row["uri"]) for row in after}
    table = pq.read_table(path, page_checksum_verification=True)
    values = {tuple(row["clip_ids"]): row["values"] for row in table.to_pylist()}
    for row in after:
        kept = media.read(row["uri"])
        assert isinstance(kept, media.EncodedFrames)
        assert list(kept.images) == values[(row["clip_id"],)]


def test_a_damaged_shard_is_noticed(corpus, tmp_path):
    _, after = packed(corpus, tmp_path / "shards", num_frames=3)
    path = media.file_of(after[0]["uri"])
    data = bytearray(storage.read_bytes(path))
    data[len(data) // 3] ^= 1
    storage.write_bytes_atomic(path, bytes(data))
    reasons = []
    for row in after:
        try:
            fetch(row["uri"], row["checksum"])
        except DecodeError as error:
            reasons.append(error.reason)
    assert reasons == [Reason.WRONG_CHECKSUM]


@pytest.mark.ray
def test_a_pass_goes_on_where_it_was_cut_and_does_nothing_twice(corpus, tmp_path, local_ray):
    root = read_manifest(corpus).root
    out = str(tmp_path / "packed")
    config = PackConfig(
        manifest=corpus, out=out, packing=PackingConfig(num_frames=4, shard_bytes=1), max_rejected_share=0.5
    )
    lost = f"{root}/2.mp4"
    data = storage.read_bytes(lost)
    storage.remove(lost)
    first = packing.pack(config)
    (rejected,) = read_ledger(first.ledger_path)
    assert (rejected.uri, rejected.stage, rejected.reason) == (lost, Stage.PACK, Reason.MISSING)
    assert first.num_clips == {"train": 4}
    assert packing.pack(config) == first

    shards = sorted(name for name in storage.list_files(f"{out}/shards"))
    indexes = {
        name: pq.read_table(tmp_path / "packed/shards" / name) for name in shards if name.endswith(".index.parquet")
    }
    missing, cut, *_ = sorted(indexes, key=lambda name: indexes[name]["reason"].null_count)
    times = {name: (tmp_path / "packed/shards" / name).stat().st_mtime_ns for name in shards}
    storage.remove(f"{out}/shards/{cut}")  # as if stopped before the commit
    storage.write_bytes_atomic(lost, data)
    again = packing.pack(dataclasses.replace(config, force=True))
    later = {name: (tmp_path / "packed/shards" / name).stat().st_mtime_ns for name in shards}
    written = {name.split(".")[0] for name in shards if times[name] != later[name]}
    assert written == {cut.split(".")[0], missing.split(".")[0]}
    assert again.num_clips == {"train": 5}
    assert not read_ledger(again.ledger_path)
    names = {media.name_of(row["uri"], out) for row in read_manifest(again.manifest_path).table.to_pylist()}
    assert names == {"0.mp4", "1.mp4", "2.mp4", "image.png"}  # so files of questions find them here too


@pytest.mark.parametrize("content", list(Content))
def test_a_corpus_packed_in_portions_is_the_same_as_one_packed_in_memory(
    content: Content, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "map_blocks", in_turn)
    monkeypatch.setattr(packing, "connected_ray", contextlib.nullcontext)
    (tmp_path / "videos" / "2.mp4").write_bytes(b"no video any more")
    settings = PackingConfig(content=content, shard_bytes=1)
    rows = read_manifest(corpus).table.to_pylist()
    items = items_of(rows, settings)
    expected = pa.concat_tables([write_shard([item], settings, str(tmp_path / "shards"), Limits()) for item in items])

    def run(name: str) -> packing.PrepareResult:
        return packing.pack(
            PackConfig(manifest=corpus, out=str(tmp_path / name), packing=settings, max_rejected_share=0.5)
        )

    whole = run("whole")
    monkeypatch.setattr(packing, "PORTION_ROWS", 1)
    monkeypatch.setattr(buckets, "ROWS_IN_MEMORY", 2)
    cut = run("cut")
    for done in (whole, cut):
        shards = tmp_path / Path(done.manifest_path).parent.name / "shards"
        made = {path.name for path in shards.iterdir()}
        assert made == {path.name for path in (tmp_path / "shards").iterdir()}
        table = read_manifest(done.manifest_path).table
        packed = expected.filter(pc.field("reason").is_null()).sort_by("clip_id")
        for name in set(SCHEMA.names) - {"uri"}:
            assert table[name].to_pylist() == packed[name].to_pylist()
        lost = [row["clip_id"] for row in expected.to_pylist() if row["reason"]]
        assert [row.clip_id for row in read_ledger(done.ledger_path)] == lost
    assert whole.manifest_hash == cut.manifest_hash
    (tmp_path / "cut" / packing.MARKER).unlink()
    monkeypatch.setattr(packing, "map_blocks", lambda blocks, *_, **__: pytest.fail(f"packed again: {len(blocks)}"))
    assert run("cut").manifest_hash == whole.manifest_hash
