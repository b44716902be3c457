from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.fft
from PIL import Image

from pipeline.corpus import manifest
from pipeline.corpus.manifest import make_manifest
from pipeline.decode.codec import DecodeError, Timeline, VideoInfo, encode_video
from pipeline.decode.config import Limits
from pipeline.dedup import fingerprints
from pipeline.dedup.fingerprints import (
    clip_thumbnails,
    perceptual_hashes,
    read_thumbnails,
    thumbnails_of,
    video_thumbnails,
    write_prints,
)
from pipeline.records import Kind, Reason


def moving(num_frames: int, seed: int = 0, size: int = 64) -> np.ndarray:
    """A square on its way over a texture."""
    rng = np.random.default_rng(seed)
    ground = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((size, size)))
    frames = np.repeat(ground[None], num_frames, axis=0)
    for index, frame in enumerate(frames):
        left = int((size - 16) * index / num_frames)
        frame[24:40, left : left + 16] = (240, 20, 20)
    return frames


def row(data: bytes, **changes) -> dict:
    known = {
        "clip_id": manifest.clip_id("toy", str(len(data))),
        "uri": "nowhere/a.mp4",
        "start_seconds": None,
        "end_seconds": None,
        "captions": ["a square"],
        "kind": "video",
        "split": "train",
        "width": 64,
        "height": 64,
        "fps": 8.0,
        "duration_seconds": 3.0,
        "num_frames": 24,
        "bytes": len(data),
        "checksum": manifest.checksum(data),
    }
    return known | changes


def test_hashes_are_the_signs_of_the_lowest_frequencies_of_another_library():
    thumbnails = np.random.default_rng(0).integers(0, 256, (5, 384), np.uint8)
    luma = thumbnails[:, :256].reshape(5, 16, 16).astype(np.float64)
    lowest = scipy.fft.dctn(luma, axes=(1, 2))[:, :8, :8].reshape(5, 64)
    expected = np.packbits(lowest > np.median(lowest, axis=1, keepdims=True), axis=1)
    assert (perceptual_hashes(thumbnails).view(np.uint8).reshape(5, 8) == expected).all()


def test_thumbnails_hold_luma_and_chroma_as_pillow_computes_them():
    frame = moving(1)[0]
    ycbcr = Image.fromarray(frame).convert("YCbCr")
    luma, *chroma = (np.asarray(band, np.float64) for band in ycbcr.split())
    expected = [luma.reshape(16, 4, 16, 4).mean((1, 3)), *(band.reshape(8, 8, 8, 8).mean((1, 3)) for band in chroma)]
    ours = thumbnails_of(frame[None])[0].astype(np.float64)
    assert np.abs(ours - np.concatenate([plane.ravel() for plane in expected])).max() < 1.5  # Pillow rounds twice


class Ramp:
    """A video whose frame k has the grey level 4 k."""

    def __init__(self, fps: float) -> None:
        self.info = VideoInfo(num_frames=50, fps=fps, width=64, height=64, duration_seconds=50 / fps)
        self.timeline = Timeline.uniform(self.info)

    def frames(self, indices, size):
        return np.repeat(4 * np.array(indices, np.uint8), 64 * 64 * 3).reshape(-1, 64, 64, 3)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@pytest.mark.parametrize(
    ("window", "fps", "expected"),
    [
        (range(10, 16), 8.0, [40, 44, 48, 52, 56, 60]),
        (range(0, 8), 16.0, [2, 10, 18, 26]),
        (range(0, 3), 4.0, [0, 1, 3, 5, 7, 8]),
        (range(0, 4), 32.0, [6]),
        (range(0, 3), 60.0, [4]),
        (range(7, 8), 60.0, [28]),
    ],
)
def test_a_thumbnail_is_what_lies_between_two_frames_eight_times_a_second(window, fps, expected):
    assert video_thumbnails(Ramp(fps), window)[:, 0].tolist() == expected


def test_a_clip_between_two_times_has_the_thumbnails_of_that_part_of_the_video():
    data = encode_video(moving(24), fps=8)
    whole = clip_thumbnails(data, row(data), "decord")
    part = clip_thumbnails(data, row(data, start_seconds=1.0, end_seconds=2.0), "decord")
    assert (part == whole[8:16]).all()


def test_another_file_than_the_manifests_is_refused():
    data = encode_video(moving(24), fps=8)
    with pytest.raises(DecodeError, match="prepare the corpus again") as caught:
        clip_thumbnails(data + b"\0", row(data), "decord")
    assert caught.value.reason == Reason.WRONG_CHECKSUM


