"""The formats in which people write captions beside their videos: how each is named, recognised and read.

To add one: a reader in caption_readers.py and an entry in `FORMATS`. From outside this tree, a reader or a `Format`:
`--format package.module:Name`, or an entry point of the group `snps3.datasets`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pipeline.corpus import caption_readers
from pipeline.corpus.caption_readers import LSMDC_COLUMNS, MSVD_LINE, Annotated

ENTRY_POINTS = "snps3.datasets"


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a format is recognised by."""

    line: str
    """The first line that is not blank."""
    value: Any
    """JSON of that line, or else of the whole file; None: neither is JSON."""

    @property
    def columns(self) -> set[str]:
        """The header, if this is a CSV table."""
        return {column.strip() for column in self.line.split(",")}

    def lists(self, *keys: str) -> bool:
        """Whether the file is a JSON list of objects with these keys."""
        return isinstance(self.value, list) and bool(self.value) and set(keys) <= set(self.value[0])

    def is_by_video(self) -> bool:
        """Whether the file is a JSON object of objects with `sentences`."""
        items = self.value.values() if isinstance(self.value, dict) else ()
        return bool(items) and all(isinstance(item, dict) and "sentences" in item for item in items)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way in which captions are written."""

    name: str
    read: Callable[[str, str], Iterator[Annotated]] | None = None
    """Of the text of a file and its path, the annotations."""
    read_path: Callable[[str], Iterator[Annotated]] | None = None
    """In its place where the captions are in more than one file: of a path, the annotations."""
    fits: Callable[[Head], bool] = lambda head: False
    """Whether a file is recognised as of this format."""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        format.name: format
        for format in (
            Format(
                name="json_lines", read=caption_readers.read_json_lines, fits=lambda head: head.line.startswith("{")
            ),
            Format(
                name="webvid_csv",
                read=caption_readers.read_webvid,
                fits=lambda head: {"videoid", "name", "page_dir"} <= head.columns,
            ),
            Format(
                name="msrvtt_json",
                read=caption_readers.read_msrvtt,
                fits=lambda head: isinstance(head.value, dict) and {"videos", "sentences"} <= head.value.keys(),
            ),
            Format(
                name="msrvtt_csv",
                read=caption_readers.read_msrvtt_csv,
                fits=lambda head: {"video_id", "sentence"} <= head.columns,
            ),
            Format(
                name="didemo", read=caption_readers.read_didemo, fits=lambda head: head.lists("video", "description")
            ),
            Format(name="activitynet", read=caption_readers.read_activitynet, fits=Head.is_by_video),
            Format(name="vatex", read=caption_readers.read_vatex, fits=lambda head: head.lists("videoID", "enCap")),
            Format(
                name="lsmdc",
                read=caption_readers.read_lsmdc,
                fits=lambda head: head.line.count("\t") >= LSMDC_COLUMNS - 1,
            ),
            Format(
                name="msvd",
                read=caption_readers.read_msvd,
                fits=lambda head: bool(MSVD_LINE.fullmatch(head.line.strip())),
            ),
            Format(name="sidecars", read_path=caption_readers.read_sidecars),
            Format(name="asr", read_path=caption_readers.read_asr),
        )
    }
)
"""By the name that `--format` takes; the most general one first, which is tried last."""


def recognised(text: str, path: str) -> Format:
    """Return the format of a file's text. ValueError if it is none of ours."""
    line = text.lstrip().split("\n", 1)[0]
    head = Head(line=line, value=_json_or_none(line) or _json_or_none(text))
    if line.startswith("[") and not (isinstance(head.value, list) and head.value and isinstance(head.value[0], dict)):
        raise ValueError(f"{path}: no JSON list of objects ({line[:60]!r})")
    if format := next((format for format in reversed(tuple(FORMATS.values())) if format.fits(head)), None):
        return format
    if line.startswith("["):
        columns = sorted(head.value[0])
        raise ValueError(f"{path}: cannot tell the format of a list of {columns}; name it with --format")
    raise ValueError(
        f"{path}: cannot tell the format from {line[:60]!r}; it may be {', '.join(FORMATS)}, name it with --format"
    )


def _json_or_none(text: str) -> Any:
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def format_named(name: str) -> Format:
    """Return a format by its name, that of an installed data set, or `package.module:Name`. ValueError for none."""
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
    plugin: Any = getattr(loaded, "format", loaded)  # of a whole Dataset of jobs/run/datasets.py
    if isinstance(plugin, str):
        return format_named(plugin)
    if isinstance(plugin, Format):
        return plugin
    if not inspect.isfunction(plugin):
        raise ValueError(f"format {name} must be a Format, or a reader as in pipeline/corpus/caption_readers.py")
    return Format(name=name, read=plugin)


@functools.cache
def installed_datasets() -> Mapping[str, Any]:
    """Return what installed packages name under the entry points `snps3.datasets`, by name."""
    return {point.name: point.load() for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
