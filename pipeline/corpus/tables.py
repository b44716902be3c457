"""Read rows of tables in CSV, TSV, JSON lines, JSON lists and dictionaries.

A row is (`file:line` or another place, fields by name); a malformed line becomes a `WrongRow`, and is never joined with
its neighbours.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.corpus.clip_rows import WrongRow
from pipeline.corpus.columns import KEY, NAMES, plain
from pipeline.corpus.media import kind_of
from pipeline.corpus.splits import SPLITS, split_named
from pipeline.corpus.text_files import RepeatedKeyError, unambiguous

Row = tuple[str, Mapping[str, Any] | WrongRow]
KNOWN = frozenset(name for ranks in NAMES.values() for rank in ranks for name in rank) | {"pagedir"}
DELIMITERS = ",\t;|"
NESTED = ("clips", "clip", "regions", "annotations", "segments", "captions", "sentences")
"""Fields that may hold a list of objects; each object becomes a row, together with the fields beside the list."""
WRAPPERS = (
    "data",
    "annotations",
    "items",
    "rows",
    "samples",
    "records",
    "database",
    "videos",
    "clips",
    "results",
    "dataset",
)

csv.field_size_limit(sys.maxsize)


# --- CSV --------------------------------------------------------------------------------------------------------------


def delimiter_of(line: str) -> str | None:
    """Return the delimiter of a table whose header is `line`; None if it is not a header."""
    try:
        headers = {mark: next(csv.reader([line], delimiter=mark, skipinitialspace=True), []) for mark in DELIMITERS}
    except csv.Error:
        return None
    known = {mark: sum(plain(name) in KNOWN for name in names) for mark, names in headers.items()}
    best = max(DELIMITERS, key=lambda mark: known[mark])
    return best if known[best] >= 2 or (known[best] and best in line) else None


def pair_of(line: str) -> dict[str, str] | None:
    """Infer from its first line which column of a table without a header is the clip and which the caption, or None.

    Requires two columns, of which one is a URL or the path of a video or image: CC3M's and TGIF's tables.
    """
    mark = next((mark for mark in "\t,;|" if mark in line), None)
    fields = [field.strip() for field in next(csv.reader([line], delimiter=mark), [])] if mark else []
    is_clip = ["://" in field or (kind_of(field) is not None and " " not in field) for field in fields]
    if len(fields) != 2 or sum(is_clip) != 1:
        return None
    return {"clip": str(is_clip.index(True) + 1), "caption": str(is_clip.index(False) + 1)}


def is_preamble(line: str) -> bool:
    """Return whether a line before the header is blank, a comment, or Excel's `sep=;`."""
    return not line.strip() or line.startswith("#") or bool(re.fullmatch(r"\ufeff?sep=.", line.strip(), re.I))


