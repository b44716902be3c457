"""Caption files of the retrieval benchmarks as their authors published them.

Each reader yields (file and place in it, the clip's file, its captions). Where a benchmark asks by paragraphs (DiDeMo,
ActivityNet), all sentences of a video are one caption, in the order of the file.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

Clip = tuple[str, str, list[Any]]
MSVD_LINE = re.compile(r"(\S+_\d+_\d+)\s+(\S.*)")
LSMDC_COLUMNS = 6
"""Clip, four times, sentence; apart by tabs."""
LIST_COLUMNS = ("video_id", "vid_id", "video", "clip_name", "id")
"""What the column of names is called in lists that are tables."""


def msrvtt_csv(text: str, path: str) -> Iterator[Clip]:
    """MSR-VTT's test split 1K-A: columns `video_id` and `sentence`, one sentence per video."""
    for number, fields in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
        where = f"{path}:{number}"
        yield where, _field(fields, "video_id", where), [fields.get("sentence")]


def didemo(text: str, path: str) -> Iterator[Clip]:
    """A JSON list with `video` and `description`, several per video: a paragraph per video."""
    sentences: dict[str, list[str]] = defaultdict(list)
    for index, one in enumerate(_list(text, path)):
        where = f"{path}: [{index}]"
        sentences[_field(one, "video", where)].append(_field(one, "description", where))
    for video, some in sentences.items():
        yield f"{path}: {video}", video, [_paragraph(some)]


def activitynet(text: str, path: str) -> Iterator[Clip]:
    """A JSON object by video, each with `sentences`: a paragraph per video."""
    for video, one in json.loads(text).items():
        where = f"{path}: {video}"
        if not isinstance(one, Mapping) or not isinstance(one.get("sentences"), list):
            raise ValueError(f"{where}: needs sentences, a list")
        yield where, f"{video}.mp4", [_paragraph([str(sentence) for sentence in one["sentences"]])]


def vatex(text: str, path: str) -> Iterator[Clip]:
    """A JSON list with `videoID` and the English captions `enCap`."""
    for index, one in enumerate(_list(text, path)):
        where = f"{path}: [{index}]"
        video = _field(one, "videoID", where)
        if not isinstance(one.get("enCap"), list):
            raise ValueError(f"{where}: needs enCap, a list of captions; the test file without captions asks nothing")
        yield where, f"{video}.mp4", list(one["enCap"])


def lsmdc(text: str, path: str) -> Iterator[Clip]:
    """Lines of six columns, apart by tabs; clips lie in a folder per film."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) < LSMDC_COLUMNS:
            raise ValueError(f"{path}:{number}: needs {LSMDC_COLUMNS} columns apart by tabs, got {len(columns)}")
        clip = columns[0].strip()
        yield f"{path}:{number}", f"{clip.rpartition('_')[0]}/{clip}.avi", [columns[LSMDC_COLUMNS - 1]]


def msvd(text: str, path: str) -> Iterator[Clip]:
    """Lines `NAME SENTENCE`, many per clip."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = MSVD_LINE.fullmatch(line.strip())
        if not found:
            raise ValueError(f"{path}:{number}: needs the clip's name and a sentence, got {line[:80]!r}")
        yield f"{path}:{number}", f"{found[1]}.avi", [found[2]]


def read_list(text: str, path: str) -> list[str]:
    """The clips of a split: a name per line, or the column of names of a table; without suffixes."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and "," in lines[0]:
        rows = list(csv.DictReader(lines))
        column = next((name for name in LIST_COLUMNS if name in rows[0]), None) if rows else None
        if column is None:
            raise ValueError(f"{path}: a table of clips needs one of the columns {', '.join(LIST_COLUMNS)}")
        lines = [row[column] for row in rows]
    if not lines:
        raise ValueError(f"{path} names no clip")
    return [stem(line) for line in lines]


def stem(name: str) -> str:
    """What lists call a clip: its file's name without folders and without the suffix of a video."""
    return re.sub(r"\.(mp4|avi|webm|mkv|mov|m4v|3gp|mpg|mpeg|flv|wmv)$", "", posixpath.basename(name), flags=re.I)


def _list(text: str, path: str) -> list[Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if not isinstance(found, list):
        raise ValueError(f"{path}: needs a JSON list")
    return found


def _field(fields: Any, name: str, where: str) -> str:
    value = fields.get(name) if isinstance(fields, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: needs {name}, a text that is not empty, got {value!r}")
    return value.strip()


def _paragraph(sentences: list[str]) -> str:
    return " ".join(sentence.strip() for sentence in sentences)
