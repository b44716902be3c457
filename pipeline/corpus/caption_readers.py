"""Readers of captions as people and the authors of data sets write them.

A reader yields (`file:line` or another place, `Annotation`) for each clip of a text. Where a data set asks by
paragraphs (DiDeMo, ActivityNet), all sentences of a video are one caption, in the order of the file.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.media import kind_of
from pipeline.corpus.sources import open_source
from pipeline.corpus.text_files import json_lines, json_value, lines, read_text, seconds_field, table, text_field
from pipeline.records import Kind

MSRVTT_SPLITS = {"validate": "val"}
"""What MSR-VTT's JSON calls a split, where that is not our word for it."""
SPLIT_FOLDERS = frozenset({"train", "val", "validation", "test"})
MSVD_LINE = re.compile(r"(\S+_\d+_\d+)\s+(\S.*)")
LSMDC_COLUMNS = 6
"""Clip, four times, sentence; apart by tabs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A clip and its captions. No captions: the clip is known, and lacks them."""

    relative_path: str
    """Below the corpus root, with forward slashes."""
    captions: tuple[str, ...]
    kind: Kind
    split: str = ""
    """Empty where the file names none."""
    group: str | None = None
    """Clips that a test compares among themselves."""
    start_seconds: float | None = None
    end_seconds: float | None = None


Annotated = tuple[str, Annotation]
"""Place in a file, for messages, and what stands there."""


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
    """Return the annotation of a clip as a file has it. ValueError for a path above the root, or captions of no text.

    `name`: path below the corpus root; without a suffix it gets .mp4, as in the published code.
    """
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith(("/", "..")) or path == "." or "://" in name:
        raise ValueError(f"{where}: clip_name {name!r} must be a path below the corpus root")
    if start is not None and end is not None and start >= end:
        raise ValueError(f"{where}: a clip needs start < end, got start {start} and end {end}")
    path = path if posixpath.splitext(path)[1] else f"{path}.mp4"
    texts: list[str] = []
    for caption in captions:
        if caption is not None and not isinstance(caption, str):
            raise ValueError(f"{where}: a caption must be text, got {caption!r}")
        texts.append(" ".join((caption or "").split()))
    return where, Annotation(
        relative_path=path,
        captions=tuple(filter(None, texts)),
        kind=kind or kind_of(path) or Kind.VIDEO,
        split=split,
        group=group,
        start_seconds=start,
        end_seconds=end,
    )


# --- files ------------------------------------------------------------------------------------------------------------


def read_json_lines(text: str, path: str) -> Iterator[Annotated]:
    """A line per caption: `caption`, `clip_name`; optional `type`, `start`, `end`, `split`, `group`."""
    for where, fields in json_lines(text, path):
        if not isinstance(fields, dict):
            line = json.dumps(fields, ensure_ascii=False)[:80]
            raise ValueError(f"{where}: a line must be an object with clip_name and caption, got {line!r}")
        kind, group = fields.get("type"), fields.get("group")
        if kind and kind not in set(Kind):
            raise ValueError(f"{where}: type must be one of {', '.join(Kind)}, got {kind!r}")
        yield annotated(
            where,
            text_field(fields, "clip_name", where),
            [fields.get("caption")],
            kind=Kind(kind) if kind else None,
            split=text_field(fields, "split", where) if fields.get("split") else "",
            group=None if group is None else str(group),
            start=seconds_field(fields, "start", where),
            end=seconds_field(fields, "end", where),
        )


def read_webvid(text: str, path: str) -> Iterator[Annotated]:
    """Columns `videoid`, `name`, `page_dir`; the file is {page_dir}/{videoid}.mp4."""
    for where, fields in table(text, path):
        folder, name = (text_field(fields, column, where) for column in ("page_dir", "videoid"))
        yield annotated(where, f"{folder}/{name}.mp4", [fields.get("name")])


def read_msrvtt(text: str, path: str) -> Iterator[Annotated]:
    """One object with `videos` and `sentences`; the file is {video_id}.mp4.

    Its start and end times belong to the films that the clips were cut from, not to the clips.
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
        if name not in captions:
            raise ValueError(f"{where}: its video {name!r} is not among `videos`")
        captions[name].append(sentence.get("caption"))
    for index, video in enumerate(value["videos"]):
        name, split = video["video_id"].strip(), video.get("split") or ""
        yield annotated(f"{path}: videos[{index}]", name, captions[name], split=MSRVTT_SPLITS.get(split, split))


def read_msrvtt_csv(text: str, path: str) -> Iterator[Annotated]:
    """MSR-VTT's test split 1K-A: columns `video_id` and `sentence`, one sentence per video."""
    for where, fields in table(text, path):
        yield annotated(where, text_field(fields, "video_id", where), [fields.get("sentence")])


def read_didemo(text: str, path: str) -> Iterator[Annotated]:
    """A JSON list with `video` and `description`, several per video: a paragraph per video."""
    sentences: dict[str, list[str]] = defaultdict(list)
    for where, item in _items(text, path):
        sentences[text_field(item, "video", where)].append(text_field(item, "description", where))
    for video, paragraph in sentences.items():
        yield annotated(f"{path}: {video}", video, [" ".join(paragraph)])


def read_activitynet(text: str, path: str) -> Iterator[Annotated]:
    """A JSON object by video, each with `sentences`: a paragraph per video; the file is {video}.mp4."""
    for video, item in json_value(text, path).items():
        where = f"{path}: {video}"
        if not isinstance(item, Mapping) or not isinstance(item.get("sentences"), list):
            raise ValueError(f"{where}: needs sentences, a list")
        yield annotated(where, f"{video}.mp4", [" ".join(map(str, item["sentences"]))])


