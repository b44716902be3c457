"""Read tables with a URL in each row, and lists of URLs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.corpus.clip_rows import WrongRow, without_queries
from pipeline.corpus.parquet_rows import is_parquet, parquet_rows
from pipeline.corpus.tables import Row, csv_rows, is_preamble, json_rows
from pipeline.corpus.text_files import read_text

_URL = re.compile(r"\w+://\S+")


def read_urls(path: str, column: str | None = None) -> tuple[list[dict[str, Any]], list[WrongRow], str]:
    """Return the rows of a table that have a URL, those that have none, and the column of the URLs.

    `column`: None takes the only column of URLs alone. ValueError, with the remedy, for none or several.
    """
    placed = list(_rows(path))
    fields = [row for _, row in placed if not isinstance(row, WrongRow)]
    names = list(dict.fromkeys(name for row in fields for name in row))
    if column is not None and column not in names:
        raise ValueError(f"{path}: no column {column!r}, it has {', '.join(map(repr, names[:12]))}")
    column = column or url_column(fields, names, path)
    rows, wrong = [], []
    for where, row in placed:
        if isinstance(row, WrongRow):
            wrong.append(row)
        elif not _URL.fullmatch(str(row.get(column)).strip()):
            reason = without_queries(f"{where}: {column} is no URL: {row.get(column)!r:.80}")
            wrong.append(WrongRow(where=where, reason=reason))
        else:
            rows.append({**row, column: str(row[column]).strip()})
    if not rows:
        raise ValueError(f"{path}: no URL stands in {column}: say --column NAME, of {', '.join(map(repr, names[:12]))}")
    return rows, wrong, column


def url_column(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: str) -> str:
    """Return the column whose values are URLs. ValueError, with the remedy, for none or several."""
    fitting = [name for name in names if (values := [row[name] for row in rows if row.get(name)])
               and all(isinstance(value, str) and _URL.fullmatch(value.strip()) for value in values)]  # fmt: skip
    if len(fitting) != 1:
        what = f"{' and '.join(fitting)} are" if fitting else "no column is"
        raise ValueError(f"{path}: {what} of URLs alone: say --column NAME, of {', '.join(map(repr, names[:12]))}")
    return fitting[0]


def _rows(path: str) -> Iterator[Row]:
    if is_parquet(path):
        return parquet_rows(path)
    text = read_text(path)
    if text.lstrip().startswith(("{", "[")):
        return json_rows(text, path)
    first = next((line for line in text.splitlines() if not is_preamble(line)), "")
    return csv_rows(text, path, header="://" not in first)
