"""What people write beside their videos, read into one form.

    JSON lines · WebVid CSV · the benchmarks' own files · videos with .txt side-cars  ──►  Annotation per clip

The format is told by the content, or named. A line that cannot be read is refused with its file and number: captions
lost in silence would change what is learned.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from pipeline import storage
from pipeline.corpus import caption_formats, media
from pipeline.corpus.media import kind_of
from pipeline.corpus.sources import open_source
from pipeline.records import Kind

MSRVTT_SPLITS = {"validate": "val"}
"""What MSR-VTT's JSON calls a split, where that is not our word for it."""
SPLIT_FOLDERS = frozenset({"train", "val", "validation", "test"})


class Format(StrEnum):
    """How captions are written."""

    JSON_LINES = "json_lines"
    """A line per caption: `caption`, `clip_name`; optional `type`, `start`, `end`, `split`, `group`."""
    WEBVID_CSV = "webvid_csv"
    """Columns `videoid`, `name`, `page_dir`; the file is {page_dir}/{videoid}.mp4."""
    MSRVTT_JSON = "msrvtt_json"
    """One object with `videos` and `sentences`; the file is {video_id}.mp4."""
    MSRVTT_CSV = "msrvtt_csv"
    """Columns `video_id` and `sentence`: the test split 1K-A."""
    DIDEMO = "didemo"
    """A JSON list with `video` and `description`; a video's sentences are one paragraph."""
    ACTIVITYNET = "activitynet"
    """A JSON object by video with `sentences`, which are one paragraph; the file is {video}.mp4."""
    VATEX = "vatex"
    """A JSON list with `videoID` and `enCap`; the file is {videoID}.mp4."""
    LSMDC = "lsmdc"
    """Six columns apart by tabs; the file is {film}/{clip}.avi."""
    MSVD = "msvd"
    """Lines `NAME SENTENCE`; the file is {NAME}.avi."""
    SIDECARS = "sidecars"
    """A folder, or tars: beside a.mp4 lies a.txt, a caption per line, or a.json with `caption`. A first folder train,
    val, … is the split."""
    ASR = "asr"
    """Speech with times as HowTo100M has it, one JSON or one per video; neighbouring sentences become a clip of at
    least 5 words and 5 seconds."""


BENCHMARK_READERS: Mapping[Format, Callable[[str, str], Iterator[caption_formats.Clip]]] = MappingProxyType(
    {
        Format.MSRVTT_CSV: caption_formats.msrvtt_csv,
        Format.DIDEMO: caption_formats.didemo,
        Format.ACTIVITYNET: caption_formats.activitynet,
        Format.VATEX: caption_formats.vatex,
        Format.LSMDC: caption_formats.lsmdc,
        Format.MSVD: caption_formats.msvd,
    }
)


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A clip and its captions. No captions: the clip is known, and lacks them."""

    relative_path: str
    """Below the corpus root, with forward slashes."""
    captions: tuple[str, ...]
    kind: Kind
    split: str
    group: str | None = None
    """Clips that a test compares among themselves."""
    start_seconds: float | None = None
    end_seconds: float | None = None


def read_annotations(
    sources: Sequence[str], *, split: str = "train", format: Format | None = None, lists: Sequence[str] = ()
) -> list[Annotation]:
    """One annotation per clip (path, start, end), in order of first mention; captions of all sources together.

    A source is a file or folder, or `SPLIT=PATH`. Its own split is used where a line names none, then `split`.
    `lists`: `SPLIT=PATH` of files that name the clips of a split; they come before all that, and a clip in none of them
    is left out. A clip that stands in two splits or two groups is refused.
    """
    listed = read_lists(lists)
    clips: dict[tuple[str, float | None, float | None], Annotation] = {}
    for source in sources:
        named, path = split_and_path(source)
        for where, one in _read(path, named or split, format):
            if lists:
                own = listed.get(caption_formats.stem(one.relative_path))
                if own is None:
                    continue
                one = replace(one, split=own)
            key = (one.relative_path, one.start_seconds, one.end_seconds)
            clips[key] = _merge(clips.get(key, one), one, where) if key in clips else one
    return list(clips.values())


def split_and_path(source: str) -> tuple[str | None, str]:
    """`SPLIT=PATH` in two; (None, source) where no split is named."""
    match = re.fullmatch(r"(\w+)=(.+)", source)
    return (match[1], match[2]) if match else (None, source)


def read_lists(lists: Sequence[str]) -> dict[str, str]:
    """Of each clip's name without suffix its split. ValueError for a clip in two of them."""
    found: dict[str, str] = {}
    for source in lists:
        split, path = split_and_path(source)
        if split is None:
            raise ValueError(f"a list of clips is named SPLIT=PATH, got {source!r}")
        storage.check_readable(path)
        for name in caption_formats.read_list(storage.read_bytes(path).decode("utf-8-sig"), path):
            if found.setdefault(name, split) != split:
                raise ValueError(f"{path}: {name} is in the split {found[name]} too; a clip has one split")
    return found


