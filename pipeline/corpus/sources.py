"""What the root of a corpus is made of: files, tars, an LMDB or folders of key frames.

| layout | name of a clip | told by |
|---|---|---|
| `files` | its path below the root | nothing else fits |
| `tar` | `SHARD.tar/member`; the member alone where only one tar has it | `.tar` files below the root (WebDataset) |
| `lmdb` | its key; of a path, the stem | the root ends in `.lmdb` |
| `frame_folders` | the folder of its images, without a suffix | has to be said |
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import IO

from pipeline import storage
from pipeline.corpus import media
from pipeline.records import Kind


class Layout(StrEnum):
    """How the videos of a corpus are kept."""

    FILES = "files"
    TAR = "tar"
    LMDB = "lmdb"
    FRAME_FOLDERS = "frame_folders"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The clips below a root."""

    root: str
    layout: Layout
    places: Mapping[str, str]
    """Name → uri of all that is there."""
    damaged: Mapping[str, str]
    """Uri of a packed file that could not be listed to its end → what is wrong with it."""
    passed_over: Mapping[str, str] = field(default_factory=dict)
    """Name of a file or folder that no clip can be read from → why."""

    def name(self, clip_path: str) -> str:
        """The name under which a clip is kept that an annotation calls `clip_path`."""
        match self.layout:
            case Layout.LMDB if clip_path not in self.places:
                return posixpath.splitext(posixpath.basename(clip_path))[0]
            case Layout.FRAME_FOLDERS:
                return posixpath.splitext(clip_path)[0]
            case Layout.TAR:
                return self._tar_of_member.get(clip_path, clip_path)
            case Layout.FILES if clip_path not in self.places:
                # readers give names without a suffix .mp4, and take what follows a dot for one
                others = (clip_path.removesuffix(".mp4"), f"{clip_path}.mp4")
                return next((name for name in others if name in self.places), clip_path)
            case _:
                return clip_path

    def uri(self, clip_path: str) -> str:
        """Where a clip lies; for one that is not there, where it should."""
        name = self.name(clip_path)
        return self.places.get(name) or storage.join(self.root, name)

    @cached_property
    def _tar_of_member(self) -> dict[str, str]:
        """Member → its name with the tar, for members that only one tar has."""
        members = [(name.partition(".tar/")[2], name) for name in self.places]
        times = Counter(member for member, _ in members)
        return {member: name for member, name in members if times[member] == 1}


def open_source(root: str, layout: Layout | None = None, files: Sequence[str] | None = None) -> Source:
    """What lies below `root`. The layout is told by what is there; `frame_folders` has to be named.

    `files` are the files below the root, if they have been listed before.
    """
    if layout == Layout.LMDB or (layout is None and media.is_lmdb(root)):
        places = {key: media.keyed(root, key) for key in media.keys(root)}
        return Source(root=root, layout=Layout.LMDB, places=places, damaged={})
    paths = storage.list_files(root) if files is None else files
    skipped = passed_over(root, paths)
    files = [path for path in paths if path not in skipped and not storage.is_surrogate(path)]
    return replace(_with_layout(root, layout, files), passed_over=skipped)


def passed_over(root: str, paths: Iterable[str]) -> dict[str, str]:
    """Return of `paths` below `root`, as `storage.fingerprints` has them, those that no clip can be read from → why.

    In the names, bytes that are not UTF-8 stand as `\\xe9`.
    """
    found = {}
    for path in paths:
        if storage.is_surrogate(path):
            if not (media.kind_of(path) or path.endswith(".tar")):
                continue
            shown = os.fsencode(path).decode(errors="backslashreplace")
            found[shown] = "its name is not UTF-8, which a manifest needs: rename the file, for example with convmv"
        elif not storage.is_remote(root) and os.path.islink(local := storage.join(root, path)) and os.path.isdir(local):
            found[path] = "a link to a folder, which is not followed: move or mount the folder there instead"
    return found


def _with_layout(root: str, layout: Layout | None, files: Sequence[str]) -> Source:
    tars = [name for name in files if name.endswith(".tar")]
    if layout == Layout.TAR or (layout is None and tars):
        return _tars(root, tars)
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
        try:
            members, fault = storage.read_with(path, _members)
        except OSError as error:
            if storage.is_remote(path):
                raise
            members, fault = [], str(error)
        for member, start, stop in members:
            name = f"{tar}/{member}"
            places[name] = media.named(media.inside(path, start, stop), name)
        if fault:
            damaged[path] = f"the tar cannot be listed to its end: {fault}"
    return Source(root=root, layout=Layout.TAR, places=places, damaged=damaged)


def _members(file: IO[bytes]) -> tuple[list[tuple[str, int, int]], str | None]:
    """Name, start and end of each file in a tar, and what is wrong with the tar."""
    found = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isfile():
                    found.append((member.name, member.offset_data, member.offset_data + member.size))
    except tarfile.TarError as error:
        return found, str(error)
    return found, None
