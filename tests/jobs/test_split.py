"""Long videos to clips of a manifest: what is found is kept, what cannot be read is in the ledger."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.corpus import splitting
from jobs.corpus.preparation import PrepareConfig, prepare
from jobs.corpus.splitting import SplitConfig, describe, split
from jobs.launch.preflight import split_problems
from jobs.run.presets import tiny
from pipeline import storage
from pipeline.corpus.ledger import TooManyRejectedError, read_ledger
from pipeline.corpus.manifest import make_manifest, open_manifest, read_manifest, write_in_parts
from pipeline.curation.shots import SPANS
from pipeline.decode.codec import encode_video
from pipeline.offline.kept import result_schema, split_by_cached, write_cached
from pipeline.records import Reason

FPS = 8


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two films of three shots of 3, 1 and 5 s, each of a colour, and a file that is none."""
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.mp4", "deep/b.mp4")):
        colours = np.random.default_rng(number).permutation([[250, 20, 20], [20, 90, 20], [230, 230, 230]])
        frames = colours.astype(np.uint8).repeat([3 * FPS, FPS, 5 * FPS], axis=0)[:, None, None]
        (folder / name).write_bytes(encode_video(frames.repeat(64, 1).repeat(96, 2), fps=FPS))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def config(videos: Path, **changes) -> SplitConfig:
    settings = {"videos": str(videos), "out": str(videos.parent / "out"), "max_rejected_share": 0.4}
    return SplitConfig(**settings | changes)


