from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.manifest import (
    PLACES,
    SCHEMA,
    Manifest,
    clip_id,
    make_manifest,
    manifest_hash,
    read_manifest,
    write_manifest,
)


def row(name: str, root: str = "/videos", split: str = "train", **changes) -> dict:
    return {
        "clip_id": clip_id("toy", name, changes.get("start_seconds"), changes.get("end_seconds")),
        "uri": f"{root}/{name}",
        "captions": [f"a clip named {name}", "ein Möbius\u2028band"],
        "kind": "video",
        "split": split,
        "width": 64,
        "height": 48,
        "fps": 29.97,
        "duration_seconds": 4.0,
        "num_frames": 120,
        "bytes": 1000,
        "checksum": "00ff",
        **changes,
    }


def corpus(root: str = "/videos", num_clips: int = 20, **changes) -> Manifest:
    rows = [row(f"{i}.mp4", root, "train" if i % 4 else "test", **changes) for i in range(num_clips)]
    return make_manifest("toy", root, rows)


def test_ids_are_stable_and_tell_path_and_times_apart():
    assert clip_id("toy", "a.mp4") == 905203842775022023  # shards and caches on disk carry it
    ids = {
        clip_id("toy", "a.mp4"),
        clip_id("toy", "b.mp4"),
        clip_id("other", "a.mp4"),
        clip_id("toy", "a.mp4", 0.0),
        clip_id("toy", "a.mp4", 0.0, 1.0),
        clip_id("toy", "a.mp4", None, 1.0),
    }
    assert len(ids) == 6
    assert all(0 <= one < 2**63 for one in ids)


def test_what_is_written_is_read(tmp_path):
    written = corpus()
    write_manifest(written, str(tmp_path / "manifest.parquet"))
    read = read_manifest(str(tmp_path / "manifest.parquet"))
    assert read.table.equals(written.table)
    assert (read.corpus, read.root, read.hash) == ("toy", "/videos", written.hash)
    assert read.splits == {"test": 5, "train": 15}
    assert read.table["clip_id"].to_pylist() == sorted(read.table["clip_id"].to_pylist())


def test_order_of_rows_and_place_of_the_corpus_change_nothing(tmp_path):
    rows = corpus().table.to_pylist()
    random.Random(0).shuffle(rows)
    assert make_manifest("toy", "/videos", rows).table.equals(corpus().table)
    assert corpus("s3://bucket/videos").hash == corpus().hash
    for name, root in (("one", "/videos"), ("two", "/videos")):
        write_manifest(corpus(root), str(tmp_path / name))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("field", [field for field in SCHEMA if field.name not in PLACES], ids=lambda field: field.name)
def test_any_change_of_content_changes_the_hash(field):
    rows = corpus().table.to_pylist()
    other = {"string": "another", "list<item: string>": ["another"]}.get(str(field.type), 7)
    rows[3][field.name] = other
    assert make_manifest("toy", "/videos", rows).hash != corpus().hash


def test_the_hash_of_one_file_is_the_same_in_every_version():
    assert corpus().hash == "75d20ad2be17c20e0d3ec6b8a0fc41de"  # runs and cards on disk name it


def test_the_hash_sees_where_captions_end():
    tables = [
        corpus(num_clips=1, captions=captions).table for captions in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""])
    ]
    assert len({manifest_hash(table) for table in tables}) == 4


def test_the_hash_does_not_depend_on_chunks():
    table = corpus().table
    pieces = pa.concat_tables([table.slice(i, 3) for i in range(0, len(table), 3)])
    assert manifest_hash(pieces) == manifest_hash(table)


def test_a_folder_of_parts_is_one_manifest(tmp_path):
    whole = corpus()
    for part in range(2):
        rows = [one for one in whole.table.to_pylist() if one["clip_id"] % 2 == part]
        write_manifest(make_manifest("toy", "/videos", rows), str(tmp_path / f"part-{part}.parquet"))
    assert read_manifest(str(tmp_path)).table.equals(whole.table)
    write_manifest(make_manifest("other", "/", [row("z.mp4")]), str(tmp_path / "part-2.parquet"))
    with pytest.raises(ValueError, match=r"several corpora \['other', 'toy'\]"):
        read_manifest(str(tmp_path))


def test_a_table_of_someone_else_is_read_if_it_has_the_columns(tmp_path):
    path = str(tmp_path / "theirs.parquet")
    table = corpus().table.drop_columns(["group", "start_seconds", "end_seconds"])
    narrow = table.set_column(
        table.column_names.index("num_frames"), "num_frames", table["num_frames"].cast(pa.int32())
    )
    pq.write_table(narrow, path)
    assert read_manifest(path).hash == corpus().hash


@pytest.mark.parametrize("column", ["clip_id", "captions", "checksum"])
def test_a_missing_column_is_named(tmp_path, column):
    path = str(tmp_path / "manifest.parquet")
    pq.write_table(corpus().table.drop_columns([column]), path)
    with pytest.raises(ValueError, match=rf"{path} lacks the column {column}; a manifest needs clip_id, uri"):
        read_manifest(path)


def test_wrong_types_empty_values_and_equal_ids_are_refused(tmp_path):
    table = corpus().table
    path = str(tmp_path / "manifest.parquet")
    pq.write_table(table.set_column(0, "clip_id", pa.array([f"id-{i}" for i in range(len(table))])), path)
    with pytest.raises(ValueError, match="column clip_id must be int64, it is string"):
        read_manifest(path)
    with pytest.raises(ValueError, match="column split has 1 empty values"):
        make_manifest("toy", "/videos", [row("a.mp4", split=None)])
    with pytest.raises(ValueError, match="1 clip ids occur more than once"):
        make_manifest("toy", "/videos", [row("a.mp4"), row("b.mp4"), row("a.mp4")])


def test_an_empty_split_names_those_there_are():
    with pytest.raises(
        ValueError, match=r"the split 'val' of corpus 'toy' is empty; there are: test \(5\), train \(15\)"
    ):
        corpus().split("val")
    assert set(corpus().split("test")["split"].to_pylist()) == {"test"}


def test_what_is_no_manifest_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.parquet does not exist"):
        read_manifest(str(tmp_path / "nowhere.parquet"))
    with pytest.raises(ValueError, match=r"holds no \.parquet file"):
        read_manifest(str(tmp_path))
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="is no Parquet file"):
        read_manifest(str(tmp_path / "text.parquet"))
    write_manifest(make_manifest("toy", "/videos", []), str(tmp_path / "empty.parquet"))
    with pytest.raises(ValueError, match="has no rows"):
        read_manifest(str(tmp_path / "empty.parquet"))
