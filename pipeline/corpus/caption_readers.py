"""Readers of caption tables and of published data set files.

A reader yields (`file:line` or another place, `Annotation`) for each clip of a text. Where a data set is evaluated by
paragraph (DiDeMo, ActivityNet), all sentences of a video form one caption, in the order of the file.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

from pipeline.corpus.clip_rows import (
    NOT_AVAILABLE,
    Annotated,
    Annotation,
    WrongRow,
    annotated,
    attempt,
    is_nothing,
    items_of,
    seconds_of,
)
from pipeline.corpus.columns import LOOKS_LIKE, MEDIA, Columns, choose, plain
from pipeline.corpus.splits import split_named
from pipeline.corpus.tables import Row, csv_rows
from pipeline.corpus.text_files import json_value, lines, text_field
from pipeline.records import Kind

__all__ = ["Annotated", "Annotation", "annotated"]

MSVD_LINE = re.compile(r"(\S+_\d+_\d+)\s+(\S.*)")
MOMENT_LINE = re.compile(r"(\S+)\s+([\d.]+)\s+([\d.]+)\s*##\s*(\S.*)")
"""A line of Charades-STA: clip, start, end, sentence."""
LSMDC_COLUMNS = 6
"""Clip, four times, sentence; separated by tabs."""


# --- tables -----------------------------------------------------------------------------------------------------------


def read_rows(rows: Iterable[Row], columns: Columns) -> Iterator[Annotated]:
    """Yield the clips of the rows of a table, of JSON lines or of Parquet, with the meanings that `columns` assigns.

    A row with a list of spans and a list of as many captions becomes one clip per span.
    """
    yield from attempt(_by_span(rows, columns), partial(_row, columns=columns))


def _by_span(rows: Iterable[Row], columns: Columns) -> Iterator[Row]:
    """Yield `rows`, with one row per span where a row has several."""
    name, of_captions = columns.span, columns.caption or ""
    for where, row in rows:
        if isinstance(row, WrongRow) or name is None:
            yield where, row
            continue
        spans, captions = items_of(row.get(name)), items_of(row.get(of_captions))
        if not isinstance(spans, list) or not spans or not isinstance(spans[0], list):
            yield where, row
        elif isinstance(captions, list) and len(captions) == len(spans):
            for span, caption in zip(spans, captions, strict=True):
                yield where, {**row, name: span, of_captions: caption}
        elif len(spans) == 1:
            yield where, {**row, name: spans[0]}
        else:
            reason = f"{where}: {name} has {len(spans)} times, and {of_captions} not as many captions"
            yield where, WrongRow(where=where, reason=reason)


def _row(where: str, row: Mapping[str, Any], columns: Columns) -> Annotated:
    name = row.get(columns.clip)
    if isinstance(name, Mapping):  # a video in Parquet, as Hugging Face writes it
        name = name.get("path")
    if plain(columns.clip) in MEDIA and isinstance(listed := items_of(name), list) and len(listed) == 1:
        name = listed[0]
    if isinstance(name, float | Decimal) and name == name // 1:
        name = int(name)
    if isinstance(name, str) and re.fullmatch(r"\d+\.0", name):
        name = name[:-2]  # an integer id that pandas wrote as a float
    name = text_field({"clip_name": None if is_nothing(name) and name != NOT_AVAILABLE else name}, "clip_name", where)
    span = items_of(row.get(columns.span)) if columns.span else None
    if span is not None and (not isinstance(span, list) or len(span) != 2):
        raise ValueError(f"{where}: {columns.span} must be a start and an end, got {span!r}")
    times = span or [row.get(column) if column else None for column in (columns.start, columns.end)]
    labels = [columns.span or column or "" for column in (columns.start, columns.end)]
    start, end = (
        seconds_of(time, label, where, per_second=1000.0 if plain(label).endswith("ms") else 1.0)
        for time, label in zip(times, labels, strict=True)
    )
    if columns.duration and start is not None:
        seconds = seconds_of(row.get(columns.duration), columns.duration, where)
        end = None if seconds is None else start + seconds
    kind, group = (row.get(field) if columns.is_native_format else None for field in ("type", "group"))
    if kind and str(kind).lower() not in set(Kind):
        raise ValueError(f"{where}: type must be one of {', '.join(Kind)}, got {kind!r}")
    split = row.get(columns.split) if columns.split else None
    if not is_nothing(split) and (not isinstance(split, str) or split.strip().isdigit()):
        raise ValueError(f"{where}: {columns.split} must be a name such as train, val or test, got {split!r}")
    return annotated(
        where,
        name,
        _spoken(row.get(columns.caption)) if columns.caption else [],
        kind=Kind(str(kind).lower()) if kind else None,
        split="" if is_nothing(split) else split_named(text_field({"split": split}, "split", where)),
        group=None if group is None else str(group),
        start=start,
        end=end,
    )


def _spoken(value: Any) -> list[Any]:
    """Return the captions of a row, unparsed; of a conversation, the turns of the assistant."""
    turns = items_of(value)
    for who, what in (("from", "value"), ("role", "content")):
        if isinstance(turns, list) and turns and all(isinstance(turn, Mapping) and who in turn for turn in turns):
            return [turn.get(what) for turn in turns if turn[who] not in ("human", "user", "system")]
    return [value]


# --- published files --------------------------------------------------------------------------------------------------


def read_webvid(text: str | Iterable[str], path: str) -> Iterator[Annotated]:
    """Read a table with the columns `videoid`, `name`, `page_dir`; the file is {page_dir}/{videoid}.mp4."""

    def read(where: str, row: Mapping[str, Any]) -> Annotated:
        folder, name = (text_field(row, column, where) for column in ("page_dir", "videoid"))
        return annotated(where, f"{folder}/{name}.mp4", [row.get("name")])

    yield from attempt(_lower_csv(text, path), read)


def _lower_csv(text: str | Iterable[str], path: str) -> Iterator[Row]:
    for where, row in csv_rows(text, path):
        yield where, row if isinstance(row, WrongRow) else {name.lower(): value for name, value in row.items()}


def read_msrvtt(text: str, path: str) -> Iterator[Annotated]:
    """Read MSR-VTT's JSON object with `videos` and `sentences`; the file is {video_id}.mp4.

    Its start and end times refer to the videos that the clips were cut from, so they are ignored.
    """
    value = json_value(text, path)
    if not isinstance(value, dict) or not {"videos", "sentences"} <= value.keys():
        raise ValueError(f"{path}: MSR-VTT's JSON is one object with `videos` and `sentences`")
    captions: dict[str, list[Any]] = {}
    for index, video in enumerate(value["videos"]):
        captions[text_field(video, "video_id", f"{path}: videos[{index}]")] = []
    for index, sentence in enumerate(value["sentences"]):
        where = f"{path}: sentences[{index}]"
        name = text_field(sentence, "video_id", where)
        if name in captions:
            captions[name].append(sentence.get("caption"))
        else:
            yield where, WrongRow(where=where, reason=f"{where}: its video {name!r} is not among `videos`")

    def read(where: str, video: Mapping[str, Any]) -> Annotated:
        name = text_field(video, "video_id", where)
        return annotated(where, name, captions[name], split=split_named(video.get("split") or ""))

    yield from attempt(_listed(value["videos"], f"{path}: videos"), read)


def read_msrvtt_csv(text: str, path: str) -> Iterator[Annotated]:
    """Read MSR-VTT's test split 1K-A: columns `video_id` and `sentence`, one sentence per video."""

    def read(where: str, row: Mapping[str, Any]) -> Annotated:
        return annotated(where, text_field(row, "video_id", where), [row.get("sentence")])

    yield from attempt(_lower_csv(text, path), read)


