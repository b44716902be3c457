"""Read caption files of any format into one form.

    tables · JSON · published data set files · videos with .txt side-cars  ──►  Annotation per clip | WrongRow

The caller names the format, or it is detected from the content; the caller names columns, or a table of known names
maps them. The notes record these decisions. A row that cannot be read is reported with its file and line.
"""

from __future__ import annotations

import fnmatch
import itertools
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline import storage
from pipeline.corpus.caption_formats import FORMATS, Format, detect_format, format_named
from pipeline.corpus.caption_readers import read_rows
from pipeline.corpus.clip_rows import Annotated, Annotation, WrongRow, attempt, is_outside
from pipeline.corpus.columns import choose
from pipeline.corpus.lists import ClipLists, read_lists
from pipeline.corpus.media import is_tar, kind_of
from pipeline.corpus.parquet_rows import is_parquet, media_column, parquet_rows
from pipeline.corpus.speech import read_speech
from pipeline.corpus.splits import SPLITS, split_named, split_of_file, split_of_folder
from pipeline.corpus.tables import Row, csv_rows, has_object_per_line, is_preamble, json_rows, pair_of
from pipeline.corpus.text_files import text_pieces

FILES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")
"""Suffixes of the caption files in a folder; .gz, .zst or .bz2 may follow."""
METADATA = re.compile(r"(.*/)?metadata\.(csv|jsonl|parquet)")
"""Metadata of Hugging Face's VideoFolder: lies beside the videos; `file_name` is relative to its folder."""
DEFAULT_SPLIT = "train"
MAX_NAMED = 20
"""Number of wrong rows that an error message lists."""
NUM_TELLING = 2**15
"""Number of leading rows of a table from which its columns are inferred."""


