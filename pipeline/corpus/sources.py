"""Storage layouts of a corpus: files, tars, an LMDB, Parquet files or folders of key frames.

| layout | name of a clip | detected by |
|---|---|---|
| `files` | its path below the root | no other layout fits |
| `tar` | `SHARD.tar/member`; also the member alone if only one tar has it | `.tar` and `.tar.gz` files (WebDataset) |
| `lmdb` | its key: the stem of its path | the root ends in `.lmdb` |
| `parquet` | `FILE.parquet/` and its path, key or row | `.parquet` files with embedded videos, no video files |
| `frame_folders` | the folder of its images, without a suffix | must be named |
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.names import NameIndex
from pipeline.corpus.parquet_rows import media_column, media_places
from pipeline.corpus.text_files import is_compressed
from pipeline.records import Kind


class Layout(StrEnum):
    """How the videos of a corpus are stored."""

    FILES = "files"
    TAR = "tar"
    LMDB = "lmdb"
    FRAME_FOLDERS = "frame_folders"
    PARQUET = "parquet"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The clips below a root."""

    root: str
    layout: Layout
    places: Mapping[str, str]
    """Name → uri of all existing files or keys."""
    damaged: Mapping[str, str]
    """Uri of a packed file that could not be listed completely → error."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Name of a file or folder from which no clip can be read → reason."""
    matched: Mapping[str, str] = field(default_factory=dict)
    """Name of a clip in annotations → its name here, for inexact matches."""

    def match(self, clip_paths: Iterable[str]) -> Source:
        """Return a copy that also knows the certain inexact matches of `clip_paths`.

        Suffix, case and Unicode form are ignored, and so are folders if only one file has the name.
        """
        paths = dict.fromkeys(clip_paths)
        taken = {name for path in paths if (name := self.name(path)) in self.places}
        missing = [path for path in paths if self.name(path) not in self.places]
        if not missing or self.layout not in (Layout.FILES, Layout.TAR, Layout.PARQUET):
            return self
        matched = self._names.match([*missing, *taken])
        return replace(self, matched={path: matched[path] for path in missing if path in matched})

    def nearest(self, clip_path: str) -> str:
        """Return a hint that names the clip most similar to `clip_path`; empty if there is none."""
        return self._names.nearest(clip_path)

    @cached_property
    def _names(self) -> NameIndex:
        return NameIndex(self.places)

    def name(self, clip_path: str) -> str:
        """Return the name in this source of the clip that an annotation calls `clip_path`."""
        if clip_path in self.matched:
            return self.matched[clip_path]
        match self.layout:
            case Layout.LMDB if clip_path not in self.places:
                return posixpath.splitext(posixpath.basename(clip_path))[0]
            case Layout.FRAME_FOLDERS:
                return posixpath.splitext(clip_path)[0]
            case Layout.TAR:
                return self._tar_of_member.get(clip_path, clip_path)
            case Layout.FILES if clip_path not in self.places:
                # readers append .mp4 to names without a suffix, and take whatever follows a dot for a suffix
                others = (clip_path.removesuffix(".mp4"), f"{clip_path}.mp4")
                return next((name for name in others if name in self.places), clip_path)
            case _:
                return clip_path

    def uri(self, clip_path: str) -> str:
        """Return the uri of a clip; for a missing one, the uri where it is expected."""
        name = self.name(clip_path)
        return self.places.get(name) or storage.join(self.root, name)

    @cached_property
    def _tar_of_member(self) -> dict[str, str]:
        """Return member → its name with the tar, for members that occur in only one tar."""
        tar_suffix = re.compile(r"(?i)\.(?:tar(?:\.\w+)?|tgz)/")
        members = [(tar_suffix.split(name, maxsplit=1)[-1], name) for name in self.places]
        times = Counter(member for member, _ in members)
        return {member: name for member, name in members if times[member] == 1}


def open_source(root: str, layout: Layout | None = None, files: Sequence[str] | None = None) -> Source:
    """List the clips below `root`. `layout`: None detects it from the files; `frame_folders` must be named.

    `files`: the files below the root, if they are already listed.
    """
    if layout == Layout.LMDB or (layout is None and media.is_lmdb(root)):
        places = {key: media.key_uri(root, key) for key in media.keys(root)}
        return Source(root=root, layout=Layout.LMDB, places=places, damaged={})
    paths = storage.list_files(root) if files is None else files
    skipped = find_skipped(root, paths)
    files = [path for path in paths if path not in skipped and not storage.is_surrogate(path)]
    return replace(_with_layout(root, layout, files), skipped=skipped)


