from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import fsspec
import pytest

from pipeline import storage


def test_what_is_written_is_read(tmp_path):
    path = str(tmp_path / "new" / "folder" / "file.bin")
    storage.write_bytes_atomic(path, b"0123456789")
    assert storage.read_bytes(path) == b"0123456789"
    assert storage.read_bytes(path, 2, 5) == b"234"
    storage.write_bytes_atomic(path, b"")
    assert storage.read_bytes(path) == b""
    storage.remove(path)
    storage.remove(path)
    assert not storage.exists(path)


def test_a_write_leaves_no_part_behind(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    storage.write_bytes_atomic(str(path), b"before")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes_atomic(str(path), b"after")
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["file.bin"]


def test_written_files_have_the_usual_rights(tmp_path):
    storage.write_bytes_atomic(str(tmp_path / "ours"), b"")
    (tmp_path / "usual").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_a_list_is_relative_sorted_and_without_hidden_files(tmp_path):
    for name in ("b/2.mp4", "a.mp4", "b/1.mp4", ".hidden", "b/.cache/x.mp4"):
        storage.write_bytes_atomic(str(tmp_path / name), b"x")
    assert storage.list_files(str(tmp_path)) == ["a.mp4", "b/1.mp4", "b/2.mp4"]
    assert storage.list_files(str(tmp_path) + "/") == ["a.mp4", "b/1.mp4", "b/2.mp4"]


def test_other_stores_go_the_same_way():
    storage.write_bytes_atomic("memory://bucket/b/file.bin", b"0123")
    storage.write_bytes_atomic("memory://bucket/a.bin", b"")
    assert storage.is_remote("memory://bucket")
    assert storage.list_files("memory://bucket") == ["a.bin", "b/file.bin"]
    assert storage.read_bytes("memory://bucket/b/file.bin", 1, 3) == b"12"
    storage.check_readable("memory://bucket")
    storage.check_writable("memory://bucket")
    assert storage.list_files("memory://bucket") == ["a.bin", "b/file.bin"]
    with pytest.raises(
        FileNotFoundError, match="memory://elsewhere/x does not exist: check that there is a bucket 'elsewhere'"
    ):
        storage.read_bytes("memory://elsewhere/x")


def test_paths():
    assert storage.absolute("s3://bucket/videos/") == "s3://bucket/videos"
    assert storage.absolute("/tmp/../tmp/x/") == "/tmp/x"
    assert storage.join("s3://bucket/", "/a.mp4") == "s3://bucket/a.mp4"
    assert storage.relative_to("/videos/b/1.mp4", "/videos/") == "b/1.mp4"
    with pytest.raises(ValueError, match="does not lie below /videos"):
        storage.relative_to("/videos2/1.mp4", "/videos")


def test_missing_files_and_folders_are_named(tmp_path):
    missing = str(tmp_path / "no" / "such.mp4")
    for check in (storage.check_readable, storage.read_bytes):
        with pytest.raises(
            FileNotFoundError, match=rf"{missing} does not exist \(the nearest folder that does is {tmp_path}\)"
        ):
            check(missing)


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder: choose another path"):
        storage.check_writable(str(tmp_path / "file" / "below"))
    storage.check_writable(str(tmp_path / "made"))
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_rights_that_are_missing_are_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="give this user the right"):
        storage.check_writable(str(tmp_path / "closed"))


def test_an_unknown_store_is_refused():
    with pytest.raises(ValueError, match=r"ftpx://host/x: .* use a local path or s3://bucket/key"):
        storage.check_readable("ftpx://host/x")


def test_every_file_of_a_folder_is_uploaded(tmp_path):
    contents = {"a.json": b"{}", "inner/b.bin": b"\0\1", "z": b""}
    for name, content in contents.items():
        storage.write_bytes_atomic(str(tmp_path / "from" / name), content)
    storage.upload_folder(str(tmp_path / "from"), str(tmp_path / "to"))
    assert {
        name: storage.read_bytes(str(tmp_path / "to" / name)) for name in storage.list_files(str(tmp_path / "to"))
    } == contents


def test_a_folder_is_listed_in_order_as_fsspec_does(tmp_path: Path) -> None:
    for name in ("a/x/f.mp4", "a.b", "a/x.mp4", "é", ".hidden/x", "a/.x", "ab/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to(tmp_path / "ab")
    (tmp_path / "other").symlink_to(tmp_path / "a.b")
    found = fsspec.filesystem("file").find(str(tmp_path), detail=True)
    theirs = {path.removeprefix(f"{tmp_path}/"): f"{of['size']} {of['mtime']}" for path, of in sorted(found.items())}
    listed = list(storage.iter_versions(str(tmp_path)))
    assert listed == [(path, version) for path, version in theirs.items() if not re.search(r"(^|/)\.", path)]
    assert [path for path, _ in listed] == ["a.b", "a/x.mp4", "a/x/f.mp4", "ab/c", "link", "other", "é"]
    assert not list(storage.iter_versions(str(tmp_path / "nowhere")))
