"""Read captions from files beside the videos, in a folder or in WebDataset's tars."""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.clip_rows import Annotated, WrongRow, annotated, attempt, captions_of
from pipeline.corpus.media import kind_of
from pipeline.corpus.names import folded, stem_of
from pipeline.corpus.sources import open_source
from pipeline.corpus.splits import split_of_folder
from pipeline.corpus.text_files import read_text

NO_CAPTIONS = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|notes?|citation|authors|requirements|classes|labels|index|metadata|"
    r"captions?|prompts?|videos?|(train|val|valid|test)([_-]?(list|ids|split))?|files?|urls?|info|about)\.(txt|json)",
    re.I,
)
"""Matches files that describe all videos, not one. Applies only to files without a video of the same name."""
CAPTION_KEYS = ("caption", "captions", "text", "txt", "description", "sentence", "prompt")
"""Keys under which a .json may have the captions."""
TEXT_SUFFIXES = (".txt", ".caption", ".cap", ".json")

log = logging.getLogger(__name__)


def read_sidecars(path: str) -> Iterator[Annotated]:
    """Read a folder or tars in which a.txt, with a caption per line, or a.json with `caption` lies beside a.mp4.

    In tars, files with the same name up to the first dot are one sample, as in WebDataset. A folder called train, val,
    … is the split. A text file without a video is a caption of a missing file; a video without a side-car, or with one
    that cannot be read, has no captions.
    """
    places = open_source(path).places
    if prompts := prompt_lists(places):
        yield from attempt(_prompted(places, *prompts), lambda where, pair: annotated(where, pair[0], [pair[1]]))
        return
    media_names = [name for name in places if kind_of(name)]
    texts = [name for name in places if name.lower().endswith(TEXT_SUFFIXES)]
    beside = _beside(media_names, texts)
    beside |= _in_other_folders(beside, texts)
    used = {text for names in beside.values() for text in names}
    orphans = [name for name in texts if name not in used and not name.lower().endswith(".json")]
    gone = [name for name in orphans if not NO_CAPTIONS.fullmatch(posixpath.basename(name))]
    if about := sorted(set(orphans) - set(gone)):
        log.info("%s are no captions of videos and are left out", ", ".join(about[:5]))
    names = list(beside.items())
    names += [(f"{posixpath.splitext(name)[0]}.mp4", [name]) for name in gone]

    def read(where: str, pair: tuple[str, list[str]]) -> Annotated:
        name, texts = pair
        return annotated(where, name, _captions(texts, places), split=split_of_folder(name) or "")

    yield from attempt(((places[(texts or [name])[0]], (name, texts)) for name, texts in names), read)


def _beside(media_names: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """Return video → side-cars: those named by its stem (a.json), by its full name (a.mp4.json), and in tars all files
    of its sample."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    by_key: dict[str, list[str]] = defaultdict(list)
    for text in sorted(texts, key=lambda name: name.lower().endswith(".json")):
        by_stem[folded(posixpath.splitext(text)[0])].append(text)
        by_key[_key(text)].append(text)
    num_media = Counter(map(_key, media_names))
    return {
        name: by_stem[folded(posixpath.splitext(name)[0])]
        + by_stem[folded(name)]
        + (by_key[_key(name)] if any(map(media.is_tar, name.split("/"))) and num_media[_key(name)] == 1 else [])
        for name in media_names
    }


def _in_other_folders(beside: Mapping[str, list[str]], texts: Sequence[str]) -> dict[str, list[str]]:
    """Return video → side-car in another folder, for videos without one beside them, if the name is unique."""
    used = {text for names in beside.values() for text in names}
    by_stem: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        if text not in used:
            by_stem[folded(posixpath.splitext(posixpath.basename(text))[0])].append(text)
    stems = Counter(folded(stem_of(name)) for name in beside)
    return {
        name: by_stem[folded(stem_of(name))]
        for name, names in beside.items()
        if not names and stems[folded(stem_of(name))] == 1 and len(by_stem[folded(stem_of(name))]) == 1
    }


def _key(name: str) -> str:
    """Return WebDataset's key of a sample: the path up to the first dot after the last slash."""
    folder, base = posixpath.split(name)
    return f"{folder}/{base.partition('.')[0]}"


def _captions(texts: list[str], places: Mapping[str, str]) -> list[Any]:
    """Return the captions of the first side-car that has any."""
    for name in texts:
        where = places[name]
        try:
            captions = sidecar_captions(where, name)
        except (OSError, UnicodeDecodeError) as error:  # a symlink loop, a pipe, Latin-1
            if storage.is_remote(where):
                raise
            log.warning("%s cannot be read, so its clip has no captions: %s", where, error)
            continue
        if any(captions_of(caption) for caption in captions):
            return captions
    return []


def sidecar_captions(uri: str, name: str) -> list[Any]:
    """Read the captions of a side-car: the lines of a .txt, or one or several under `caption` in a .json.

    ValueError for lines that are one wrapped sentence, and for invalid JSON.
    """
    data = media.read(uri)
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else ""
    if not name.lower().endswith(".json"):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and _is_wrapped(lines):
            raise ValueError(f"{uri}: {len(lines)} lines that read as one sentence; a line is a caption: join them")
        return re.split(r"[\r\n]+", text)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{uri}: needs a JSON object with caption, got {text[:80]!r}") from error
    if not isinstance(value, dict):
        return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []
    return [next((value[key] for key in CAPTION_KEYS if value.get(key)), None)]


def _is_wrapped(lines: list[str]) -> bool:
    """Return whether lines are one wrapped sentence: only the first starts with a capital, only the last ends with a
    full stop, ! or ?."""
    return (
        lines[0][0].isupper()
        and lines[-1][-1] in ".!?"
        and all(line[0].islower() for line in lines[1:])
        and not any(line[-1] in ".!?" for line in lines[:-1])
    )


# --- a list of videos and a list of prompts ---------------------------------------------------------------------------


def prompt_lists(places: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the files with the names and the captions of the videos, one per line: a common layout of training data
    for video generators. None if there are none."""
    pairs = (("videos.txt", "prompts.txt"), ("videos.txt", "prompt.txt"), ("videos.txt", "captions.txt"))
    return next((pair for pair in pairs if set(pair) <= places.keys()), None)


def _prompted(places: Mapping[str, str], videos: str, prompts: str) -> Iterator[tuple[str, tuple[str, str] | WrongRow]]:
    names, captions = (read_text(places[name]).rstrip("\n").split("\n") for name in (videos, prompts))
    if len(names) != len(captions):
        raise ValueError(
            f"{places[videos]} has {len(names)} lines and {places[prompts]} {len(captions)}: a line for each video"
        )
    for number, pair in enumerate(zip(names, captions, strict=True), start=1):
        yield f"{places[prompts]}:{number}", pair