def read_msvd_corpus(text: str, path: str) -> Iterator[Annotated]:
    """Read the English rows of MSVD's whole corpus: columns `VideoID`, `Start`, `End`, `Language`, `Description`.

    The file is {VideoID}_{Start}_{End}.avi.
    """

    def read(where: str, row: Mapping[str, Any]) -> Annotated:
        parts = [text_field(row, name, where) for name in ("videoid", "start", "end")]
        return annotated(where, f"{'_'.join(parts)}.avi", [row.get("description")])

    rows = _lower_csv(text, path)
    yield from attempt(
        ((where, row) for where, row in rows if isinstance(row, WrongRow) or row.get("language") == "English"), read
    )


def read_didemo(text: str, path: str) -> Iterator[Annotated]:
    """Read a JSON list with `video` and `description`, several per video, as one paragraph per video."""
    sentences: dict[str, list[str]] = defaultdict(list)
    for where, item in _items(text, path):
        try:
            sentences[text_field(item, "video", where)].append(text_field(item, "description", where))
        except ValueError as error:
            yield where, WrongRow(where=where, reason=str(error))
    for video, paragraph in sentences.items():
        yield annotated(f"{path}: {video}", video, [" ".join(paragraph)])


def read_activitynet(text: str, path: str) -> Iterator[Annotated]:
    """Read a JSON object video → object with `sentences`, as one paragraph per video; the file is {video}.mp4."""

    def read(where: str, item: Any) -> Annotated:
        if not isinstance(item, Mapping) or not isinstance(item.get("sentences"), list):
            raise ValueError(f"{where}: needs sentences, a list")
        sentences = [str(sentence) for sentence in item["sentences"] if not is_nothing(sentence)]
        return annotated(where, f"{where.removeprefix(f'{path}: ')}.mp4", [" ".join(sentences)])

    yield from attempt(((f"{path}: {video}", item) for video, item in json_value(text, path).items()), read)


