"""What people write beside their videos, read into one form.

    JSON lines · WebVid CSV · the data sets' own files · videos with .txt side-cars  ──►  Annotation per clip

The format is recognised by the content, or named. A line that cannot be read is refused with its file and number:
captions lost in silence would change what is learned.
"""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline import storage
from pipeline.corpus.caption_formats import FORMATS, format_named, recognised
from pipeline.corpus.caption_readers import Annotated, Annotation
from pipeline.corpus.text_files import read_text

LIST_COLUMNS = ("video_id", "vid_id", "video", "clip_name", "id")
"""What the column of names is called in lists that are tables."""


def read_annotations(
    sources: Sequence[str], *, split: str = "train", format: str | None = None, lists: Sequence[str] = ()
) -> list[Annotation]:
    """Return one annotation per clip (path, start, end), in order of first mention; captions of all sources together.

    A source is a file or folder, or `SPLIT=PATH`. Its own split is used where a line names none, then `split`.
    `format`: name of the format of all sources; None recognises each.
    `lists`: `SPLIT=PATH` of files that name the clips of a split; they come before all that, and a clip in none of them
    is left out. A clip that stands in two splits or two groups is refused.
    """
    listed = read_lists(lists)
    clips: dict[tuple[str, float | None, float | None], Annotation] = {}
    for source in sources:
        named, path = split_and_path(source)
        for where, annotation in _read(path, format):
            clip_split = listed.get(stem(annotation.relative_path)) if lists else annotation.split or named or split
            if clip_split is None:
                continue
            clip = replace(annotation, split=clip_split)
            key = (clip.relative_path, clip.start_seconds, clip.end_seconds)
            clips[key] = _merge(clips[key], clip, where) if key in clips else clip
    return list(clips.values())


def split_and_path(source: str) -> tuple[str | None, str]:
    """Return `SPLIT=PATH` in two; (None, source) where no split is named."""
    match = re.fullmatch(r"(\w+)=(.+)", source)
    return (match[1], match[2]) if match else (None, source)


def read_lists(lists: Sequence[str]) -> dict[str, str]:
    """Return the split of each clip by its name without suffix. ValueError for a clip in two of them."""
    splits: dict[str, str] = {}
    for source in lists:
        split, path = split_and_path(source)
        if split is None:
            raise ValueError(f"a list of clips is named SPLIT=PATH, got {source!r}")
        storage.check_readable(path)
        for name in _listed(read_text(path), path):
            if splits.setdefault(name, split) != split:
                raise ValueError(f"{path}: {name} is in the split {splits[name]} too; a clip has one split")
    return splits


def _listed(text: str, path: str) -> list[str]:
    """Return the clips of a split: a name per line, or the column of names of a table; without suffixes."""
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if names and "," in names[0]:
        rows = list(csv.DictReader(names))
        column = next((name for name in LIST_COLUMNS if name in rows[0]), None) if rows else None
        if column is None:
            raise ValueError(f"{path}: a table of clips needs one of the columns {', '.join(LIST_COLUMNS)}")
        names = [row[column] for row in rows]
    if not names:
        raise ValueError(f"{path} names no clip")
    return [stem(name) for name in names]


def stem(name: str) -> str:
    """Return what lists call a clip: its file's name without folders and without the suffix of a video."""
    return re.sub(r"\.(mp4|avi|webm|mkv|mov|m4v|3gp|mpg|mpeg|flv|wmv)$", "", posixpath.basename(name), flags=re.I)


def _read(path: str, format_name: str | None) -> Iterator[Annotated]:
    storage.check_readable(path)
    format = format_named(format_name) if format_name else FORMATS["sidecars"] if storage.is_folder(path) else None
    if format and format.read_path:
        yield from format.read_path(path)
        return
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty: name a file with captions")
    format = format or recognised(text, path)
    assert format.read
    yield from format.read(text, path)


def _merge(known: Annotation, more: Annotation, where: str) -> Annotation:
    for field in ("split", "group", "kind"):
        before, now = getattr(known, field), getattr(more, field)
        if before != now:
            raise ValueError(
                f"{where}: {known.relative_path} has {field} {now}, in an earlier line {before}; a clip has one {field}"
            )
    return replace(known, captions=known.captions + more.captions)
