"""A manifest in parts lists the rows of one file, reads those that are asked for, and nothing past a damaged part."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.benchmarks.support.synthetic_manifest import synthetic_tables
from pipeline import storage
from pipeline.corpus import parts
from pipeline.corpus.content import rows_digest
from pipeline.corpus.manifest import (
    Manifest,
    make_manifest,
    open_manifest,
    read_manifest,
    write_in_parts,
    write_manifest,
)
from pipeline.corpus.part_rows import GroupCache, PartRows
from pipeline.corpus.schema import PLACES, SCHEMA
from pipeline.records import Kind

SIZES = {"test": 300, "train": 5000, "val": 40}
GROUP_ROWS = parts.GROUP_ROWS


@pytest.fixture(scope="module")
def whole() -> Manifest:
    """5,340 rows, of which some hundred are images."""
    table = pa.concat_tables(synthetic_tables(SIZES, "/videos.bin"))
    kinds = pa.array(np.where(np.arange(len(table)) % 17 == 0, "image", "video"))
    return make_manifest("toy", "/videos.bin", table.set_column(SCHEMA.names.index("kind"), "kind", kinds))


@pytest.fixture
def folder(whole: Manifest, tmp_path: Path) -> Path:
    """The same rows in five parts or more."""
    write_in_parts(whole, str(tmp_path / "manifest"))
    return tmp_path / "manifest"


def sorted_rows(manifest: Manifest) -> pa.Table:
    return manifest.table.sort_by([(name, "ascending") for name in ("split", "kind", "clip_id")])


def test_one_file_and_parts_list_the_same_rows_in_the_same_order(whole: Manifest, folder: Path, tmp_path: Path) -> None:
    write_manifest(whole, str(tmp_path / "one.parquet"))
    one, parted = open_manifest(str(tmp_path / "one.parquet")), open_manifest(str(folder))
    assert one.hash == whole.hash != parted.hash
    assert (parted.counts, parted.splits, len(parted)) == (one.counts, one.splits, len(one))
    for split, kind in one.counts:
        rows, same = (listing.rows(split, Kind(kind)) for listing in (one, parted))
        drawn = np.random.default_rng(0).integers(0, len(rows), 500)
        assert same.take(drawn).equals(rows.take(drawn))
        assert same.range(1, 10**9).equals(rows.range(1, 10**9))
        assert pa.concat_tables(same.batches(700)).equals(pa.concat_tables(rows.batches(700)))
    assert parted.split("train").equals(whole.split("train"))
    read = read_manifest(str(folder))
    assert read.table.equals(whole.table)
    assert read.hash == parted.hash
    assert len(one.rows("nowhere", Kind.VIDEO)) == len(parted.rows("nowhere", Kind.VIDEO)) == 0


def test_the_hash_does_not_depend_on_how_rows_are_cut(whole: Manifest, folder: Path, tmp_path: Path) -> None:
    rows, batches = sorted_rows(whole), [1, 700, 1023, 1024, 5340]
    indices = [
        parts.write_parts(
            str(tmp_path / str(size)),
            [rows.slice(start, size) for start in range(0, len(rows), size)] if size > 1 else [rows],
            corpus="toy",
            root="/elsewhere",
            part_rows=100 + size,
        )
        for size in batches
    ]
    assert {index.hash for index in indices} == {open_manifest(str(folder)).hash}
    assert len({len(index.parts) for index in indices}) > 2


@pytest.mark.parametrize("field", [field for field in SCHEMA if field.name not in PLACES], ids=lambda field: field.name)
def test_any_change_of_content_changes_the_digest(whole: Manifest, field: pa.Field) -> None:
    rows = whole.table.slice(0, 3).to_pylist()
    values = {"string": ["another", ""], "list<item: string>": [["another"], []]}.get(str(field.type), [7, 0])
    digests = set()
    for value in [*values, *([None] if field.nullable else [])]:
        rows[1][field.name] = value
        digests.add(rows_digest(pa.Table.from_pylist(rows, schema=SCHEMA)))
    assert len(digests) == len(values) + field.nullable


def test_the_digest_sees_where_captions_end(whole: Manifest) -> None:
    row = whole.table.slice(0, 1).to_pylist()[0]
    tables = [
        pa.Table.from_pylist([row | {"captions": captions}], schema=SCHEMA)
        for captions in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["abc", None])
    ]
    assert len(set(map(rows_digest, tables))) == len(tables)


def test_only_the_row_groups_that_are_asked_for_are_read_and_few_are_kept(folder: Path) -> None:
    of_train = [part for part in parts.read_index(str(folder)).parts if part.split == "train" and part.kind == "video"]
    cache = GroupCache(max_groups=3)
    rows = PartRows(str(folder), of_train, cache)
    rows.take(np.array([5, GROUP_ROWS - 1, 3 * GROUP_ROWS, 3 * GROUP_ROWS]))
    assert cache.num_groups_read == 2
    rows.prefetch(np.array([6, GROUP_ROWS]))
    rows.take(np.array([GROUP_ROWS + 1]))
    assert cache.num_groups_read == 3
    rows.range(0, len(rows))
    rows.range(0, len(rows))
    assert cache.num_groups_read > 3 + -(-len(rows) // GROUP_ROWS)  # the first were let go
    assert len(cache) == 3
    with pytest.raises(IndexError):
        rows.take(np.array([len(rows)]))


def test_where_parts_end_within_a_block_twice_as_many_row_groups_are_kept(whole: Manifest, tmp_path: Path) -> None:
    index = parts.write_parts(str(tmp_path), [sorted_rows(whole)], corpus="toy", root="/", part_rows=1500)
    of_train = [part for part in index.parts if part.split == "train" and part.kind == "video"]
    cache, three_blocks = GroupCache(max_groups=3), np.arange(3 * GROUP_ROWS)
    rows = PartRows(str(tmp_path), of_train, cache)
    taken = rows.take(three_blocks)
    num_groups_read = cache.num_groups_read
    assert rows.take(three_blocks).equals(taken)
    assert cache.num_groups_read == num_groups_read > 3


def first_part(folder: Path) -> Path:
    return folder / json.loads((folder / "index.json").read_text())["parts"][1]["name"]


def is_missing(folder: Path) -> None:
    first_part(folder).unlink()


def is_cut(folder: Path) -> None:
    first_part(folder).write_bytes(first_part(folder).read_bytes()[:-100])


def is_of_another_version(folder: Path) -> None:
    one = read_manifest(str(folder))
    captions = pa.array([["another"]] * len(one), SCHEMA.field("captions").type)
    table = one.table.set_column(SCHEMA.names.index("captions"), "captions", captions)
    index = write_in_parts(dataclasses.replace(one, table=table), str(folder / ".other"))
    data = (folder / ".other" / index.parts[1].name).read_bytes()
    padding = first_part(folder).stat().st_size - len(data)
    first_part(folder).write_bytes(bytes(max(0, padding)) + data)


def is_damaged(folder: Path) -> None:
    data = bytearray(first_part(folder).read_bytes())
    data[2000] ^= 1
    first_part(folder).write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (is_missing, FileNotFoundError, "a part of the manifest, is missing"),
        (is_cut, ValueError, r"is cut: the index says \d+ bytes"),
        (is_of_another_version, ValueError, "is not the part that the index names"),
        (is_damaged, ValueError, "is damaged"),
    ],
)
def test_nothing_is_read_past_a_part_that_is_not_as_it_was_written(
    folder: Path, harm: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    part = parts.read_index(str(folder)).parts[1]
    harm(folder)
    remedy = f"{part.name}.*{message}.*write the manifest anew with jobs/prepare.py"
    rows = PartRows(str(folder), [part], GroupCache(3))
    for _ in range(2):  # it is not remembered as read either
        with pytest.raises(error, match=remedy):
            rows.take(np.array([0]))
    with pytest.raises(error, match=remedy):
        read_manifest(str(folder))


def test_an_index_that_does_not_fit_is_refused(folder: Path) -> None:
    path = folder / "index.json"
    content = json.loads(path.read_text())
    for harm, message in (
        ({"format_version": 3}, "has format_version 3, and this version reads 2: use the version that wrote it"),
        ({"parts": content["parts"][1:]}, "its parts sum up to"),
        ({"parts": [{}]}, "is no index of a manifest"),
    ):
        path.write_text(json.dumps(content | harm))
        with pytest.raises(ValueError, match=message):
            open_manifest(str(folder))
    path.unlink()  # the writing ended before its end
    with pytest.raises(ValueError, match=r"is a part of a manifest whose index\.json is not beside it"):
        open_manifest(str(folder))


def test_rows_in_another_order_or_twice_are_refused(whole: Manifest, tmp_path: Path) -> None:
    rows = sorted_rows(whole)
    for tables in ([rows.slice(100), rows.slice(0, 100)], [rows.take([1, 0])], [rows.slice(0, 2), rows.slice(1, 3)]):
        with pytest.raises(ValueError, match="must come in order of split, kind and clip_id, each once"):
            parts.write_parts(str(tmp_path), tables, corpus="toy", root="/")
    elsewhere = rows.slice(0, 1).set_column(SCHEMA.names.index("split"), "split", pa.array(["zz"]))
    with pytest.raises(ValueError, match="1 clip ids occur more than once"):
        parts.write_parts(str(tmp_path), [rows, elsewhere], corpus="toy", root="/")
    with pytest.raises(ValueError, match="would have no rows"):
        parts.write_parts(str(tmp_path), [], corpus="toy", root="/")
    assert not (tmp_path / "index.json").exists()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("part-*")}


def named_by(index: parts.PartIndex) -> set[str]:
    return {part.name for part in index.parts}


def test_a_version_that_is_cut_again_keeps_the_parts_of_the_last_two_cuts(whole: Manifest, tmp_path: Path) -> None:
    first, second, third = (
        parts.write_parts(str(tmp_path), [sorted_rows(whole)], corpus="toy", root="/", part_rows=size)
        for size in (700, 500, 300)
    )
    assert names_in(tmp_path) == named_by(second) | named_by(third)
    assert not named_by(first) <= names_in(tmp_path)
    assert (third.number, third.earlier) == (1, ())
    assert read_manifest(str(tmp_path)).table.equals(whole.table)


def test_rows_that_are_added_get_parts_of_their_own_behind_the_others(whole: Manifest, tmp_path: Path) -> None:
    path, is_old = str(tmp_path / "manifest"), np.random.default_rng(0).random(len(whole)) < 0.8
    old = dataclasses.replace(whole, table=whole.table.filter(pa.array(is_old)))
    before = write_in_parts(old, path)
    numbered = open_manifest(path).rows("train", Kind.VIDEO).range(0, 10**9)
    after = write_in_parts(whole, path)
    assert after.parts[: len(before.parts)] == before.parts
    assert after.hash == write_in_parts(whole, str(tmp_path / "anew")).hash != before.hash
    listing = open_manifest(path)
    assert listing.rows("train", Kind.VIDEO).range(0, len(numbered)).equals(numbered)
    assert listing.split("train").equals(whole.split("train"))
    assert read_manifest(path).table.equals(whole.table)
    assert write_in_parts(whole, path) == after
    assert write_in_parts(old, path).parts == before.parts  # some are gone: all anew


def test_of_two_writers_the_one_that_ends_later_is_refused(whole: Manifest, folder: Path) -> None:
    rows = sorted_rows(whole)

    def tables() -> Iterator[pa.Table]:
        yield rows.slice(0, 700)
        parts.write_parts(str(folder), [rows.slice(1)], corpus="toy", root="/")

    with pytest.raises(ValueError, match=r"index\.json was written by another process since this one began"):
        parts.write_parts(str(folder), tables(), corpus="toy", root="/")
    assert len(read_manifest(str(folder))) == len(rows) - 1


def test_parts_in_a_bucket_are_read_by_ranges(whole: Manifest, folder: Path, bucket: str) -> None:
    index = write_in_parts(whole, f"{bucket}/manifest")
    there, here = open_manifest(f"{bucket}/manifest"), open_manifest(str(folder))
    drawn = np.random.default_rng(1).integers(0, there.num_clips("train", Kind.VIDEO), 300)
    assert there.hash == here.hash
    assert there.rows("train", Kind.VIDEO).take(drawn).equals(here.rows("train", Kind.VIDEO).take(drawn))
    part, cache = index.parts[1], GroupCache(3)
    storage.write_bytes_atomic(f"{bucket}/manifest/{part.name}", first_part(folder).read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{part.name} is cut"):
        PartRows(f"{bucket}/manifest", [part], cache).take(np.array([0]))


def test_clips_without_captions_are_counted_in_parts_of_any_age(tmp_path, whole):
    rows = [row | {"captions": [] if index % 3 == 0 else ["x"]} for index, row in enumerate(whole.table.to_pylist())]
    manifest = make_manifest("toy", "/", rows)
    write_in_parts(manifest, path := str(tmp_path / "manifest"))
    counts = {split: manifest.num_uncaptioned(split) for split in manifest.splits}
    assert sum(counts.values()) == -(-len(rows) // 3)
    assert {split: open_manifest(path).num_uncaptioned(split) for split in counts} == counts
    index = tmp_path / "manifest" / "index.json"
    content = json.loads(index.read_text())
    for part in content["parts"]:
        del part["num_uncaptioned"]  # as it was written before they were counted
    index.write_text(json.dumps(content))
    assert {split: open_manifest(path).num_uncaptioned(split) for split in counts} == counts