def find_skipped(root: str, paths: Iterable[str]) -> dict[str, str]:
    """Return path → reason, for the `paths` below `root` (as in `storage.file_versions`) that give no clip.

    Bytes that are not UTF-8 appear as `\\xe9` in the names.
    """
    reasons = {}
    for path in paths:
        if storage.is_surrogate(path):
            if not (media.kind_of(path) or media.is_tar(path)):
                continue
            shown = os.fsencode(path).decode(errors="backslashreplace")
            reasons[shown] = "its name is not UTF-8, which a manifest needs: rename the file, for example with convmv"
        elif not storage.is_remote(root) and os.path.islink(local := storage.join(root, path)) and os.path.isdir(local):
            reasons[path] = "a link to a folder, which is not followed: move or mount the folder there instead"
    return reasons


def _with_layout(root: str, layout: Layout | None, files: Sequence[str]) -> Source:
    tars = [name for name in files if media.is_tar(name)]
    if not any(name.lower().endswith(".tar") for name in tars) and any(map(media.kind_of, files)):
        tars = []  # an archive beside the videos
    if layout == Layout.TAR or (layout is None and tars):
        return _tars(root, tars)
    tables = [name for name in files if name.lower().endswith(".parquet")]
    if layout == Layout.PARQUET or (layout is None and tables and not any(map(media.kind_of, files))):
        places = {
            f"{name}/{row}": media.uri_with_name(uri, f"{name}/{row}")
            for name in tables
            if media_column(path := storage.join(root, name))
            for row, uri in media_places(path).items()
        }
        if places or layout:
            return Source(root=root, layout=Layout.PARQUET, places=places, damaged={})
    if layout == Layout.FRAME_FOLDERS:
        folders = {posixpath.dirname(name) for name in files if media.kind_of(name) == Kind.IMAGE} - {""}
        places = {folder: storage.join(root, folder) + "/" for folder in sorted(folders)}
        return Source(root=root, layout=layout, places=places, damaged={})
    places = {name: storage.join(root, name) for name in files}
    return Source(root=root, layout=Layout.FILES, places=places, damaged={})


def _tars(root: str, tars: Sequence[str]) -> Source:
    places, damaged = {}, {}
    for tar in tars:
        path = storage.join(root, tar)
        is_packed = is_compressed(storage.read_bytes(path, 0, 8))
        try:
            members, fault = (
                _members(io.BytesIO(media.unpacked(path))) if is_packed else storage.read_with(path, _members)
            )
        except (OSError, ValueError) as error:
            if storage.is_remote(path) and not is_packed:
                raise
            members, fault = [], str(error)
        for member, start, stop in members:
            name = f"{tar}/{member}"
            places[name] = media.uri_with_name(
                media.range_uri(path, start, stop, "unpacked" if is_packed else "bytes"), name
            )
        if fault:
            damaged[path] = f"the tar cannot be listed to its end: {fault}"
    return Source(root=root, layout=Layout.TAR, places=places, damaged=damaged)


def _members(file: Any) -> tuple[list[tuple[str, int, int]], str | None]:
    """Return name, start and end of each file in a tar, and the error that ended the listing (None: it is complete)."""
    places: dict[str, tuple[int, int]] = {}
    fault = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if member.islnk() or member.issym():
                    folder = "" if member.islnk() else posixpath.dirname(name)
                    target = posixpath.normpath(posixpath.join(folder, member.linkname))
                    if target in places:
                        places[name] = places[target]
                elif member.isfile() and not _is_of_finder(name):
                    places[name] = (member.offset_data, member.offset_data + member.size)
    except tarfile.TarError as error:
        fault = str(error)
    return [(name, start, stop) for name, (start, stop) in places.items()], fault


def _is_of_finder(name: str) -> bool:
    """Return whether a member is macOS metadata: ._ files, .DS_Store, __MACOSX."""
    return posixpath.basename(name).startswith(("._", ".DS_Store")) or name.startswith("__MACOSX/")