def table_of(lengths: list[int]) -> pa.Table:
    """Random thumbnails of clips, by how many they have."""
    rng = np.random.default_rng(0)
    blobs = [rng.integers(0, 256, 384 * length, np.uint8).tobytes() for length in lengths]
    columns = [pa.array(range(len(blobs))), pa.array(["checksum"] * len(blobs)), pa.array(blobs, pa.large_binary())]
    return pa.Table.from_arrays(columns, schema=fingerprints.SCHEMA)


def kept(folder: Path) -> dict[int, bytes]:
    """The thumbnails of each clip in a folder of fingerprints."""
    shown = {}
    for path, places in fingerprints.print_parts(str(folder)):
        thumbnails = read_thumbnails(path, places["start"].to_numpy(), places["stop"].to_numpy())
        shown |= zip(places["clip_id"].to_pylist(), (one.tobytes() for one in thumbnails), strict=True)
    return shown


def test_parts_of_any_size_hold_the_thumbnails_of_each_clip(tmp_path):
    table = table_of([2, 1, 3, 5, 1])
    for max_bytes in (1, 1500, 10**9):
        write_prints(str(tmp_path / str(max_bytes)), [table[:2], table[2:2], table[2:]], max_bytes)
        expected = dict(zip(table["clip_id"].to_pylist(), table["thumbnails"].to_pylist(), strict=True))
        assert kept(tmp_path / str(max_bytes)) == expected
    assert len(list(fingerprints.print_parts(str(tmp_path / "1")))) == 2
    assert kept(tmp_path / "nowhere") == {}


def test_a_part_whose_writing_did_not_end_does_not_count(tmp_path):
    write_prints(str(tmp_path), [table_of([2, 1])])
    (path, _), *_ = fingerprints.print_parts(str(tmp_path))
    Path(path).write_bytes(Path(path).read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"\.thumbnails is cut: remove it and .*\.parquet, and its clips are decoded"):
        kept(tmp_path)
    Path(fingerprints.index_of(path)).unlink()
    assert kept(tmp_path) == {}


@pytest.mark.ray
def test_what_was_computed_once_is_not_decoded_again(tmp_path, local_ray):
    files = {}
    for index in range(3):
        files[index] = encode_video(moving(24, seed=index), fps=8)
        (tmp_path / f"{index}.mp4").write_bytes(files[index])
    rows = [row(data, clip_id=index, uri=str(tmp_path / f"{index}.mp4")) for index, data in files.items()]
    corpus, folder = make_manifest("toy", str(tmp_path), rows), tmp_path / "prints"
    settings = {"decoder": "decord", "limits": Limits()}
    assert fingerprints.fingerprint_corpus(corpus, str(folder), **settings) == []
    shown = {index: clip_thumbnails(data, rows[index], "decord").tobytes() for index, data in files.items()}
    assert kept(folder) == shown
    (tmp_path / "0.mp4").unlink()
    assert fingerprints.fingerprint_corpus(corpus, str(folder), **settings) == []
    assert kept(folder) == shown
    shutil.rmtree(folder)
    (lost,) = fingerprints.fingerprint_corpus(corpus, str(folder), **settings)
    assert kept(folder) == {index: shown[index] for index in (1, 2)}
    assert (lost.clip_id, lost.reason) == (0, Reason.MISSING)


def test_an_image_is_one_thumbnail(tmp_path):
    Image.fromarray(moving(1, size=80)[0]).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    found = clip_thumbnails(data, row(data, kind=str(Kind.IMAGE)), "decord")
    assert found.shape == (1, 384)


def test_a_file_that_crashes_its_decoder_costs_its_clip(tmp_path, monkeypatch):
    data = encode_video(moving(24), fps=8)
    (tmp_path / "a.mp4").write_bytes(data)
    rows = pa.Table.from_pylist([row(data, clip_id=1, uri=str(tmp_path / "a.mp4"))])

    def crash(*_, **__):
        raise DecodeError(Reason.CRASHED, "the process that decoded it ended")

    (found,) = fingerprints.fingerprint_batch(rows, "pyav", Limits()).to_pylist()
    assert found["reason"] is None
    monkeypatch.setattr(fingerprints, "isolated", crash)
    (found,) = fingerprints.fingerprint_batch(rows, "pyav", Limits()).to_pylist()
    assert found["reason"] == "crashed"
