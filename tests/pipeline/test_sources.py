from __future__ import annotations

import io
import json
import tarfile

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.annotations import read_annotations
from pipeline.corpus.sources import Layout, open_source
from pipeline.corpus.speech import spoken_clips
from pipeline.decode.codec import encode_image, encode_video
from pipeline.decode.config import Limits
from pipeline.offline.stages import KNOWN, clips_of, probe_batch, unnamed_files
from pipeline.records import Reason


def video(seed: int) -> bytes:
    return encode_video(np.random.default_rng(seed).integers(0, 255, (8, 48, 64, 3), np.uint8), fps=4)


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write(path, text: str | bytes) -> str:
    storage.write_bytes_atomic(str(path), text if isinstance(text, bytes) else text.encode())
    return str(path)


def probed(annotated, source) -> list[dict]:
    clips = clips_of(annotated, corpus="toy", source=source)
    found = probe_batch(pa.Table.from_pylist(clips, schema=KNOWN), "decord", Limits()).to_pylist()
    return sorted(found, key=lambda row: row["captions"])


@pytest.mark.parametrize("shard", ["000.tar", "000.tar.gz", "000.tar.zst"])
def test_tars_are_read_like_the_files_in_them(tmp_path, shard):
    files = {"a.mp4": video(0), "a.txt": b"a caption\n", "b.mp4": video(1), "b.json": b'{"caption": ["one", "two"]}'}
    for name, data in files.items():
        write(tmp_path / "folder" / name, data)
    compression = {"gz": "gzip", "zst": "zstd"}.get(shard.rpartition(".")[2])
    data = pa.compress(tar(files), codec=compression, asbytes=True) if compression else tar(files)
    write(tmp_path / "tars/train" / shard, data)
    source = open_source(str(tmp_path / "tars"))
    assert source.layout == Layout.TAR
    annotated = read_annotations([source.root])
    assert [(one.relative_path, one.captions, one.split) for one in annotated] == [
        (f"train/{shard}/a.mp4", ("a caption",), "train"),
        (f"train/{shard}/b.mp4", ("one", "two"), "train"),
    ]
    assert source.uri("a.mp4") == source.places[f"train/{shard}/a.mp4"]
    of_files = probed(read_annotations([str(tmp_path / "folder")]), open_source(str(tmp_path / "folder")))
    of_tars = probed(annotated, source)
    facts = ("captions", "checksum", "bytes", "num_frames", "fps", "reason")
    assert [[row[fact] for fact in facts] for row in of_tars] == [[row[fact] for fact in facts] for row in of_files]
    assert [media.read(row["uri"], row["checksum"]) for row in of_tars] == [files["a.mp4"], files["b.mp4"]]
    assert not unnamed_files(annotated, corpus="toy", source=source)


def test_a_member_that_one_tar_has_needs_no_tar_in_its_name(tmp_path):
    write(tmp_path / "0.tar", tar({"a.mp4": video(0), "same.mp4": video(1)}))
    write(tmp_path / "1.tar", tar({"b.mp4": video(2), "same.mp4": video(3)}))
    source = open_source(str(tmp_path))
    assert source.uri("b.mp4") == source.places["1.tar/b.mp4"]
    assert source.uri("1.tar/same.mp4") == source.places["1.tar/same.mp4"]
    with pytest.raises(FileNotFoundError):
        media.read(source.uri("same.mp4"))
    lines = write(tmp_path / "captions.jsonl", '{"clip_name": "b", "caption": "a caption"}')
    unnamed = unnamed_files(read_annotations([lines]), corpus="toy", source=source)
    assert {one.uri for one in unnamed} == set(source.places.values()) - {source.places["1.tar/b.mp4"]}


def test_a_cut_tar_gives_what_it_has_and_stands_in_the_ledger(tmp_path):
    whole = tar({"a.mp4": video(0), "b.mp4": video(1)})
    write(tmp_path / "0.tar", whole[: len(video(0)) + 2048])
    source = open_source(str(tmp_path))
    assert "0.tar/a.mp4" in source.places
    (lost,) = [one for one in unnamed_files([], corpus="toy", source=source) if one.reason == Reason.TRUNCATED]
    assert lost.uri == f"{tmp_path}/0.tar"


