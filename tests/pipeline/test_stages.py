from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.corpus.probing import probe_clips
from pipeline.corpus import manifest
from pipeline.corpus.caption_readers import Annotation
from pipeline.corpus.sources import Source, open_source
from pipeline.decode.codec import encode_video
from pipeline.decode.config import Limits
from pipeline.offline.stages import KNOWN, clips_of, probe_batch, split_into_blocks, unnamed_files
from pipeline.records import Kind, Reason, Stage


def annotation(path: str, *captions: str, **more) -> Annotation:
    return Annotation(**{"relative_path": path, "captions": captions, "kind": Kind.VIDEO, "split": "train"} | more)


def empty(root: str) -> Source:
    return open_source(root, files=[])


@pytest.fixture
def folder(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)
    video = encode_video(frames, fps=10)
    buffer = io.BytesIO()
    Image.fromarray(frames[0]).save(buffer, "JPEG")
    files = {
        "a.mp4": video,
        "b.jpg": buffer.getvalue(),
        "empty.mp4": b"",
        "text.mp4": b"text" * 99,
        "cut.mp4": video[:-500],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


ANNOTATIONS = [
    annotation("a.mp4", "a whole", "noise"),
    annotation("a.mp4", "a part", start_seconds=0.5, end_seconds=1.0, group="g"),
    annotation("a.mp4", "after the end", start_seconds=2.0, end_seconds=3.0),
    annotation("b.jpg", "an image", kind=Kind.IMAGE, split="test"),
    annotation("empty.mp4", "nothing"),
    annotation("text.mp4", "words"),
    annotation("cut.mp4", "cut"),
    annotation("gone.mp4", "gone"),
    annotation("silent.mp4"),
]


def check(rows: list[dict], reasons: dict[str, Reason]) -> None:
    whole, image, part = sorted(rows, key=lambda row: (row["start_seconds"] is not None, row["kind"] == "image"))
    assert (whole["width"], whole["height"], whole["num_frames"]) == (64, 48, 20)
    assert (whole["fps"], whole["duration_seconds"]) == pytest.approx((10, 2))
    assert (part["start_seconds"], part["end_seconds"], part["group"]) == (0.5, 1.0, "g")
    assert part["checksum"] == whole["checksum"]
    assert (image["width"], image["height"], image["num_frames"], image["fps"]) == (64, 48, 1, None)
    assert reasons == {
        "a.mp4": Reason.OUT_OF_RANGE,
        "empty.mp4": Reason.EMPTY,
        "text.mp4": Reason.UNREADABLE,
        "cut.mp4": Reason.TRUNCATED,
        "gone.mp4": Reason.MISSING,
    }


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_batch_is_probed_without_ray(folder, decoder):
    clips = [clip for clip in clips_of(ANNOTATIONS, corpus="toy", source=open_source(str(folder))) if clip["captions"]]
    found = probe_batch(pa.Table.from_pylist(clips, schema=KNOWN), decoder, Limits()).to_pylist()
    usable = [row for row in found if row["reason"] is None]
    reasons = {row["uri"].rsplit("/", 1)[1]: Reason(row["reason"]) for row in found if row["reason"]}
    check(usable, reasons)
    assert {row["bytes"] for row in usable} == {(folder / name).stat().st_size for name in ("a.mp4", "b.jpg")}


@pytest.mark.ray
def test_a_corpus_is_probed_by_ray_data(folder, local_ray, tmp_path):
    clips = clips_of(ANNOTATIONS, corpus="toy", source=open_source(str(folder)))
    rows, rejected = probe_clips(clips, decoder="decord", limits=Limits(), kept_in=str(tmp_path / "kept"), versions={})
    silent = next(one for one in rejected if one.reason == Reason.NO_CAPTION)
    assert silent.uri == f"{folder}/silent.mp4"
    assert {one.stage for one in rejected} == {Stage.PREPARE}
    reasons = {one.uri.rsplit("/", 1)[1]: one.reason for one in rejected if one != silent}
    check(rows.to_pylist(), reasons)
    made = manifest.make_manifest("toy", str(folder), rows)
    assert made.splits == {"test": 1, "train": 2}


def test_clips_carry_the_ids_of_the_manifest_and_no_root_in_them():
    here, there = (
        clips_of(ANNOTATIONS, corpus="toy", source=empty(root)) for root in ("/videos", "s3://bucket/videos")
    )
    assert [clip["clip_id"] for clip in here] == [clip["clip_id"] for clip in there]
    assert here[0]["clip_id"] == manifest.clip_id("toy", "a.mp4")
    assert there[0]["uri"] == "s3://bucket/videos/a.mp4"


def test_ids_that_collide_are_refused(monkeypatch):
    monkeypatch.setattr(manifest, "clip_id", lambda *_: 7)
    with pytest.raises(ValueError, match=r"ids of a\.mp4 and b\.mp4 collide: rename one"):
        clips_of([annotation("a.mp4", "x"), annotation("b.mp4", "y")], corpus="toy", source=empty("/v"))


def test_files_that_no_annotation_names_are_listed():
    names = ["a.mp4", "b.jpg", "more/c.webm", "captions.jsonl"]
    source = open_source("/v", files=names)
    found = unnamed_files(ANNOTATIONS, corpus="toy", source=source)
    assert [(one.uri, one.reason) for one in found] == [("/v/more/c.webm", Reason.NO_ANNOTATION)]


def test_nothing_with_words_needs_no_ray():
    clips = clips_of([annotation("a.mp4")], corpus="toy", source=empty("/v"))
    rows, rejected = probe_clips(clips, decoder="decord", limits=Limits(), kept_in="/nowhere", versions={})
    assert not rows.num_rows
    assert [one.reason for one in rejected] == [Reason.NO_CAPTION]


def test_the_clips_of_a_file_stay_together():
    table = pa.table({"uri": ["a"] * 20 + ["b"] * 3 + ["c"] * 10 + ["d"] * 2})
    assert [len(block) for block in split_into_blocks(table, 8, 256)] == [8, 8, 8, 8, 3]
    assert [len(block) for block in split_into_blocks(table, 8, 256, group_column="uri")] == [20, 13, 2]
    assert pa.concat_tables(split_into_blocks(table, 8, 256, group_column="uri")).equals(table)
    assert split_into_blocks(table[:0], 8, 256, group_column="uri") == []
