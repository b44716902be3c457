"""A clip with its captions as a row of an annotation file gives it, and a row that gives none.

name, captions, times, as they stand in a file  ──►  Annotation | WrongRow
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
"""What programs write for nothing, in lower case: Python, JSON, pandas, spreadsheets, databases (`\\N`)."""
NOT_AVAILABLE = "NA"
"""R's word for it; in lower case it is a word of languages."""
TEXT_KEYS = ("caption", "text", "sentence", "raw", "phrase", "description", "content", "value")
"""Where an object in a list of captions has its words."""
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ARRAY = re.compile(rf"\[(?:{_QUOTED})(?:\s+(?:{_QUOTED}))+\]")
"""Texts in quotes, with blanks or ends of lines between them: an array of NumPy."""
_YOUTUBE = re.compile(r"(www\.|m\.)?(youtube\.com|youtu\.be)")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A clip and its captions. No captions: the clip is known, and lacks them."""

    relative_path: str
    """Below the corpus root, with forward slashes; outside it (`is_outside`), what a clip there may be found by."""
    captions: tuple[str, ...]
    kind: Kind
    split: str = ""
    """Empty where the file names none."""
    group: str | None = None
    """Clips that a test compares among themselves."""
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class WrongRow:
    """A row that cannot be read, for the ledger."""

    where: str
    reason: str
    """With the place, and what to do."""


Annotated = tuple[str, Annotation | WrongRow]
"""Place in a file, for messages, and what stands there."""


def attempt(rows: Iterable[tuple[str, T | WrongRow]], read: Callable[[str, T], Annotated]) -> Iterator[Annotated]:
    """Yield `read(place, row)` of each row; for one that it refuses by ValueError, a `WrongRow`."""
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
    """Return the annotation of a clip as a file has it. ValueError for captions of no text, or times in wrong order.

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
    """Return the path that a name of a clip means; of a URL without its query, of one to YouTube the id."""
    if "://" in name:
        url = urlsplit(name)
        if _YOUTUBE.fullmatch(url.netloc):
            return parse_qs(url.query).get("v", [posixpath.basename(url.path)])[0]
        path = url.path if url.scheme in ("http", "https") else name.partition("://")[2].partition("/")[2]
        return f"{url.scheme}://{url.netloc}/{unquote(path).lstrip('/')}"
    return posixpath.normpath(name.replace("\\", "/"))


def without_queries(text: str) -> str:
    """Return a message with the queries of its URLs left out: they may sign a request."""
    return re.sub(r"(\w+://[^\s?\"']+)\?[^\s\"',;:]+", r"\1?…", text)


def is_outside(path: str) -> bool:
    """Return whether `path` is not one below a root: absolute, above it, or a URL."""
    return path.startswith(("/", "../")) or "://" in path or bool(re.match(r"[A-Za-z]:/", path))


def is_nothing(value: Any) -> bool:
    """Return whether a value stands for no value: null, NaN, an empty text or the word for one of them."""
    if isinstance(value, str):
        return not value.strip() or value.strip().lower() in NO_WORDS or value.strip() == NOT_AVAILABLE
    return value is None or (isinstance(value, float) and math.isnan(value))


def captions_of(value: Any) -> list[str]:
    """Return the captions in a value: a text, an object with one, a list of both, or such a list written as text.

    Objects whose names are numbers are lists. Blanks are single. ValueError for what is neither.
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
    """Return the list of texts that is written in a text, as JSON, Python or NumPy write it; None: there is none."""
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
    """Return a list that is written as text as a list; another value as it is."""
    listed = _list_in(value) if isinstance(value, str) else None
    return value if listed is None else listed


def seconds_of(value: Any, name: str, where: str, *, per_second: float = 1.0) -> float | None:
    """Return a time in seconds: a number of `1 / per_second` seconds, also as text, a time or H:MM:SS. None: none."""
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