def tell_format(text: str, path: str) -> Format:
    """The format of a file's text. ValueError if it is none of ours."""
    first = text.lstrip().split("\n", 1)[0]
    if {"videoid", "name", "page_dir"} <= {column.strip() for column in first.split(",")}:
        return Format.WEBVID_CSV
    if {"video_id", "sentence"} <= {column.strip() for column in first.split(",")}:
        return Format.MSRVTT_CSV
    if first.startswith("["):
        return _tell_list(text, path)
    if first.count("\t") >= caption_formats.LSMDC_COLUMNS - 1:
        return Format.LSMDC
    if caption_formats.MSVD_LINE.fullmatch(first.strip()):
        return Format.MSVD
    if first.startswith("{"):
        for candidate in (first, text):
            try:
                value = json.loads(candidate)
            except ValueError:
                continue
            if {"videos", "sentences"} <= value.keys():
                return Format.MSRVTT_JSON
            is_by_video = value and all(isinstance(one, dict) and "sentences" in one for one in value.values())
            return Format.ACTIVITYNET if is_by_video else Format.JSON_LINES
        return Format.JSON_LINES  # its reader says which line is wrong
    raise ValueError(
        f"{path}: cannot tell the format from {first[:60]!r}; it may be {', '.join(Format)}, name it with --format"
    )


def _tell_list(text: str, path: str) -> Format:
    try:
        columns = set(json.loads(text)[0])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: no JSON list of objects ({error})") from error
    for format, needed in {Format.DIDEMO: {"video", "description"}, Format.VATEX: {"videoID", "enCap"}}.items():
        if needed <= columns:
            return format
    raise ValueError(f"{path}: cannot tell the format of a list of {sorted(columns)}; name it with --format")


def _read(path: str, split: str, format: Format | None) -> Iterator[tuple[str, Annotation]]:
    """Pairs (file:line, annotation)."""
    storage.check_readable(path)
    if format == Format.ASR:
        yield from _read_asr(path, split)
        return
    if format == Format.SIDECARS or (format is None and storage.is_folder(path)):
        yield from _read_sidecars(path, split)
        return
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); convert it first") from error
    if not text.strip():
        raise ValueError(f"{path} is empty: name a file with captions")
    format = format or tell_format(text, path)
    if reader := BENCHMARK_READERS.get(format):
        for where, name, captions in reader(text, path):
            clip_path = _clip_path(name, where)
            yield (
                where,
                Annotation(relative_path=clip_path, captions=_captions(captions, where), kind=Kind.VIDEO, split=split),
            )
        return
    match format:
        case Format.JSON_LINES:
            yield from _read_json_lines(text, path, split)
        case Format.WEBVID_CSV:
            yield from _read_webvid(text, path, split)
        case _:
            yield from _read_msrvtt(text, path, split)