class _Lines:
    """The lines of a text that comes in pieces of whole lines; lines before `first_needed` are freed."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces, self._lines, self._start, self.first_needed = iter(pieces), list[str](), 0, 0

    def at(self, number: int) -> str | None:
        """Return a line without its line ending; None past the last line."""
        while number >= self._start + len(self._lines):
            if (piece := next(self._pieces, None)) is None:
                return None
            num_forgotten = min(self.first_needed - self._start, len(self._lines))
            lines = re.split(r"\r\n|\n|\r", piece)
            self._lines = self._lines[num_forgotten:] + (lines if lines[-1] else lines[:-1])
            self._start += num_forgotten
        return self._lines[number - self._start]

    def since(self, number: int) -> Iterator[str]:
        """Yield a line and all that follow it."""
        while (line := self.at(number)) is not None:
            yield line
            number += 1


def csv_rows(text: str | Iterable[str], path: str, *, header: bool = True) -> Iterator[Row]:
    """Yield the rows of a CSV table of any dialect; `text` is whole or in pieces of whole lines. Without a header,
    fields are called "1", "2", …"""
    pieces = iter([text] if isinstance(text, str) else text)
    head = next(pieces, "")
    pieces = itertools.chain([head], pieces)
    if not header and not any(mark in head for mark in DELIMITERS):  # a name and a caption, separated by a blank
        pieces = (re.sub(r"(?m)^([^\s]+)[ ]+", r"\1\t", piece) for piece in pieces)
    lines = _Lines(pieces)
    first = next((number for number, line in enumerate(lines.since(0)) if not is_preamble(line)), 0)
    top = lines.at(first) or ""
    mark = delimiter_of(top) or next((mark for mark in "\t,;|" if mark in top), ",")
    quote = "'" if header and _SINGLE_QUOTED.fullmatch(lines.at(first + 1) or "") else '"'
    fields = next(csv.reader([top], delimiter=mark, quotechar=quote, skipinitialspace=True))
    names = [name.strip() for name in fields] if header else [str(number + 1) for number in range(len(fields))]
    if twice := [name for name, times in Counter(names).items() if name and times > 1]:
        raise ValueError(f"{path}:{first + 1}: {len(twice) + 1} columns are called {twice[0]!r}: rename one of them")
    number = first + header
    while (line := lines.at(number)) is not None:
        lines.first_needed = number
        if not line.strip() or (mark == "|" and _RULE.fullmatch(line)):
            number += 1
            continue
        where = f"{path}:{number + 1}"
        values, stop = _row_at(lines, number, mark, len(names), quote)
        if line.startswith("#") and len(values or ()) != len(names):
            number += 1  # a comment
            continue
        if values is None:
            reason = f"{where}: no CSV, a quote is open at its end: {line[:60]!r}"
        elif len(values) > len(names) and not any(values[len(names) :]):
            yield where, dict(zip(names, values, strict=False))  # trailing delimiters
            number = stop
            continue
        elif len(values) != len(names):
            reason = (
                f"{where}: has {len(values)} fields and the table {len(names)}: a {_MARKS[mark]} in a field needs "
                f"quotes around it: {line[:60]!r}"
            )
        else:
            yield where, dict(zip(names, values, strict=True))
            number = stop
            continue
        yield where, WrongRow(where=where, reason=reason)
        number = stop


_SINGLE_QUOTED = re.compile(r"'[^']*'([,\t;|]\s*'[^']*')+")
_RULE = re.compile(r"[\s|:-]*-[\s|:-]*")
"""Matches the line below the header of a Markdown table."""
_MARKS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


def _row_at(lines: _Lines, number: int, mark: str, count: int, quote: str) -> tuple[list[str] | None, int]:
    """Return the fields of the row that begins at a line (None: a quote is never closed), and the number of the next
    line.

    A quoted field may span several lines. If its later lines look like rows, a stray quote opened it.
    """
    dialect: dict[str, Any] = {"delimiter": mark, "quotechar": quote, "skipinitialspace": mark != "\t"}
    reader = csv.reader((line + "\n" for line in lines.since(number)), **dialect, strict=True)
    try:
        values = next(reader)
    except csv.Error:
        line = lines.at(number) or ""
        if '\\"' in line and len(values := _escaped(line, dialect)) == count:
            return values, number + 1
        return (line.split(mark) if line.count('"') % 2 == 0 else None), number + 1
    stop = number + reader.line_num
    for line in itertools.islice(lines.since(number + 1), stop - number - 1):
        if line.count(mark) == count - 1 and count > 1 and _is_row(line, mark, values):
            return None, number + 1
    return values, stop


def _escaped(line: str, dialect: Mapping[str, Any]) -> list[str]:
    """Parse a line with backslash-escaped quotes, as MySQL writes them; return [] if that fails."""
    try:
        return next(csv.reader([line], **dialect, strict=True, doublequote=False, escapechar="\\"))
    except csv.Error:
        return []


def _is_row(line: str, mark: str, values: Sequence[str]) -> bool:
    """Return whether a line within a quoted field has a first field of the same shape as the row before it."""
    return _shape(line.split(mark)[0]) == _shape(values[0])


def _shape(value: str) -> str:
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", value.strip().strip('"')))


# --- JSON -------------------------------------------------------------------------------------------------------------


def json_rows(text: str | Iterable[str], path: str) -> Iterator[Row]:
    """Yield the rows of JSON lines, of a JSON list or dictionary, or of concatenated objects.

    A text in pieces of whole lines must be JSON lines.
    """
    if not isinstance(text, str):
        yield from _line_rows(
            itertools.chain.from_iterable(piece.removesuffix("\n").split("\n") for piece in text), path
        )
        return
    try:
        value = unambiguous(text)
    except RepeatedKeyError as error:
        raise ValueError(f"{path}: {error}") from error
    except ValueError:
        lines = text.split("\n")  # not str.splitlines: captions may contain other line separators
        if text.lstrip().startswith("{") and not _is_json(next(line for line in lines if line.strip()), text):
            yield from _objects(text, path)
        else:
            yield from _line_rows(lines, path)
    else:
        yield from value_rows(value, path)


def _line_rows(lines: Iterable[str], path: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            value = unambiguous(_without_comma(line))
        except ValueError as error:
            yield where, WrongRow(where=where, reason=f"{where}: no JSON ({error}): {line[:80]!r}")
            continue
        if isinstance(value, dict):
            yield from _flat(where, value)
        elif isinstance(value, list) and len(value) > 1:
            yield where, {str(column + 1): field for column, field in enumerate(value)}
        else:
            reason = f"{where}: a line must be an object with clip_name and caption, got {value!r:.80}"
            yield where, WrongRow(where=where, reason=reason)


def _without_comma(line: str) -> str:
    """Remove the comma that follows an item of a JSON list."""
    line = line.strip()
    return line[:-1] if line.endswith("},") else line


def _is_json(line: str, text: str) -> bool:
    """Return whether a text has a JSON object per line; the first one may be damaged."""
    try:
        json.loads(_without_comma(line))
    except ValueError:
        return len(re.findall(r"^\{.*\},?\s*$", text, re.M)) > 0
    return True


def has_object_per_line(text: str) -> bool:
    """Return whether the first line of a text is a complete JSON object or list, so that the text is JSON lines."""
    line = next((line for line in text.split("\n") if line.strip()), "")
    try:
        return isinstance(json.loads(_without_comma(line)), dict | list)
    except ValueError:
        return False


def _objects(text: str, path: str) -> Iterator[Row]:
    """Yield concatenated objects of several lines each. The first malformed one ends the file, since it is uncertain
    where the next begins."""
    decoder, position = json.JSONDecoder(), 0
    while (match := re.compile(r"\s*").match(text, position)) and match.end() < len(text):
        where = f"{path}:{text.count(chr(10), 0, match.end()) + 1}"
        try:
            value, position = decoder.raw_decode(text, match.end())
        except ValueError as error:
            yield where, WrongRow(where=where, reason=f"{where}: no JSON ({error})")
            return
        yield from _flat(where, value)


def value_rows(value: Any, path: str) -> Iterator[Row]:
    """Yield the rows of a JSON value. ValueError if it has none."""
    if isinstance(value, list):
        if not value:
            raise ValueError(f"{path} is empty: name a file with captions")
        if all(isinstance(item, str | int) for item in value):
            raise ValueError(
                f"{path}: no JSON list of objects but of names: it says which clips are in a split: --lists "
                f"SPLIT={path}, beside the file with the captions"
            )
        for index, item in enumerate(value):
            where = f"{path}: [{index}]"
            if isinstance(item, list):
                yield where, {str(number + 1): field for number, field in enumerate(item)}
            elif isinstance(item, dict):
                yield from _flat(where, item)
            else:
                yield where, WrongRow(where=where, reason=f"{where}: needs an object, got {item!r:.60}")
    elif isinstance(value, dict):
        yield from _dict_rows(value, path)
    else:
        raise ValueError(f"{path}: no rows in {value!r:.60}: a list of objects is needed, or a line for each")


def _dict_rows(value: Mapping[str, Any], path: str) -> Iterator[Row]:
    names = {plain(name) for name in value}
    if not value:
        raise ValueError(f"{path} is empty: name a file with captions")
    if all(name.lower() in SPLITS and isinstance(part, list | dict) for name, part in value.items()):
        for name, part in value.items():
            for where, row in value_rows(part, f"{path}: {name}"):
                yield where, row if isinstance(row, WrongRow) else {"split": split_named(name), **row}
    elif isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):  # pandas' orient="split"
        for number, fields in enumerate(value["data"]):
            yield f"{path}: row {number}", dict(zip(map(str, value["columns"]), fields, strict=True))
    elif len(names & KNOWN) >= 2 and (by_column := _by_column(value)):
        yield from ((f"{path}: row {index}", row) for index, row in by_column)
    elif names & KNOWN and any(not isinstance(item, list | dict) for item in value.values()):
        yield from _flat(f"{path}:1", value)
    elif wrapped := [name for name in WRAPPERS if isinstance(value.get(name), list | dict) and value[name]]:
        yield from value_rows(value[wrapped[0]], path)
    else:
        for name, item in value.items():
            yield from _of_clip(f"{path}: {name}", name, item)


def _by_column(value: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a column-oriented table; [] if the value is none."""
    parts = list(value.values())
    if all(isinstance(part, dict) for part in parts) and len({tuple(part) for part in parts}) == 1:
        return [(index, {name: part[index] for name, part in value.items()}) for index in parts[0]]
    if all(isinstance(part, list) for part in parts) and len({len(part) for part in parts}) == 1:
        return [(str(index), {name: part[index] for name, part in value.items()}) for index in range(len(parts[0]))]
    return []