def read_vatex(text: str, path: str) -> Iterator[Annotated]:
    """Read a JSON list with `videoID` and the English captions `enCap`; the file is {videoID}.mp4."""

    def read(where: str, item: Any) -> Annotated:
        video = text_field(item, "videoID", where)
        if not isinstance(item.get("enCap"), list):
            raise ValueError(f"{where}: needs enCap, a list of captions; the test file without captions asks nothing")
        return annotated(where, f"{video}.mp4", item["enCap"])

    yield from attempt(_items(text, path), read)


def read_coco(text: str, path: str) -> Iterator[Annotated]:
    """Read COCO's captions or a file in COCO's format: `images` with `id` and `file_name`, `annotations` with
    `image_id`. Videos may take the place of images."""
    value = json_value(text, path)
    if any(LOOKS_LIKE["a time"].search(plain(name)) for note in value["annotations"] for name in note):
        yield from _read_coco_moments(value, path)
        return
    captions: dict[str, list[Any]] = defaultdict(list)
    for note in value["annotations"]:
        captions[str(note.get("image_id", note.get("video_id")))].append(note.get("caption"))

    def read(where: str, image: Mapping[str, Any]) -> Annotated:
        name = text_field(image, "file_name" if image.get("file_name") else "id", where)
        return annotated(where, name, captions.pop(str(image.get("id")), []), split=split_named(image.get("split", "")))

    key = "images" if "images" in value else "videos"
    yield from attempt(_listed(value[key], f"{path}: {key}"), read)
    for image in captions:
        where = f"{path}: annotations of {image}"
        yield where, WrongRow(where=where, reason=f"{where}: it is not among `{key}`")