def clips_in(path: str) -> list[tuple[str, float, float]]:
    return [tuple(row[name] for name in ("clip_name", "start", "end")) for row in storage.read_table(path).to_pylist()]


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are mapped in this process."""
    for module in ("kept", "stages"):
        monkeypatch.setattr(f"pipeline.offline.{module}.map_blocks", lambda blocks, look, subcluster: map(look, blocks))
    monkeypatch.setattr("cluster.connection.connected_ray", contextlib.nullcontext)


@pytest.mark.ray
def test_videos_are_split_by_ray_data(videos: Path, local_ray: None) -> None:
    done = split(config(videos, by="stride", window_seconds=4.0, stride_seconds=4.0))
    assert [times for name, *times in clips_in(done.clips_path) if name == "a.mp4"] == [[0.0, 4.0], [4.0, 8.0]]
    assert done.num_rejected == {"unreadable": 1}


def test_shots_become_a_manifest_with_times_and_again_nothing_is_decoded(
    videos: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = split(config(videos))
    assert (done.num_videos, done.num_clips, done.num_left_out) == (3, 4, 2)
    clips = [(name, *times) for name in ("a.mp4", "deep/b.mp4") for times in ((0.0, 3.0), (4.0, 9.0))]
    assert clips_in(done.clips_path) == clips
    (lost,) = read_ledger(done.ledger_path)
    assert lost.uri.endswith("/broken.mp4")
    assert "clips     4, 0.00 h" in describe(done)

    settings = {"corpus": "films", "root": str(videos), "out": str(videos.parent / "corpus")}
    prepared = prepare(PrepareConfig(**settings, annotations=(done.clips_path,), keep_uncaptioned=True))
    manifest = read_manifest(prepared.manifest_path)
    rows = sorted(manifest.table.to_pylist(), key=lambda row: (row["uri"], row["start_seconds"]))
    assert [(Path(row["uri"]).name, row["start_seconds"], row["end_seconds"]) for row in rows] == [
        (Path(name).name, start, end) for name, start, end in clips
    ]
    assert all(row["captions"] == [] and row["packets"] for row in rows)
    write_in_parts(manifest, parts := str(videos.parent / "parts"))
    for listing in (manifest, open_manifest(parts)):
        assert "4 of 4 clips of the split 'train' have no caption" in " ".join(split_problems(tiny().data, listing))
    weighted = replace(tiny().data, caption_weights=("annotation=1",))
    rows = [row | {"captions": ["a"], "caption_sources": ["llava"]} for row in rows]
    problems = " ".join(split_problems(weighted, make_manifest("films", manifest.root, rows)))
    assert "data.caption_weights: 4 of 4 clips of the split 'train' have captions of other sources alone" in problems

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray was asked for what is known")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.offline.kept.map_blocks", refuse)
        shorter = split(config(videos, min_seconds=0.5, max_seconds=2.5))
    assert shorter.num_clips == 2 * (2 + 1 + 2)


def test_times_of_an_annotation_keep_their_captions_and_get_lengths(videos: Path, tmp_path: Path) -> None:
    lines = "clip,start,end,caption,split\na.mp4,0.5,9,long,test\na.mp4,1,1.5,short,test\ndeep/b.mp4,2,5,fine,train\n"
    (tmp_path / "times.csv").write_text(lines)
    timed = {"by": "times", "annotations": (str(tmp_path / "times.csv"),)}
    done = split(config(videos, **timed, max_seconds=5.0))
    rows = storage.read_table(done.clips_path).to_pylist()
    assert [(row["start"], row["end"], row["captions"], row["split"]) for row in rows] == [
        (0.5, 4.75, ["long"], "test"),
        (4.75, 9.0, ["long"], "test"),
        (2.0, 5.0, ["fine"], "train"),
    ]
    assert done.num_left_out == 1
    (tmp_path / "times.csv").write_text("clip,start,caption\na.mp4,0.5,no end\n")
    with pytest.raises(ValueError, match=r"1 clips have no end, as a\.mp4"):
        split(config(videos, **timed))


def test_a_stopped_pass_goes_on_and_passing_failures_are_tried_again(tmp_path: Path) -> None:
    rows = pa.table({"key": list("abcd"), "clip_id": [1, 2, 3, 4]})
    results = [
        {"key": "a", "clip_id": 1, "start_seconds": 0.0},
        {"key": "a", "clip_id": 1, "start_seconds": 5.0},
        {"key": "b", "clip_id": 2, "reason": str(Reason.UNREADABLE)},
        {"key": "c", "clip_id": 3, "reason": str(Reason.TIMEOUT)},
        {"key": "of an earlier version of the file", "clip_id": 4},
    ]
    write_cached(pa.Table.from_pylist(results, result_schema(SPANS)), str(tmp_path / "spans"))
    kept, left = split_by_cached(rows, str(tmp_path / "spans"), SPANS)
    assert kept["key"].to_pylist() == ["a", "a", "b"]
    assert left["key"].to_pylist() == ["c", "d"]
    assert split_by_cached(rows, str(tmp_path / "none"), SPANS)[1].equals(rows)
    earlier = result_schema(SPANS.remove(SPANS.get_field_index("end_seconds")))  # of a version that knew less
    write_cached(pa.Table.from_pylist([{"key": "d", "clip_id": 4}], earlier), str(tmp_path / "spans"))
    assert split_by_cached(rows, str(tmp_path / "spans"), SPANS)[0].to_pylist()[-1]["end_seconds"] is None


def test_what_cannot_work_is_refused(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"0 <= min_seconds <= max_seconds, got 5\.0 and 2\.0"):
        config(videos, min_seconds=5.0, max_seconds=2.0)
    with pytest.raises(ValueError, match="--by times needs --annotations"):
        config(videos, by="times")
    with pytest.raises(ValueError, match="0 < stride_seconds <= window_seconds"):
        config(videos, by="stride", stride_seconds=11.0)
    lost = [{"clip_id": 1, "uri": f"{videos}/broken.mp4", "reason": "unreadable", "detail": "bad"}]
    monkeypatch.setattr(splitting, "compute_missing", lambda *_, **__: pa.Table.from_pylist(lost, result_schema(SPANS)))
    with pytest.raises(TooManyRejectedError, match="1 of 3 samples were rejected"):
        split(config(videos, max_rejected_share=0.1))
    for path in itertools.chain(videos.glob("*.mp4"), videos.glob("*/*.mp4")):
        path.unlink()
    with pytest.raises(ValueError, match="no video lies below"):
        split(config(videos))
