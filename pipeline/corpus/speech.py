"""Read speech transcripts with times, in HowTo100M's format, as captions of clips."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import storage
from pipeline.corpus.clip_rows import Annotated, WrongRow, annotated, attempt, is_nothing, seconds_of
from pipeline.corpus.tables import csv_rows
from pipeline.corpus.text_files import json_value, read_text


def read_asr(path: str) -> Iterator[Annotated]:
    """Read transcripts with times as in HowTo100M; neighbouring sentences become a clip of at least 5 words and 5 s.

    `{"start": […], "end": […], "text": […]}` in {video}.json, or in one file with such an object per video; or
    {video}.csv with these columns.
    """
    if storage.is_folder(path):
        files = [storage.join(path, name) for name in storage.list_files(path) if name.endswith((".json", ".csv"))]
    else:
        files = [path]
    for file in files:
        yield from read_speech(read_text(file), file, is_of_one=file != path or file.endswith(".csv"))


def read_speech(text: str, path: str, *, is_of_one: bool = False) -> Iterator[Annotated]:
    """Yield the clips of a file with the speech of one video (named like the file) or of several."""
    video = posixpath.splitext(posixpath.basename(path))[0]
    if not text.lstrip().startswith("{"):
        rows = [(where, row) for where, row in csv_rows(text, path)]
        yield from ((where, row) for where, row in rows if isinstance(row, WrongRow))
        fields = [row for _, row in rows if not isinstance(row, WrongRow)]
        yield from _clips(path, video, {name: [row[name] for row in fields] for name in (fields or [{}])[0]})
        return
    value = json_value(text, path)
    speech = {path: (video, value)} if is_of_one else {f"{path}: {name}": (name, item) for name, item in value.items()}
    for where, (name, columns) in speech.items():
        yield from _clips(where, name, columns)


def _clips(where: str, video: str, columns: Mapping[str, Any]) -> Iterator[Annotated]:
    sentences = []
    try:
        for start, end, text in zip(columns["start"], columns["end"], columns["text"], strict=True):
            times = [seconds_of(time, name, where) for name, time in (("start", start), ("end", end))]
            if not is_nothing(text) and None not in times:
                sentences.append((*times, str(text)))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{where}: needs start, end and text, three lists of one length ({error})"
        yield where, WrongRow(where=where, reason=reason)
        return
    yield from attempt(
        ((where, clip) for clip in spoken_clips(sentences)),
        lambda where, clip: annotated(where, video, [clip[2]], start=clip[0], end=clip[1]),
    )


def spoken_clips(
    sentences: Sequence[tuple[float, float, str]], *, min_words: int = 5, min_seconds: float = 5.0
) -> list[tuple[float, float, str]]:
    """Join neighbouring sentences to clips of at least `min_words` and `min_seconds`, in order of time.

    A shorter rest at the end joins the clip before it; sentences without duration or text are left out.
    """
    clips: list[tuple[float, float, str]] = []
    is_open = False
    for start, end, text in sorted(item for item in sentences if item[0] < item[1] and item[2].strip()):
        if is_open:
            before = clips.pop()
            start, end, text = before[0], max(before[1], end), f"{before[2]} {text}"
        clips.append((start, end, text))
        is_open = len(text.split()) < min_words or end - start < min_seconds
    if is_open and len(clips) > 1:
        (start, _, first), (_, end, last) = clips[-2:]
        clips[-2:] = [(start, max(end, clips[-2][1]), f"{first} {last}")]
    return clips