def _read_coco_moments(value: Mapping[str, Any], path: str) -> Iterator[Annotated]:
    """Yield the clips of a file in COCO's format whose `annotations` have times: each is read as a row of a table."""
    key = "images" if "images" in value else "videos"
    names = {str(item.get("id")): item for item in value[key]}

    def row(where: str, note: Mapping[str, Any]) -> Row:
        owner = str(note.get("image_id", note.get("video_id")))
        if owner not in names:
            return where, WrongRow(where=where, reason=f"{where}: its video {owner!r} is not among `{key}`")
        video = names[owner]
        return where, {"clip_name": video.get("file_name") or owner, "split": video.get("split"), **note}

    rows = [row(where, note) for where, note in _listed(value["annotations"], f"{path}: annotations")]
    columns = choose([fields for _, fields in rows if not isinstance(fields, WrongRow)], {}, path)
    yield from read_rows(rows, columns)


def read_karpathy(text: str, path: str) -> Iterator[Annotated]:
    """Read Karpathy's splits of COCO and Flickr30k: `images` with `filename`, `sentences` with `raw`, and `split`."""

    def read(where: str, image: Mapping[str, Any]) -> Annotated:
        name = posixpath.join(image.get("filepath") or "", text_field(image, "filename", where))
        split = "train" if image.get("split") == "restval" else split_named(image.get("split") or "")
        return annotated(where, name, [image.get("sentences")], split=split)

    yield from attempt(_listed(json_value(text, path)["images"], f"{path}: images"), read)


def read_visual_genome(text: str, path: str) -> Iterator[Annotated]:
    """Read Visual Genome's regions: a JSON list with `id` and `regions` with `phrase`; the image is {id}.jpg."""

    def read(where: str, image: Any) -> Annotated:
        name = text_field({"id": image.get("id", image.get("image_id"))}, "id", where)
        return annotated(where, f"{name}.jpg", [image.get("regions")])

    yield from attempt(_items(text, path), read)


def read_lsmdc(text: str, path: str) -> Iterator[Annotated]:
    """Read lines of six tab-separated columns; the file is {film}/{clip}.avi."""

    def read(where: str, line: str) -> Annotated:
        columns = line.split("\t")
        if len(columns) < LSMDC_COLUMNS:
            raise ValueError(f"{where}: needs {LSMDC_COLUMNS} columns apart by tabs, got {len(columns)}")
        clip = columns[0].strip()
        return annotated(where, f"{clip.rpartition('_')[0]}/{clip}.avi", [columns[LSMDC_COLUMNS - 1]])

    yield from attempt(lines(text, path), read)


def read_msvd(text: str, path: str) -> Iterator[Annotated]:
    """Read lines `NAME SENTENCE`, many per clip; the file is {NAME}.avi."""

    def read(where: str, line: str) -> Annotated:
        match = MSVD_LINE.fullmatch(line.strip())
        if not match:
            raise ValueError(f"{where}: needs the clip's name and a sentence, got {line[:80]!r}")
        return annotated(where, f"{match[1]}.avi", [match[2]])

    yield from attempt(((where, line) for where, line in lines(text, path) if not line.startswith("#")), read)


def read_charades_sta(text: str, path: str) -> Iterator[Annotated]:
    """Read lines `NAME START END##SENTENCE`, times in seconds; the file is {NAME}.mp4."""

    def read(where: str, line: str) -> Annotated:
        match = MOMENT_LINE.fullmatch(line.strip())
        if not match:
            raise ValueError(f"{where}: needs NAME START END##SENTENCE, got {line[:80]!r}")
        start, end = (seconds_of(match[place], name, where) for place, name in ((2, "start"), (3, "end")))
        return annotated(where, match[1], [match[4]], start=start, end=end)

    yield from attempt(lines(text, path), read)


def _items(text: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, item) of a JSON list. ValueError if it is none."""
    items = json_value(text, path)
    if not isinstance(items, list):
        raise ValueError(f"{path}: needs a JSON list")
    return _listed(items, f"{path}: ")


def _listed(items: Iterable[Any], path: str) -> Iterator[tuple[str, Any]]:
    return ((f"{path}[{index}]", item) for index, item in enumerate(items))
