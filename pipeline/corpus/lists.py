"""Files that say which clips are in a split."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline import storage
from pipeline.corpus.clip_rows import WrongRow, is_nothing
from pipeline.corpus.columns import NAMES, plain
from pipeline.corpus.names import folded, stem_of
from pipeline.corpus.splits import split_named
from pipeline.corpus.tables import csv_rows, delimiter_of
from pipeline.corpus.text_files import read_text

LIST_COLUMNS = tuple(name for rank in NAMES["clip"][:4] for name in rank)
"""Names of the clip column in lists that are tables."""


def read_lists(lists: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return path of a list → name of a clip, without suffix → split. ValueError for a clip in two splits."""
    splits: dict[str, tuple[str, str]] = {}
    by_list: dict[str, dict[str, str]] = {}
    for source in lists:
        match = re.fullmatch(r"(\w+)=(.+)", source)
        if match is None:
            raise ValueError(f"a list of clips is named SPLIT=PATH, got {source!r}")
        split, path = split_named(match[1]), match[2]
        storage.check_readable(path)
        names = _listed(read_text(path), path, split)
        for name in names:
            before = splits.setdefault(folded(name), (split, name))
            if before[0] != split:
                raise ValueError(f"{path}: {name} is in the split {before[0]} too; a clip has one split")
        by_list[path] = dict.fromkeys(names, split)
    return by_list


@dataclass
class ClipLists:
    """Assigns clips to splits by lists, and records which lists were used."""

    by_list: Mapping[str, Mapping[str, str]]
    used: set[str] = field(default_factory=set)
    unlisted: list[str] = field(default_factory=list)
    """Clips that no list names."""

    def __post_init__(self) -> None:
        self._by_name = {
            folded(name): (split, path) for path, names in self.by_list.items() for name, split in names.items()
        }

    def split_of(self, clip_path: str) -> str | None:
        """Return the split of a clip; None if no list names it."""
        split, path = self._by_name.get(folded(stem_of(clip_path)), (None, None))
        if path is None:
            self.unlisted.append(stem_of(clip_path))
        else:
            self.used.add(path)
        return split

    def refuse_unused(self) -> None:
        """Raise ValueError if a list names no clip of the caption files."""
        for path, names in self.by_list.items():
            if path not in self.used:
                raise ValueError(
                    f"{path} names no clip of the caption files: it has {', '.join(map(repr, list(names)[:3]))}, and "
                    f"they have {', '.join(map(repr, self.unlisted[:3]))}; write a name per line, as "
                    "the captions have it"
                )


def _listed(text: str, path: str, split: str) -> list[str]:
    """Return the clips of a split, without suffixes: the lines of a text, the items of a JSON list, or a column of a
    table. Rows that name another split are skipped."""
    names = _json_names(text, split) or [line.strip() for line in text.splitlines() if line.strip()]
    if names and delimiter_of(names[0]):
        rows = [row for _, row in csv_rows(text, path) if not isinstance(row, WrongRow)]
        columns = [name for known in LIST_COLUMNS for name in (rows[0] if rows else ()) if plain(name) == known]
        if not columns:
            raise ValueError(
                f"{path}: a table of clips needs one of the columns video_id, vid_id, video, clip_name, id"
            )
        names = [row[columns[0]] for row in rows if _is_of(split, row)]
    elif names and plain(names[0].strip('"')) in LIST_COLUMNS and len(names) > 1:
        names = names[1:]
    if not names:
        raise ValueError(f"{path} names no clip")
    return [stem_of(_name(name)) for name in names]


def _is_of(split: str, row: Mapping[str, Any]) -> bool:
    """Return whether a row belongs to `split` or names no split."""
    named = next((row[name] for known in NAMES["split"][0] for name in row if plain(str(name)) == known), None)
    return is_nothing(named) or split_named(str(named)) == split


def _json_names(text: str, split: str) -> list[str]:
    if not text.lstrip().startswith(("[", "{")):
        return []
    try:
        value = json.loads(text)
    except ValueError:
        return []
    names = []
    for item in value:
        if isinstance(item, dict) and not _is_of(split, item):
            continue
        if isinstance(item, dict):
            item = next((item[name] for known in LIST_COLUMNS for name in item if plain(name) == known), None)
        if item is not None:
            names.append(str(item))
    return names


def _name(line: str) -> str:
    """Return the name in a line, without quotes and without a trailing label (an integer)."""
    line = line.strip().strip("\"'")
    match = re.fullmatch(r"(\S+)[\s,;]+-?\d+", line)
    return match[1].strip("\"'") if match else line
