"""Parse a row of an annotation file into a clip with its captions, or into a wrong row.

raw name, captions and times  ──►  Annotation | WrongRow
"""

from __future__ import annotations

import ast
import datetime
import json
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.corpus.media import kind_of
from pipeline.records import Kind

NO_WORDS = frozenset({"nan", "none", "null", "<na>", "n/a", "#n/a", r"\n"})
"""Spellings of a missing value, in lower case: of Python, JSON, pandas, spreadsheets, databases (`\\N`)."""
NOT_AVAILABLE = "NA"
"""R's spelling of a missing value; only in capitals, since "na" is a word in some languages."""
TEXT_KEYS = ("caption", "text", "sentence", "raw", "phrase", "description", "content", "value")
"""Keys under which an object in a list of captions may have its text."""
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ARRAY = re.compile(rf"\[(?:{_QUOTED})(?:\s+(?:{_QUOTED}))+\]")
"""Quoted texts with only whitespace between them: how NumPy prints an array."""
_YOUTUBE = re.compile(r"(www\.|m\.)?(youtube\.com|youtu\.be)")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A clip and its captions, which may be none."""

    relative_path: str
    """Path below the corpus root, with forward slashes; if `is_outside`, a URL or path that a clip below the root may
    be matched with."""
    captions: tuple[str, ...]
    kind: Kind
    split: str = ""
    """Empty where the file names none."""
    group: str | None = None
    """Clips of one group are compared only with each other in a test."""
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class WrongRow:
    """A row that cannot be read, for the ledger."""

    where: str
    reason: str
    """Includes the place and the remedy."""


Annotated = tuple[str, Annotation | WrongRow]
"""Place in a file, for messages, and the row there."""


def attempt(rows: Iterable[tuple[str, T | WrongRow]], read: Callable[[str, T], Annotated]) -> Iterator[Annotated]:
    """Yield `read(place, row)` for each row, or a `WrongRow` if it raises ValueError."""
    for where, row in rows:
        if isinstance(row, WrongRow):
            yield where, row
            continue
        try:
            yield read(where, row)
        except ValueError as error:
            yield where, WrongRow(where=where, reason=str(error))


def annotated(
    where: str,
    name: str,
    captions: Iterable[Any],
    *,
    kind: Kind | None = None,
    split: str = "",
    group: str | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Annotated:
    """Return the place and the annotation of a clip. ValueError: a caption is not text, or start ≥ end.

    `name`: path below the corpus root, or a URL; without a suffix it gets .mp4, as in the published code.
    """
    path = path_of(name)
    if path in (".", ".."):
        raise ValueError(f"{where}: clip_name {name!r} must be a path below the corpus root")
    if start is not None and end is not None and start >= end:
        raise ValueError(f"{where}: a clip needs start < end, got start {start} and end {end}")
    path = path if posixpath.splitext(path)[1] else f"{path}.mp4"
    try:
        texts = [text for caption in captions for text in captions_of(caption)]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return where, Annotation(
        relative_path=path,
        captions=tuple(texts),
        kind=kind or kind_of(path) or Kind.VIDEO,
        split=split,
        group=group,
        start_seconds=start,
        end_seconds=end,
    )


def path_of(name: str) -> str:
    """Normalise the name of a clip to a path: a URL loses its query, a YouTube URL becomes the video id."""
    if "://" in name:
        url = urlsplit(name)
        if _YOUTUBE.fullmatch(url.netloc):
            return parse_qs(url.query).get("v", [posixpath.basename(url.path)])[0]
        path = url.path if url.scheme in ("http", "https") else name.partition("://")[2].partition("/")[2]
        return f"{url.scheme}://{url.netloc}/{unquote(path).lstrip('/')}"
    return posixpath.normpath(name.replace("\\", "/"))


def without_queries(text: str) -> str:
    """Remove the queries of all URLs from a message: they may contain signatures."""
    return re.sub(r"(\w+://[^\s?\"']+)\?[^\s\"',;:]+", r"\1?…", text)


def is_outside(path: str) -> bool:
    """Return whether `path` is not below a root: absolute, above it, or a URL."""
    return path.startswith(("/", "../")) or "://" in path or bool(re.match(r"[A-Za-z]:/", path))


def is_nothing(value: Any) -> bool:
    """Return whether a value is missing: null, NaN, an empty text or a spelling of these."""
    if isinstance(value, str):
        return not value.strip() or value.strip().lower() in NO_WORDS or value.strip() == NOT_AVAILABLE
    return value is None or (isinstance(value, float) and math.isnan(value))


def captions_of(value: Any) -> list[str]:
    """Return the captions in a value: a text, an object with one, a list of both, or such a list written as text.

    Objects whose keys are numbers are lists. Runs of whitespace become one blank. ValueError for anything else.
    """
    if is_nothing(value):
        return []
    if isinstance(value, str):
        listed = _list_in(value)
        return captions_of(listed) if listed is not None else [" ".join(value.split())]
    if isinstance(value, list):
        if all(isinstance(item, list) and all(isinstance(word, str) for word in item) for item in value) and value:
            value = [" ".join(words) for words in value]  # MSVD's pickles have a list of words per sentence
        return [text for item in value for text in captions_of(_words_of(item))]
    if isinstance(value, dict) and value:
        if all(isinstance(name, str) and name.isdecimal() for name in value):
            return captions_of([value[name] for name in sorted(value, key=int)])
        return captions_of(_words_of(value))
    raise ValueError(f"a caption must be text or a list of texts, got {value!r}: write it as one")


def _words_of(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    key = next((key for key in TEXT_KEYS if isinstance(item.get(key), str)), None)
    if key is None:
        raise ValueError(
            f"a caption must be text, or an object with {' or '.join(TEXT_KEYS[:3])}, got {item!r}: write the text in "
            "its place, or a list of texts"
        )
    return item[key]


def _list_in(text: str) -> list[Any] | None:
    """Parse a list written as text by JSON, Python or NumPy; return None if the text is not a list."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    if _ARRAY.fullmatch(text):  # Python would join texts without commas between them
        return [ast.literal_eval(item) for item in re.findall(_QUOTED, text)]
    for load in (json.loads, ast.literal_eval):
        try:
            value = load(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list):
            return value
    return None


def items_of(value: Any) -> Any:
    """Return the parsed list if `value` is a list written as text, else `value` itself."""
    listed = _list_in(value) if isinstance(value, str) else None
    return value if listed is None else listed


def seconds_of(value: Any, name: str, where: str, *, per_second: float = 1.0) -> float | None:
    """Convert a time to seconds; None if it is missing. ValueError: it is not a time.

    `value`: a number, `per_second` of them to a second, also as text; H:MM:SS; or an object of `datetime`.
    """
    if is_nothing(value):
        return None
    if isinstance(value, datetime.time):
        value = datetime.datetime.combine(datetime.date.min, value) - datetime.datetime.min
    if isinstance(value, datetime.timedelta):
        value, per_second = value.total_seconds(), 1.0
    number: Any = float(value) if isinstance(value, Decimal) else value
    if isinstance(value, str):
        match = _CLOCK.fullmatch(value.strip())
        if match:
            hours, minutes, seconds = match.groups()
            return round(int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", ".")), 6)
        with suppress(ValueError):
            number = float(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
        raise ValueError(
            f"{where}: {name} must be a number of seconds from 0 on, such as 1.5, or 00:00:01.5, got {value!r}"
        )
    return float(number) / per_second