def _read_json_lines(text: str, path: str, split: str) -> Iterator[tuple[str, Annotation]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: no JSON ({error}): {line[:80]!r}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: a line must be an object with clip_name and caption, got {line[:80]!r}")
        yield where, _from_fields(fields, where, split)


def _from_fields(fields: Mapping[str, Any], where: str, split: str) -> Annotation:
    path = _clip_path(_text(fields, "clip_name", where), where)
    start, end = (_seconds(fields, name, where) for name in ("start", "end"))
    if start is not None and end is not None and start >= end:
        raise ValueError(f"{where}: a clip needs start < end, got start {start} and end {end}")
    kind = fields.get("type") or kind_of(path) or Kind.VIDEO
    if kind not in set(Kind):
        raise ValueError(f"{where}: type must be one of {', '.join(Kind)}, got {kind!r}")
    group = fields.get("group")
    return Annotation(
        relative_path=path,
        captions=_captions([fields.get("caption")], where),
        kind=Kind(kind),
        split=_text(fields, "split", where) if fields.get("split") else split,
        group=None if group is None else str(group),
        start_seconds=start,
        end_seconds=end,
    )


def _read_webvid(text: str, path: str, split: str) -> Iterator[tuple[str, Annotation]]:
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for fields in lines:
            where = f"{path}:{lines.line_num}"
            folder, name = (_text(fields, column, where) for column in ("page_dir", "videoid"))
            clip_path = _clip_path(f"{folder}/{name}.mp4", where)
            captions = _captions([fields.get("name")], where)
            yield where, Annotation(relative_path=clip_path, captions=captions, kind=Kind.VIDEO, split=split)
    except csv.Error as error:
        raise ValueError(f"{path}:{lines.line_num + 1}: no CSV ({error})") from error


def _read_msrvtt(text: str, path: str, split: str) -> Iterator[tuple[str, Annotation]]:
    """Its start and end times belong to the films that the clips were cut from, not to the clips."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if not isinstance(value, dict) or not {"videos", "sentences"} <= value.keys():
        raise ValueError(f"{path}: MSR-VTT's JSON is one object with `videos` and `sentences`")
    captions: dict[str, list[Any]] = {}
    for index, video in enumerate(value["videos"]):
        captions[_text(video, "video_id", f"{path}: videos[{index}]")] = []
    for index, sentence in enumerate(value["sentences"]):
        where = f"{path}: sentences[{index}]"
        name = _text(sentence, "video_id", where)
        if name not in captions:
            raise ValueError(f"{where}: its video {name!r} is not among `videos`")
        captions[name].append(sentence.get("caption"))
    for index, video in enumerate(value["videos"]):
        where, name = f"{path}: videos[{index}]", video["video_id"]
        yield (
            where,
            Annotation(
                relative_path=_clip_path(name, where),
                captions=_captions(captions[name], where),
                kind=Kind.VIDEO,
                split=MSRVTT_SPLITS.get(video.get("split"), video.get("split")) or split,
            ),
        )


def _read_sidecars(folder: str, split: str) -> Iterator[tuple[str, Annotation]]:
    """A side-car without a video is a caption of a missing file; a video without a side-car has no captions."""
    places = open_source(folder).places
    sidecars = {posixpath.splitext(name)[0]: name for name in places if name.lower().endswith(".txt")}
    media_names = [name for name in places if kind_of(name)]
    stems = {posixpath.splitext(name)[0] for name in media_names}
    for name in media_names + [f"{stem}.mp4" for stem in sidecars if stem not in stems]:
        stem = posixpath.splitext(name)[0]
        sidecar = sidecars.get(stem) or (f"{stem}.json" if f"{stem}.json" in places else None)
        where = places[sidecar or name]
        first = name.split("/", 1)[0]
        yield (
            where,
            Annotation(
                relative_path=name,
                captions=_captions(_sidecar_lines(where, sidecar) if sidecar else [], where),
                kind=kind_of(name) or Kind.VIDEO,
                split=first if first in SPLIT_FOLDERS else split,
            ),
        )


def _sidecar_lines(uri: str, name: str) -> list[Any]:
    """A caption per line of a .txt; of a .json its `caption`, one or several."""
    data = media.read(uri)
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else ""
    if name.lower().endswith(".txt"):
        return text.split("\n")
    try:
        captions = json.loads(text)["caption"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{uri}: needs a JSON object with caption, got {text[:80]!r}") from error
    return captions if isinstance(captions, list) else [captions]


def _read_asr(path: str, split: str) -> Iterator[tuple[str, Annotation]]:
    """`{"start": […], "end": […], "text": […]}` in {video}.json, or in one file by video."""
    if storage.is_folder(path):
        names = [name for name in storage.list_files(path) if name.endswith(".json")]
        files = {storage.join(path, name): name.removesuffix(".json") for name in names}
        speech = {where: (video, _json(where)) for where, video in files.items()}
    else:
        speech = {f"{path}: {video}": (video, one) for video, one in _json(path).items()}
    for where, (video, one) in speech.items():
        try:
            columns = list(zip(map(float, one["start"]), map(float, one["end"]), map(str, one["text"]), strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: needs start, end and text, three lists of one length") from error
        clip_path = _clip_path(video, where)
        for start, end, text in spoken_clips(columns):
            yield (
                where,
                Annotation(
                    relative_path=clip_path,
                    captions=_captions([text], where),
                    kind=Kind.VIDEO,
                    split=split,
                    start_seconds=_seconds({"start": start}, "start", where),
                    end_seconds=_seconds({"end": end}, "end", where),
                ),
            )


def spoken_clips(
    sentences: Sequence[tuple[float, float, str]], *, min_words: int = 5, min_seconds: float = 5.0
) -> list[tuple[float, float, str]]:
    """Neighbouring sentences joined to clips of at least so many words and seconds, in order of time.

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


def _json(path: str) -> Any:
    try:
        return json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error


def _merge(known: Annotation, more: Annotation, where: str) -> Annotation:
    for field in ("split", "group", "kind"):
        before, now = getattr(known, field), getattr(more, field)
        if before != now:
            raise ValueError(
                f"{where}: {known.relative_path} has {field} {now}, in an earlier line {before}; a clip has one {field}"
            )
    return replace(known, captions=known.captions + more.captions)


def _clip_path(name: str, where: str) -> str:
    """The path below the root: without a suffix it gets .mp4, as the published code did."""
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith(("/", "..")) or path == "." or "://" in name:
        raise ValueError(f"{where}: clip_name {name!r} must be a path below the corpus root")
    return path if posixpath.splitext(path)[1] else f"{path}.mp4"


def _captions(values: Iterable[Any], where: str) -> tuple[str, ...]:
    """The captions that say something, with single spaces."""
    captions = []
    for value in values:
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where}: a caption must be text, got {value!r}")
        captions.append(" ".join((value or "").split()))
    return tuple(caption for caption in captions if caption)


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: needs {name}, a text that is not empty, got {value!r}")
    return value.strip()


def _seconds(fields: Mapping[str, Any], name: str, where: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{where}: {name} must be a number of seconds from 0 on, got {value!r}")
    return float(value)