Key = tuple[str, float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class ParsedAnnotations:
    """The content of annotation files."""

    clips: tuple[Annotation, ...]
    """One per clip (path, start, end), in order of first mention; captions of all files together."""
    wrong: tuple[WrongRow, ...] = ()
    places: Mapping[Key, str] = field(default_factory=dict)
    """Where each clip is named first, by path, start and end."""
    notes: tuple[str, ...] = ()
    """The detected format and columns, one line per file."""


def read_annotations(
    sources: Sequence[str], *, split: str | None = None, format: str | None = None, lists: Sequence[str] = ()
) -> list[Annotation]:
    """Return the clips of `read`. ValueError, with the places, if a row is wrong or names a clip outside the root."""
    reading = read(sources, split=split, format=format, lists=lists)
    wrong = [row.reason for row in reading.wrong]
    wrong += [outside_root_message(clip) for clip in reading.clips if is_outside(clip.relative_path)]
    if wrong:
        raise ValueError("\n".join(wrong[:MAX_NAMED]))
    return [replace(clip, split=clip.split or DEFAULT_SPLIT) for clip in reading.clips]


def outside_root_message(clip: Annotation) -> str:
    """Return the error message for a clip that is not below the root."""
    remedy = "`snps3 download` fetches it" if "://" in clip.relative_path else "move it there, or name a root above it"
    return f"clip_name {clip.relative_path!r} must be a path below the corpus root: {remedy}"


def read(
    sources: Sequence[str],
    *,
    split: str | None = None,
    format: str | None = None,
    lists: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> ParsedAnnotations:
    """Return the clips and the wrong rows of `annotated_rows`. ValueError: a clip is in two splits or groups, or has
    two kinds."""
    notes: list[str] = []
    rows = annotated_rows(sources, notes.append, split=split, format=format, lists=lists, columns=columns)
    reading = merge_rows(rows)
    return replace(reading, notes=tuple(notes))


def annotated_rows(
    sources: Sequence[str],
    say: Callable[[str], None],
    *,
    split: str | None = None,
    format: str | None = None,
    lists: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> Iterator[Annotated]:
    """Yield the clips and the wrong rows of all `sources`, with their places. `say` receives the detected formats and
    columns.

    A source is a file, a folder or a pattern, or `SPLIT=PATH`. The split of a clip comes from its row, else from the
    source, else from `split`, else from a folder in its path or from the file's name; else it is empty, and the folder
    of the video decides, or it is train.
    `format`: name of the format of all sources; None detects each. `columns`: meaning → column of tables.
    `lists`: `SPLIT=PATH` of files that name the clips of a split; they override all of these, and a clip in none of
    them is left out. ValueError: no row of a file can be read, or a list names no clip.
    """
    clip_lists = ClipLists(read_lists(lists))
    for source in sources:
        named, path = split_and_path(source)
        for file, rows in _files(path, format, columns or {}, say):
            of_name = None if storage.is_folder(file) else _split_of_source(file, path)
            wrong: list[str] = []
            num_rows = 0
            for where, row in _in_splits(rows, split_named(named) if named else split, of_name):
                if isinstance(row, WrongRow):
                    wrong += [row.reason] if len(wrong) < MAX_NAMED else []
                    yield where, row
                    continue
                num_rows += 1
                if not lists:
                    yield where, row
                elif (listed := clip_lists.split_of(row.relative_path)) is not None:
                    yield where, replace(row, split=listed)
            if not num_rows and wrong:
                raise ValueError("\n".join(wrong))
    clip_lists.refuse_unused()


def merge_rows(rows: Iterable[Annotated]) -> ParsedAnnotations:
    """Merge annotations of equal path, start and end into one clip. ValueError: they differ in split, group or kind."""
    clips: dict[Key, Annotation] = {}
    places: dict[Key, str] = {}
    wrong: list[WrongRow] = []
    for where, clip in rows:
        if isinstance(clip, WrongRow):
            wrong.append(clip)
            continue
        key = (clip.relative_path, clip.start_seconds, clip.end_seconds)
        places.setdefault(key, where)
        clips[key] = merged(clips[key], clip, where) if key in clips else clip
    return ParsedAnnotations(clips=tuple(clips.values()), wrong=tuple(wrong), places=places)


def _in_splits(rows: Iterable[Annotated], of_source: str | None, of_name: str | None) -> Iterator[Annotated]:
    """Yield `rows` with their splits: from the row, else from the source, its folder or the file's name."""

    def read_split(where: str, clip: Annotation) -> Annotated:
        split = clip.split or of_source or split_of_folder(clip.relative_path) or of_name
        return where, replace(clip, split=split or "")

    yield from attempt(rows, read_split)


def _split_of_source(file: str, source: str) -> str | None:
    """Return the split in the name of a caption file, else that of its folder. If `source` is a folder or a pattern,
    the innermost folder below it that names a split counts."""
    if named := split_of_file(file):
        return named
    folder, pattern = posixpath.dirname(file), re.search(r"[*?\[]", source)
    above = source[: pattern.start()].rpartition("/")[0] if pattern else source
    folders = [posixpath.basename(folder)] if file == source else folder.removeprefix(above).split("/")
    return next((SPLITS[name.lower()] for name in reversed(folders) if name.lower() in SPLITS), None)


def split_and_path(source: str) -> tuple[str | None, str]:
    """Split `SPLIT=PATH` into split and path; without a split, return (None, source)."""
    match = re.fullmatch(r"(\w+)=(.+)", source)
    return (match[1], match[2]) if match else (None, source)


def merged(known: Annotation, more: Annotation, where: str) -> Annotation:
    """Return a clip with the captions of both. ValueError if they differ in split, group or kind."""
    for name in ("split", "group", "kind"):
        before, now = (getattr(clip, name) or DEFAULT_SPLIT for clip in (known, more))
        if before != now:
            raise ValueError(
                f"{where}: {known.relative_path} has {name} {now}, in an earlier line {before}; a clip has one {name}: "
                "remove one of the lines"
            )
    return replace(known, captions=known.captions + more.captions)


# --- files ------------------------------------------------------------------------------------------------------------


def _files(
    path: str, format_name: str | None, columns: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[tuple[str, Iterable[Annotated]]]:
    """Yield each file of a source, or the source itself, with its annotations."""
    format = format_named(format_name) if format_name else None
    if format and format.read_path:
        storage.check_readable(path)
        say(f"{path}: {format.name}")
        yield path, format.read_path(path)
        return
    for file, folder in source_files(path):
        if folder is None and storage.is_folder(file):
            side_cars = FORMATS["sidecars"].read_path
            assert side_cars
            say(f"{file}: side-cars beside the videos")
            yield file, side_cars(file)
        else:
            yield file, _below(folder or "", _of_file(file, format, columns, say))


def _below(folder: str, annotations: Iterable[Annotated]) -> Iterator[Annotated]:
    """Yield `annotations` with `folder` prepended to their paths, and with its split if they have none."""
    for where, clip in annotations:
        if folder and isinstance(clip, Annotation):
            path = posixpath.normpath(posixpath.join(folder, clip.relative_path))
            clip = replace(clip, relative_path=path, split=clip.split or split_of_folder(path) or "")
        yield where, clip


def source_files(path: str) -> list[tuple[str, str | None]]:
    """Return the files of a source, each with the folder that its paths are relative to; None: the root of the corpus.

    A pattern gives the matching files. A folder with videos gives the metadata files beside them, else itself. A folder
    without videos gives the caption files in it.
    """
    if re.search(r"[*?\[]", path) and not storage.exists(path):
        folder = re.split(r"[*?\[]", path)[0].rpartition("/")[0] or "."
        names = [storage.join(folder, name) for name in storage.list_files(folder)]
        fitting = [
            name for name in names if fnmatch.fnmatch(name, storage.join(folder, path[len(folder) :].lstrip("/")))
        ]
        if not fitting:
            raise FileNotFoundError(f"no file is called like {path}: check the pattern")
        return [(name, None) for name in fitting]
    storage.check_readable(path)
    if not storage.is_folder(path) or path.rstrip("/").endswith(".lmdb"):
        return [(path, None)]
    names = storage.list_files(path)
    if metadata := [name for name in names if METADATA.fullmatch(name)]:
        return [(storage.join(path, name), posixpath.dirname(name)) for name in metadata]
    parts = [name for name in names if re.sub(r"\.(gz|zst|bz2)$", "", name.lower()).endswith(FILES)]
    if any(kind_of(name) or is_tar(name) for name in names) or not parts or is_all_text(parts):
        return [(path, None)]
    return [(file, _folder_of(file, name)) for name in parts if (file := storage.join(path, name))]


def _folder_of(file: str, name: str) -> str | None:
    """Return the folder that the names in a file are relative to: its own if the file contains the videos."""
    return posixpath.dirname(name) if name.lower().endswith(".parquet") and media_column(file) else None


def is_all_text(names: Sequence[str]) -> bool:
    """Return whether files are side-cars whose videos are gone, rather than parts of a table."""
    return all(name.lower().endswith(".txt") for name in names)


def _of_file(
    path: str, format: Format | None, columns: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[Annotated]:
    if is_parquet(path):
        yield from _of_rows(parquet_rows(path), path, columns, say)
        return
    pieces = text_pieces(path)
    head, more = next(pieces, ""), next(pieces, None)
    if not head.strip():
        raise ValueError(f"{path} is empty: name a file with captions")
    text, is_long = head, more is not None
    if is_long and head.lstrip().startswith(("{", "[")) and not has_object_per_line(head):
        text, is_long = "".join([head, more or "", *pieces]), False
    format = format or (FORMATS["table"] if columns else detect_format(text, path))
    if format.name == "pairs" and not columns:
        columns = pair_of(next(line for line in re.split(r"[\r\n]", text) if not is_preamble(line))) or columns
    is_headless = any(column.isdigit() for column in columns.values())
    whole = itertools.chain([head, more or ""], pieces) if is_long else text
    if format.read:
        say(f"{path}: {format.name}")
        yield from format.read(whole if format.is_by_line or not is_long else "".join(whole), path)
    elif format.name == "asr":
        say(f"{path}: speech with times")
        yield from read_speech("".join(whole), path)
    else:
        is_json = format.name == "json_lines" or text.lstrip().startswith(("{", "["))
        rows = json_rows(whole, path) if is_json else csv_rows(whole, path, header=not is_headless)
        yield from _of_rows(rows, path, columns, say)


def _of_rows(
    rows: Iterator[Row], path: str, columns: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[Annotated]:
    """Yield the clips of rows, with the columns inferred from the first `NUM_TELLING` rows."""
    head = list(itertools.islice(rows, NUM_TELLING))
    if not head:
        raise ValueError(f"{path} has no rows: name a file with captions")
    fields = [row for _, row in head if not isinstance(row, WrongRow)]
    if not fields:
        yield from ((where, row) for where, row in head if isinstance(row, WrongRow))
        return
    chosen = choose(fields, columns, path)
    say("; ".join([f"{path}: {chosen.describe()}", *chosen.notes]))
    yield from read_rows(itertools.chain(head, rows), chosen)
