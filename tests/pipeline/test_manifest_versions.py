"""Versions of a manifest in parts: each can be read by its number or hash while newer ones are written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.corpus import parts, versions
from pipeline.corpus.manifest import (
    SCHEMA,
    PartedManifest,
    clip_id,
    make_manifest,
    open_manifest,
    read_manifest,
    write_in_parts,
    write_manifest,
)


def rows_of(numbers: range, caption: str = "a clip") -> pa.Table:
    known = {"kind": "video", "split": "train", "width": 8, "height": 8, "fps": 8.0, "duration_seconds": 1.0}
    known |= {"num_frames": 8, "bytes": 100, "checksum": "0" * 32, "captions": [caption]}
    return pa.Table.from_pylist(
        [known | {"clip_id": clip_id("toy", str(n)), "uri": f"/v/{n}"} for n in numbers], SCHEMA
    )


def write(folder: Path | str, numbers: range, caption: str = "a clip") -> parts.PartIndex:
    return write_in_parts(make_manifest("toy", "/v", rows_of(numbers, caption)), str(folder))


@pytest.mark.parametrize("place", ["local", "bucket"])
def test_each_version_is_read_as_it_was_written(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = f"{request.getfixturevalue('bucket') if place == 'bucket' else tmp_path}/manifest"
    contents = [(range(4), "a clip"), (range(9), "a clip"), (range(2, 9), "another")]
    written = [write(folder, *content) for content in contents]
    assert [index.number for index in written] == [1, 2, 3]
    assert written[1].parts[:-1] == written[0].parts  # what is added is behind what was there
    for index, content in zip(written, contents, strict=True):
        expected = rows_of(*content).sort_by("clip_id")
        for name in (str(index.number), index.hash):
            listing = open_manifest(f"{folder}@{name}")
            assert isinstance(listing, PartedManifest)
            assert (listing.index.parts, listing.place) == (index.parts, f"{folder}@{index.number}")
            assert read_manifest(f"{folder}@{name}").table.equals(expected)
    assert open_manifest(folder).hash == written[-1].hash


def test_the_same_rows_are_the_same_version(tmp_path: Path) -> None:
    for numbers in (range(3), range(5), range(5)):
        index = write(tmp_path / "manifest", numbers)
    assert index.number == 2
    assert [version.number for version in index.earlier] == [1]


def test_a_manifest_that_knows_no_versions_has_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "manifest"
    first = write(folder, range(3))
    path = folder / "index.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith((' "version"', ' "earlier"'))))
    assert '"version"' not in path.read_text()
    assert write(folder, range(4)).number == 2
    assert open_manifest(f"{folder}@1").hash == first.hash


def test_few_versions_are_kept_and_no_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_VERSIONS", 3)
    monkeypatch.setattr(versions, "MAX_VERSIONS", 3)
    folder = tmp_path / "manifest"
    for size in range(2, 8):
        write(folder, range(size), f"of {size}")  # other captions: no part is shared
    assert len(storage.list_files(str(folder))) == 1 + 2 + 3 + 0
    assert [len(open_manifest(f"{folder}@{number}")) for number in (4, 5, 6)] == [5, 6, 7]
    refused = (
        r"has no version 3: it has 4 \(5 clips\), 5 \(6 clips\), 6 \(7 clips\); 3 are kept. Name one .*manifest@6, or"
    )
    with pytest.raises(ValueError, match=refused):
        open_manifest(f"{folder}@3")


def test_what_has_no_versions_says_so(tmp_path: Path) -> None:
    write_manifest(make_manifest("toy", "/v", rows_of(range(3))), path := str(tmp_path / "manifest.parquet"))
    with pytest.raises(
        ValueError, match=r"manifest.parquet has no versions, as manifests in parts have .*leave @2 out"
    ):
        open_manifest(f"{path}@2")
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_manifest(str(tmp_path / "nothing@2"))


def test_a_folder_may_be_called_as_a_version_is(tmp_path: Path) -> None:
    written = write(tmp_path / "day@2", range(3))
    assert open_manifest(str(tmp_path / "day@2")).hash == written.hash
    assert open_manifest(str(tmp_path / "day@2@1")).hash == written.hash


def test_an_earlier_index_that_is_gone_or_of_other_rows_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "manifest"
    first, second = write(folder, range(3)), write(folder, range(4))
    (folder / first.version.file).write_bytes((folder / "index.json").read_bytes())
    with pytest.raises(ValueError, match=f"index-00001-.*{second.hash}.*should have .*{first.hash}.*copy the whole"):
        open_manifest(f"{folder}@1")
    (folder / first.version.file).unlink()
    with pytest.raises(FileNotFoundError, match="the index of version 1, is missing: copy the whole folder"):
        open_manifest(f"{folder}@1")