def _of_clip(where: str, clip: str, item: Any) -> Iterator[Row]:
    if isinstance(item, Mapping):
        yield from _flat(where, {KEY: clip, **item})
    elif isinstance(item, list) and item and all(isinstance(part, Mapping) for part in item):
        for index, part in enumerate(item):
            yield from _flat(f"{where}: [{index}]", {KEY: clip, **part})
    else:
        yield where, {KEY: clip, "caption": item}


def _flat(where: str, row: Any) -> Iterator[Row]:
    """Yield one row per object if `row` has a list of them (`NESTED`), else the row itself."""
    if not isinstance(row, Mapping):
        yield (
            where,
            WrongRow(
                where=where, reason=f"{where}: a line must be an object with clip_name and caption, got {row!r:.60}"
            ),
        )
        return
    name = next((name for name in NESTED if _is_nested(row.get(name))), None)
    if name is None:
        inner = next((row[key] for key in NESTED if _is_part(row.get(key), row)), {})
        yield where, {**row, **inner}
        return
    outer = {key: value for key, value in row.items() if key != name}
    for index, inner in enumerate(row[name]):
        ambiguous = {key for key in outer if key in inner and plain(key) in ("id", "key", "name")}
        yield f"{where}: {name}[{index}]", {**{k: v for k, v in outer.items() if k not in ambiguous}, **inner}


def _is_part(value: Any, row: Mapping[str, Any]) -> bool:
    """Return whether a field is an object with known fields, none of which `row` has itself."""
    return (
        isinstance(value, Mapping)
        and any(plain(key) in KNOWN for key in value)
        and not {plain(key) for key in value} & {plain(key) for key in row}
    )


def _is_nested(value: Any) -> bool:
    """Return whether a field is a list of objects, each with its own time span, image or clip."""
    marks = ("start", "segment", "span", "timestamp", "imageid", "begin", "starttime", "clipid")
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Mapping) and any(plain(key) in marks for key in item) for item in value)
    )