def test_an_lmdb_is_found_by_the_stem_of_a_path(tmp_path):
    root = str(tmp_path / "videos.lmdb")
    with lmdb.open(root, map_size=2**22) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"video1", video(1))
        transaction.put(b"video2", video(2))
    lines = write(
        tmp_path / "c.jsonl",
        '{"clip_name": "data/mp4/video1", "caption": "one"}\n{"clip_name": "video3", "caption": "three"}',
    )
    annotated, source = read_annotations([lines]), open_source(root)
    found = {row["captions"][0]: row for row in probed(annotated, source)}
    assert source.layout == Layout.LMDB
    assert found["one"]["checksum"] == media.checksum(video(1))
    assert found["three"]["reason"] == Reason.MISSING
    (unnamed,) = unnamed_files(annotated, corpus="toy", source=source)
    assert unnamed.uri == media.key_uri(root, "video2")


def test_folders_of_key_frames_are_clips(tmp_path):
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[..., 0] = np.array([10, 120, 240])[:, None, None]
    for index, frame in enumerate(frames):
        write(tmp_path / f"frames/video1/{index:03}.jpg", encode_image(frame, quality=95))
        write(tmp_path / f"frames/video2/{index:03}.jpg", encode_image(frame, quality=95))
    lines = write(tmp_path / "c.jsonl", '{"clip_name": "video1.mp4", "caption": "redder"}')
    annotated, source = read_annotations([lines]), open_source(str(tmp_path / "frames"), Layout.FRAME_FOLDERS)
    (row,) = probed(annotated, source)
    assert (row["reason"], row["num_frames"], row["width"], row["height"]) == (None, 3, 64, 48)
    (unnamed,) = unnamed_files(annotated, corpus="toy", source=source)
    assert unnamed.uri == f"{tmp_path}/frames/video2/"


def test_spoken_sentences_become_clips(tmp_path):
    words = {"start": [0, 3, 20, 24], "end": [3, 8, 24, 25], "text": ["cut the", "onion very fine", "fry it", "now"]}
    expected = [(0.0, 25.0, ("cut the onion very fine fry it now",))]
    write(tmp_path / "asr/film.json", json.dumps(words))
    one = write(tmp_path / "all.json", json.dumps({"film": words}))
    for source in (str(tmp_path / "asr"), one):
        clips = read_annotations([source], format="asr")
        assert [(clip.start_seconds, clip.end_seconds, clip.captions) for clip in clips] == expected
        assert {clip.relative_path for clip in clips} == {"film.mp4"}
    with pytest.raises(ValueError, match=r"needs start, end and text, three lists of one length"):
        read_annotations([write(tmp_path / "bad.json", '{"film": {"start": [0]}}')], format="asr")


def test_what_is_too_short_at_the_end_joins_the_clip_before():
    assert spoken_clips([(0.0, 6.0, "one two three four five"), (6.0, 7.0, "six")]) == [
        (0.0, 7.0, "one two three four five six")
    ]
    assert spoken_clips([(0.0, 1.0, "alone")]) == [(0.0, 1.0, "alone")]
    assert spoken_clips([(1.0, 1.0, "nothing"), (2.0, 3.0, " ")]) == []
    joined = spoken_clips([(float(i), i + 1.0, f"w{i}") for i in range(23)])
    assert " ".join(text for *_, text in joined) == " ".join(f"w{i}" for i in range(23))
    assert all(end - start >= 5 and len(text.split()) >= 5 for start, end, text in joined)


def test_videos_in_parquet_are_read_by_row(tmp_path):
    videos = [video(seed) for seed in range(5)]
    rows = [
        {"video": {"bytes": data, "path": f"v{index}.mp4"}, "text": f"t{index}"} for index, data in enumerate(videos)
    ]
    (tmp_path / "train").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train/0.parquet", row_group_size=2)
    source = open_source(str(tmp_path))
    assert source.layout == Layout.PARQUET
    annotated = read_annotations([source.root])
    assert [(one.relative_path, one.captions, one.split) for one in annotated] == [
        (f"train/0.parquet/v{index}.mp4", (f"t{index}",), "train") for index in range(5)
    ]
    found = probed(annotated, source)
    assert [media.read(row["uri"], row["checksum"]) for row in found] == videos
    assert [media.name_of(row["uri"], source.root) for row in found] == [one.relative_path for one in annotated]
    with pytest.raises(media.DamagedMediaError, match="another checksum"):
        media.read(found[0]["uri"], found[1]["checksum"])
    with pytest.raises(FileNotFoundError, match="no row 5"):
        media.read(media.row_uri(f"{tmp_path}/train/0.parquet", 5, "video.bytes"))
