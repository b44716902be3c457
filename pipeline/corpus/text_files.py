"""Text files that people write: decoded, split into lines and objects, and refused with file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import storage


def read_text(path: str) -> str:
    """Return the text of a file without a byte-order mark. ValueError if it is not UTF-8."""
    try:
        return storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); convert it first") from error


def lines(text: str, path: str) -> Iterator[tuple[str, str]]:
    """Yield (`path:line`, line) of the lines that are not blank."""
    # not str.splitlines: other ends of lines may stand within a caption
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line


def json_lines(text: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (`path:line`, value) of a file with a JSON value in each line. ValueError for a line that has none."""
    for where, line in lines(text, path):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: no JSON ({error}): {line[:80]!r}") from error
        yield where, value


def json_value(text: str, path: str) -> Any:
    """Return the value of a JSON file. ValueError if it has none."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error


def table(text: str, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`path:line`, fields) of the rows of a CSV table with a header. ValueError for what is no CSV."""
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for fields in rows:
            yield f"{path}:{rows.line_num}", fields
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num + 1}: no CSV ({error})") from error


def text_field(fields: Any, name: str, where: str) -> str:
    """Return a field that must be a text, without blanks around it. ValueError if it is not."""
    value = fields.get(name) if isinstance(fields, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: needs {name}, a text that is not empty, got {value!r}")
    return value.strip()


def seconds_field(fields: Mapping[str, Any], name: str, where: str) -> float | None:
    """Return a field that must be a time in seconds; None if it is not there. ValueError for anything else."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{where}: {name} must be a number of seconds from 0 on, got {value!r}")
    return float(value)
