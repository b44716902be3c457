from __future__ import annotations

import subprocess
import sys

import lmdb
import pytest

from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.manifest import checksum
from pipeline.corpus.media import DamagedMediaError
from pipeline.records import EncodedFrames


@pytest.mark.parametrize("values", [[b"one"], [b"", b"two", b"three" * 1000]])
def test_packed_values_unpack(values):
    assert media.unpack(media.pack(values), "here") == tuple(values)


@pytest.mark.parametrize("data", [b"", b"\x03\0\0\0ab", media.pack([b"ab"]) + b"x"])
def test_other_bytes_are_no_packed_values(data):
    with pytest.raises(DamagedMediaError, match="shard: the bytes there are no packed images"):
        media.unpack(data, "shard")


def test_a_part_of_a_file_is_read_with_its_checksum(tmp_path):
    path = str(tmp_path / "a #1.tar")
    storage.write_bytes_atomic(path, b"0123456789")
    uri = media.range_uri(path, 2, 5)
    assert media.read(uri) == media.read(uri, checksum(b"234")) == b"234"
    assert media.file_of(uri) == media.file_of(path) == path
    with pytest.raises(DamagedMediaError, match="has another checksum than its manifest says"):
        media.read(media.range_uri(path, 2, 6), checksum(b"234"))
    with pytest.raises(DamagedMediaError, match="has another checksum"):
        media.read(media.range_uri(path, 8, 12), checksum(b"89ab"))


def test_a_file_with_a_hash_in_its_name_is_a_file(tmp_path):
    path = str(tmp_path / "take #bytes=2.mp4")
    storage.write_bytes_atomic(path, b"video")
    assert media.read(path) == b"video"


def test_frames_in_a_file_and_in_a_folder_are_read_in_order(tmp_path):
    packed = media.pack([b"first", b"second"])
    storage.write_bytes_atomic(str(tmp_path / "shard.parquet"), b"head" + packed + b"tail")
    uri = media.range_uri(str(tmp_path / "shard.parquet"), 4, 4 + len(packed), "frames")
    for name, data in {"clip/002.jpg": b"second", "clip/001.jpg": b"first", "clip/note.txt": b"x"}.items():
        storage.write_bytes_atomic(str(tmp_path / name), data)
    assert media.read(uri, checksum(packed)) == EncodedFrames((b"first", b"second"))
    assert media.read(f"{tmp_path}/clip/") == EncodedFrames((b"first", b"second"))
    assert media.checksum(EncodedFrames((b"first", b"second"))) == checksum(packed)
    with pytest.raises(FileNotFoundError, match="holds no images"):
        media.read(f"{tmp_path}/")


def test_a_part_of_a_packed_file_says_what_it_is_called(tmp_path):
    path = str(tmp_path / "0.tar")
    storage.write_bytes_atomic(path, b"0123456789")
    uri = media.uri_with_name(media.range_uri(path, 2, 5), "train/take &name=1#2.mp4")
    assert media.read(uri, checksum(b"234")) == b"234"
    assert media.file_of(uri) == path
    assert media.name_of(uri, str(tmp_path)) == "train/take &name=1#2.mp4"
    assert media.uri_with_name(uri, "other") == uri
    assert media.name_of(media.key_uri("/c/videos.lmdb", "b/ä 1#2"), "/c") == "b/ä 1#2"
    assert media.name_of("/c/a/b.mp4", "/c") == media.name_of("/c/a/b.mp4/", "/c") == "a/b.mp4"
    assert media.uri_with_name("/c/a/b.mp4", "other") == "/c/a/b.mp4"


def test_keys_of_an_lmdb(tmp_path):
    path = str(tmp_path / "videos.lmdb")
    with lmdb.open(path, map_size=2**20) as environment, environment.begin(write=True) as transaction:
        transaction.put("b/ä 1#2".encode(), b"video")
        transaction.put(b"a", b"other")
    assert media.is_lmdb(path)
    assert media.keys(path) == ["a", "b/ä 1#2"]
    assert media.read(media.key_uri(path, "b/ä 1#2")) == b"video"
    with pytest.raises(FileNotFoundError, match="has no key 'c'"):
        media.read(media.key_uri(path, "c"))
    with pytest.raises(ValueError, match="LMDB maps a file into memory, so it must be local"):
        media.read("s3://bucket/videos.lmdb#key=a")


def test_an_lmdb_that_was_cut_short_is_refused_before_its_pages_are_looked_for(tmp_path):
    """In a process of its own: pages that a mapped file lacks end the process that reads them."""
    path = str(tmp_path / "videos.lmdb")
    with lmdb.open(path, map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for number in range(30):
            transaction.put(b"%d" % number, bytes([number]) * 20_000)
    data = tmp_path / "videos.lmdb" / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    script = "import sys; from pipeline.corpus.media import key_uri, keys, read\n"
    script += "for look in (keys, lambda path: [read(key_uri(path, str(number))) for number in range(30)]):\n"
    script += "    try: look(sys.argv[1])\n    except ValueError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    words = f": cut short, it ends at byte {data.stat().st_size} and its pages do not: copy it again, or write it anew"
    assert [line.partition("videos.lmdb")[2] for line in done.stdout.splitlines()] == [f"{words} with mdb_copy -c"] * 2
