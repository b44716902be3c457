"""The formats of caption files: how each is named, detected and read.

To add one: a reader in caption_readers.py and an entry in `FORMATS`. From outside this tree, a reader or a `Format`:
`--format package.module:Name`, or an entry point of the group `snps3.datasets`.
"""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.metadata
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pipeline.corpus import caption_readers, sidecars, speech
from pipeline.corpus.caption_readers import LSMDC_COLUMNS, MOMENT_LINE, MSVD_LINE
from pipeline.corpus.clip_rows import Annotated
from pipeline.corpus.columns import plain
from pipeline.corpus.media import kind_of
from pipeline.corpus.tables import delimiter_of, is_preamble, pair_of

ENTRY_POINTS = "snps3.datasets"
_TIMED = frozenset({"start", "end", "text"})


@dataclass(frozen=True, kw_only=True)
class Head:
    """The start of a file, from which its format is detected."""

    line: str
    """The first line that is neither blank nor a comment (#)."""
    value: Any
    """JSON value of that line, else of the whole file; None: neither is JSON."""

    @property
    def columns(self) -> set[str]:
        """Return the normalised column names (`plain`) if this is a CSV table, else an empty set."""
        mark = delimiter_of(self.line)
        return {plain(name) for name in next(csv.reader([self.line], delimiter=mark))} if mark else set()

    def lists(self, *keys: str) -> bool:
        """Return whether the file is a JSON list of objects with these keys."""
        items = self.value if isinstance(self.value, list) and self.value else [None]
        return isinstance(items[0], dict) and set(keys) <= set(items[0])

    def has(self, **types: type) -> bool:
        """Return whether the file is a JSON object with values of these types."""
        return isinstance(self.value, dict) and all(isinstance(self.value.get(k), v) for k, v in types.items())

    def is_by_video(self, *keys: str) -> bool:
        """Return whether the file is a JSON object of objects with these keys."""
        items = self.value.values() if isinstance(self.value, dict) else ()
        return bool(items) and all(isinstance(item, dict) and set(keys) <= item.keys() for item in items)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of caption files."""

    name: str
    read: Callable[[Any, str], Iterator[Annotated]] | None = None
    """(text, path) → annotations. None, with `read_path` None too: a table, which is read by its columns."""
    is_by_line: bool = False
    """Whether `read` also accepts the text in pieces of whole lines, so that a large file is never in memory."""
    read_path: Callable[[str], Iterator[Annotated]] | None = None
    """path → annotations; used in place of `read` where the captions may be in several files."""
    fits: Callable[[Head], bool] = lambda head: False
    """Whether a file has this format."""


def _is_rows(head: Head) -> bool:
    return delimiter_of(head.line) is not None or isinstance(head.value, list | dict)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        format.name: format
        for format in (
            Format(name="table", fits=_is_rows),
            Format(name="pairs", fits=lambda head: pair_of(head.line) is not None),
            Format(name="json_lines", fits=lambda head: head.line.startswith("{")),
            Format(
                name="webvid_csv",
                read=caption_readers.read_webvid,
                is_by_line=True,
                fits=lambda head: {"videoid", "name", "pagedir"} <= head.columns,
            ),
            Format(
                name="msrvtt_json",
                read=caption_readers.read_msrvtt,
                fits=lambda head: head.has(videos=list, sentences=list),
            ),
            Format(
                name="msrvtt_csv",
                read=caption_readers.read_msrvtt_csv,
                fits=lambda head: (
                    {"videoid", "sentence", "key"} <= head.columns or head.columns == {"videoid", "sentence"}
                ),
            ),
            Format(
                name="msvd_corpus",
                read=caption_readers.read_msvd_corpus,
                fits=lambda head: {"videoid", "start", "end", "language", "description"} <= head.columns,
            ),
            Format(
                name="didemo",
                read=caption_readers.read_didemo,
                fits=lambda head: head.lists("video", "description", "times"),
            ),
            Format(
                name="activitynet",
                read=caption_readers.read_activitynet,
                fits=lambda head: head.is_by_video("sentences"),
            ),
            Format(name="vatex", read=caption_readers.read_vatex, fits=lambda head: head.lists("videoID", "enCap")),
            Format(
                name="coco",
                read=caption_readers.read_coco,
                fits=lambda head: head.has(images=list, annotations=list) or head.has(videos=list, annotations=list),
            ),
            Format(
                name="karpathy",
                read=caption_readers.read_karpathy,
                fits=lambda head: head.has(images=list) and "sentences" in (head.value["images"] or [{}])[0],
            ),
            Format(
                name="visual_genome",
                read=caption_readers.read_visual_genome,
                fits=lambda head: head.lists("regions"),
            ),
            Format(
                name="lsmdc",
                read=caption_readers.read_lsmdc,
                fits=lambda head: head.line.count("\t") >= LSMDC_COLUMNS - 1 and delimiter_of(head.line) is None,
            ),
            Format(
                name="msvd",
                read=caption_readers.read_msvd,
                fits=lambda head: bool(MSVD_LINE.fullmatch(head.line.strip())),
            ),
            Format(
                name="charades_sta",
                read=caption_readers.read_charades_sta,
                fits=lambda head: bool(MOMENT_LINE.fullmatch(head.line.strip())),
            ),
            Format(name="sidecars", read_path=sidecars.read_sidecars),
            Format(
                name="asr",
                read_path=speech.read_asr,
                fits=lambda head: head.is_by_video(*_TIMED) or head.columns == _TIMED,
            ),
        )
    }
)
"""Name, as `--format` takes it → format. The most general come first, because detection tries them in reverse order."""


def detect_format(text: str, path: str) -> Format:
    """Detect the format of a file from its text. ValueError if none of `FORMATS` fits."""
    line = next((line for line in re.split(r"[\r\n]", text) if not is_preamble(line)), "").strip()
    head = Head(line=line, value=_json_or_none(line) or _json_or_none(text))
    if format := next((format for format in reversed(tuple(FORMATS.values())) if format.fits(head)), None):
        return format
    if not re.search(r"[\s,;|]", line) and (kind_of(line) or "://" in line):
        raise ValueError(
            f"{path}: a list of names without captions: it says which clips are in a split, --lists SPLIT={path}, "
            "beside the file with the captions"
        )
    if line.startswith("["):
        raise ValueError(f"{path}: no JSON list of objects ({_fault(text)}): mend it, or copy it again")
    raise ValueError(
        f"{path}: cannot tell the format from {line[:60]!r}; it may be {', '.join(FORMATS)}, name it with --format; of "
        "a table without a header, say which column is what, as in --columns clip=1 caption=2, and of one with other "
        "names --columns clip=NAME caption=NAME"
    )


def _fault(text: str) -> str:
    """Return why a text is not valid JSON."""
    try:
        json.loads(text)
    except ValueError as error:
        return str(error)
    return text.lstrip()[:60]


def _json_or_none(text: str) -> Any:
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def format_named(name: str) -> Format:
    """Return a format by its name, that of an installed data set, or `package.module:Name`. ValueError if unknown."""
    if name in FORMATS:
        return FORMATS[name]
    module, _, attribute = name.partition(":")
    try:
        loaded = getattr(importlib.import_module(module), attribute) if attribute else installed_datasets()[name]
    except KeyError:
        raise ValueError(
            f"format must be one of {', '.join((*FORMATS, *installed_datasets()))}, or package.module:Name of a "
            f"reader outside, got {name!r}"
        ) from None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"format {name}: {error}") from error
    plugin: Any = getattr(loaded, "format", loaded)  # it may be a Dataset of jobs/run/datasets.py
    if isinstance(plugin, str):
        return format_named(plugin)
    if isinstance(plugin, Format):
        return plugin
    if not inspect.isfunction(plugin):
        raise ValueError(f"format {name} must be a Format, or a reader as in pipeline/corpus/caption_readers.py")
    return Format(name=name, read=plugin)


@functools.cache
def installed_datasets() -> Mapping[str, Any]:
    """Return name → object for the entry points `snps3.datasets` of all installed packages."""
    return {point.name: point.load() for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