def read_vatex(text: str, path: str) -> Iterator[Annotated]:
    """A JSON list with `videoID` and the English captions `enCap`; the file is {videoID}.mp4."""
    for where, item in _items(text, path):
        video = text_field(item, "videoID", where)
        if not isinstance(item.get("enCap"), list):
            raise ValueError(f"{where}: needs enCap, a list of captions; the test file without captions asks nothing")
        yield annotated(where, f"{video}.mp4", item["enCap"])


def read_lsmdc(text: str, path: str) -> Iterator[Annotated]:
    """Lines of six columns, apart by tabs; the file is {film}/{clip}.avi."""
    for where, line in lines(text, path):
        columns = line.split("\t")
        if len(columns) < LSMDC_COLUMNS:
            raise ValueError(f"{where}: needs {LSMDC_COLUMNS} columns apart by tabs, got {len(columns)}")
        clip = columns[0].strip()
        yield annotated(where, f"{clip.rpartition('_')[0]}/{clip}.avi", [columns[LSMDC_COLUMNS - 1]])


def read_msvd(text: str, path: str) -> Iterator[Annotated]:
    """Lines `NAME SENTENCE`, many per clip; the file is {NAME}.avi."""
    for where, line in lines(text, path):
        if line.startswith("#"):
            continue
        match = MSVD_LINE.fullmatch(line.strip())
        if not match:
            raise ValueError(f"{where}: needs the clip's name and a sentence, got {line[:80]!r}")
        yield annotated(where, f"{match[1]}.avi", [match[2]])


def _items(text: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, item) of a JSON list."""
    items = json_value(text, path)
    if not isinstance(items, list):
        raise ValueError(f"{path}: needs a JSON list")
    yield from ((f"{path}: [{index}]", item) for index, item in enumerate(items))


# --- folders ----------------------------------------------------------------------------------------------------------


def read_sidecars(path: str) -> Iterator[Annotated]:
    """A folder, or tars: beside a.mp4 lies a.txt, a caption per line, or a.json with `caption`.

    A first folder train, val, … is the split. A side-car without a video is a caption of a missing file; a video
    without a side-car, or with one that cannot be read, has no captions.
    """
    places = open_source(path).places
    sidecars = {posixpath.splitext(name)[0]: name for name in places if name.lower().endswith(".txt")}
    media_names = [name for name in places if kind_of(name)]
    stems = {posixpath.splitext(name)[0] for name in media_names}
    for name in media_names + [f"{stem}.mp4" for stem in sidecars if stem not in stems]:
        stem, first = posixpath.splitext(name)[0], name.split("/", 1)[0]
        sidecar = sidecars.get(stem) or (f"{stem}.json" if f"{stem}.json" in places else None)
        where = places[sidecar or name]
        try:
            captions = _sidecar_captions(where, sidecar) if sidecar else []
        except (OSError, UnicodeDecodeError) as error:  # a link to itself, a pipe, Latin-1: no caption of this clip
            if storage.is_remote(where):
                raise
            log.warning("%s cannot be read, so its clip has no captions: %s", where, error)
            captions = []
        yield annotated(where, name, captions, split=first if first in SPLIT_FOLDERS else "")


def _sidecar_captions(uri: str, name: str) -> list[Any]:
    """Return a caption per line of a .txt; of a .json its `caption`, one or several."""
    data = media.read(uri)
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else ""
    if name.lower().endswith(".txt"):
        return text.split("\n")
    try:
        captions = json.loads(text)["caption"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{uri}: needs a JSON object with caption, got {text[:80]!r}") from error
    return captions if isinstance(captions, list) else [captions]


def read_asr(path: str) -> Iterator[Annotated]:
    """Speech with times as HowTo100M has it, one JSON or one per video; neighbouring sentences become a clip of at
    least 5 words and 5 seconds.

    `{"start": […], "end": […], "text": […]}` in {video}.json, or in one file by video.
    """
    if storage.is_folder(path):
        files = {storage.join(path, name): name for name in storage.list_files(path) if name.endswith(".json")}
        speech = {file: (name.removesuffix(".json"), json_value(read_text(file), file)) for file, name in files.items()}
    else:
        by_video = json_value(read_text(path), path)
        speech = {f"{path}: {video}": (video, columns) for video, columns in by_video.items()}
    for where, (video, columns) in speech.items():
        try:
            starts, ends = map(float, columns["start"]), map(float, columns["end"])
            sentences = list(zip(starts, ends, map(str, columns["text"]), strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: needs start, end and text, three lists of one length") from error
        for start, end, text in spoken_clips(sentences):
            times = {"start": start, "end": end}
            start, end = (seconds_field(times, name, where) for name in times)
            yield annotated(where, video, [text], start=start, end=end)


def spoken_clips(
    sentences: Sequence[tuple[float, float, str]], *, min_words: int = 5, min_seconds: float = 5.0
) -> list[tuple[float, float, str]]:
    """Return neighbouring sentences joined to clips of at least so many words and seconds, in order of time.

    What is left at the end joins the clip before; sentences of no length are left out.
    """
    clips: list[tuple[float, float, str]] = []
    is_open = False
    for start, end, text in sorted(one for one in sentences if one[0] < one[1] and one[2].strip()):
        if is_open:
            before = clips.pop()
            start, end, text = before[0], max(before[1], end), f"{before[2]} {text}"
        clips.append((start, end, text))
        is_open = len(text.split()) < min_words or end - start < min_seconds
    if is_open and len(clips) > 1:
        (start, _, first), (_, end, last) = clips[-2:]
        clips[-2:] = [(start, max(end, clips[-2][1]), f"{first} {last}")]
    return clips
