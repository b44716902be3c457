"""Map the columns of a caption table to meanings, by known names or as the command line says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pipeline.corpus.clip_rows import is_nothing, items_of
from pipeline.corpus.splits import SPLITS
from pipeline.nearest import nearest

KEY = "(key)"
"""Name of the column with the keys of a JSON dictionary whose values are rows."""
NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {
        "clip": (
            ("clipname",),
            tuple(
                "filename filepath videopath videofile videofilename path file relpath relativepath localpath clippath "
                "imagepath imagefile mediapath imagename".split()
            ),
            tuple(
                "video videoid videoname vid vidid vidname clip clipid gifname gif youtubeid youtubevideoid ytid image "
                "imageid media".split()
            ),
            (KEY,),
            ("id", "key", "name", "uid"),
            ("url", "videourl", "contenturl", "imageurl", "link"),
        ),
        "caption": (
            tuple(
                "caption captions encap text txt sentence sentences description descriptions prompt prompts phrase "
                "narration conversations messages".split()
            ),
            ("query", "desc", "alttext", "comment"),
        ),
        "start": (
            tuple(
                "start startseconds starttime startsec starts starttimestamp begin begintime beginseconds tstart "
                "timestart clipstart startms starttimems".split()
            ),
        ),
        "end": (
            tuple(
                "end endseconds endtime endsec ends endtimestamp stop stoptime stopseconds stoptimestamp finish endms "
                "tend timeend clipend endtimems".split()
            ),
        ),
        "span": (
            ("timestamp", "timestamps", "times", "segment", "segments", "span", "window", "timespan", "ts", "interval"),
        ),
        "duration": (),
        "split": (("split", "subset", "partition", "splits"),),
    }
)
"""Meaning → ranks of normalised names (`plain`), in order of preference. A span is a pair of times, or a list of pairs
beside a list of captions."""
LOOKS_LIKE = {
    "a caption": re.compile(r"caption|cap$|text|sentence|descri|prompt"),
    "a time": re.compile(
        r"start|begin|^from|end(s|time|sec|frame|ts)?$|stop|timestamp|window|(^|time)to$|^t[01]$|interval|"
        r"offset|spans?$|segments?$|moments?$"
    ),
    "a split": re.compile(r"split|subset|partition|^set$|^phase$|^fold$|^stage$|^mode$|^is(train|val|test)"),
}
MEDIA = ("videos", "images")
"""Columns of files in chat-model training data; used as the clip only if every row has exactly one file."""
LENGTHS = frozenset({"duration", "length", "durationseconds", "dur"})
"""Names of columns that may give the length of a clip. They are not used unless named by the user."""
_ENDS = re.compile(r"end|stop|finish")
"""Matches, among columns that look like times, those of a clip's end."""
MSRVTT_TIMES = frozenset({"start time", "end time"})
MSRVTT_NAME = re.compile(r"video\d+(\.mp4)?")
"""In MSR-VTT's tables, times refer to the video that the clip was cut from."""


_PAIR = re.compile(r"[\[(]?\s*[\d:.]+\s*(s|sec)?\s*(-|–|,|;|to|~|\s)\s*[\d:.]+\s*(s|sec)?\s*[\])]?")
"""Matches a text with two times."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The column of each meaning."""

    clip: str
    caption: str | None
    start: str | None = None
    end: str | None = None
    span: str | None = None
    split: str | None = None
    duration: str | None = None
    """Length of the clip; used only if the user names it."""
    notes: tuple[str, ...] = ()
    """Unused columns that look relevant."""

    def describe(self) -> str:
        """Format meanings and columns as one line."""
        pairs = [(meaning, getattr(self, meaning)) for meaning in NAMES]
        return ", ".join(f"{meaning} = {name}" for meaning, name in pairs if name is not None)

    @property
    def is_native_format(self) -> bool:
        """Return whether this is our own format of JSON lines, with `type` and `group`."""
        return self.clip == "clip_name"


def plain(name: str) -> str:
    """Normalise a column name as in `NAMES`: lower case, without whitespace, `_`, `-` and `.`."""
    return re.sub(r"[\s_.\-]+", "", name).casefold()


def meanings(pairs: Sequence[str]) -> dict[str, str]:
    """Parse `MEANING=COLUMN` pairs into meaning → column. ValueError for a malformed pair."""
    given = {}
    for pair in pairs:
        meaning, equals, column = pair.partition("=")
        if not equals or meaning not in NAMES:
            raise ValueError(f"columns are MEANING=COLUMN, with {', '.join(NAMES)} as meanings, got {pair!r}")
        given[meaning] = column
    return given


def choose(rows: Sequence[Mapping[str, Any]], given: Mapping[str, str], path: str) -> Columns:
    """Choose the column of each meaning. ValueError, with the remedy, if a required one is missing or ambiguous."""
    names = list(dict.fromkeys(name for row in rows for name in row if isinstance(name, str)))
    chosen: dict[str, str | None] = {}
    for meaning, column in given.items():
        if column and column not in names:
            near = nearest(column, names, cutoff=0.6)
            raise ValueError(f"{path}: no column {column!r}{f'; the nearest is {near!r}' if near else ''}: "
                             f"it has {_listed(names)}")  # fmt: skip
        chosen[meaning] = column or None
    is_msrvtt = set(names) >= MSRVTT_TIMES and _is_named(rows, MSRVTT_NAME)
    for meaning, ranks in NAMES.items():
        if meaning not in chosen:
            times_of_film = is_msrvtt and meaning in ("start", "end", "span")
            chosen[meaning] = None if times_of_film else _by_rank(meaning, ranks, names, rows, path)
    if chosen["clip"] is None:
        chosen["clip"] = next((name for name in names if plain(name) in MEDIA and _is_single(name, rows)), None)
    if chosen["clip"] is None:
        raise ValueError(_without_clip(names, path))
    is_spanned = chosen["span"] and _is_span(chosen["span"], rows, path)
    if chosen["start"] or chosen["end"] or not is_spanned:
        chosen["span"] = None if "span" not in given else chosen["span"]
    if chosen["split"] is None and "split" not in given:
        chosen["split"] = _of_splits([name for name in names if name not in chosen.values()], rows, path)
    columns = Columns(**chosen)  # pyright: ignore[reportArgumentType]
    unused = [name for name in names if name not in chosen.values()]
    if is_msrvtt:
        unused = [name for name in unused if name not in MSRVTT_TIMES]
    return replace(columns, notes=_checked(columns, unused, given, rows, path))


def _is_named(rows: Sequence[Mapping[str, Any]], name: re.Pattern[str]) -> bool:
    return all(name.fullmatch(str(row.get("video_id"))) for row in rows)


def _by_rank(
    meaning: str, ranks: Iterable[Sequence[str]], names: list[str], rows: Sequence[Mapping[str, Any]], path: str
) -> str | None:
    for rank in ranks:
        fitting = [name for name in names if plain(name) in rank and any(not is_nothing(row.get(name)) for row in rows)]
        if meaning in ("start", "end", "span") or not fitting:
            fitting = fitting or [name for name in names if plain(name) in rank]
        if len(fitting) > 1 and any(len({str(row.get(name)) for name in fitting}) > 1 for row in rows):
            remedy = " or ".join(columns_option(meaning, name) for name in fitting)
            raise ValueError(f"{path}: {' and '.join(fitting)} may each be the {meaning}: say {remedy}")
        if fitting:
            return fitting[0]
    return None


def _is_single(name: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether each value of a column is a list with one text."""
    values = [items_of(row.get(name)) for row in rows]
    return all(isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) for value in values)


def columns_option(meaning: str, name: str) -> str:
    """Return the command line option that assigns a column to a meaning, quoted for a shell."""
    return f"--columns {shlex.quote(f'{meaning}={name}')}"


def _without_clip(names: list[str], path: str) -> str:
    return (
        f"{path}:1: needs clip_name, or another column that names the clip: it has {_listed(names)}; say --columns "
        "clip=COLUMN caption=COLUMN"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (", …" if len(names) > 12 else "")


def _is_span(name: str, rows: Iterable[Mapping[str, Any]], path: str) -> bool:
    values = [items_of(row[name]) for row in rows if not is_nothing(row.get(name))]
    if values and all(isinstance(value, str) and _PAIR.fullmatch(value.strip()) for value in values):
        raise ValueError(
            f"{path}: {name} may be the times of the clip, as {values[0]!r}: write them as columns start and end, or "
            "say --columns span= for whole videos"
        )
    return bool(values) and all(isinstance(value, list) and value for value in values)


def _of_splits(unused: list[str], rows: Sequence[Mapping[str, Any]], path: str) -> str | None:
    """Return the column whose values are all names of splits, whatever it is called. ValueError for several."""
    fitting = [name for name in unused if _values(name, rows) and _values(name, rows) <= SPLITS.keys()]
    if len(fitting) > 1:
        remedy = " or ".join(columns_option("split", name) for name in fitting)
        raise ValueError(f"{path}: {' and '.join(fitting)} may each be the split: say {remedy}")
    return next(iter(fitting), None)


def _values(name: str, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    return {str(row[name]).strip().lower() for row in rows if not is_nothing(row.get(name))}


def _checked(
    columns: Columns, unused: list[str], given: Mapping[str, str], rows: Sequence[Mapping[str, Any]], path: str
) -> tuple[str, ...]:
    """Return notes on unused columns. ValueError if captions, times or splits would be lost with them."""
    alike = {
        sort: [name for name in unused if pattern.search(plain(name)) and _has_values(name, rows)]
        for sort, pattern in LOOKS_LIKE.items()
    }
    is_silent = columns.caption is None and "caption" not in given
    if is_silent and alike["a caption"]:
        remedy = " or ".join(columns_option("caption", name) for name in alike["a caption"])
        raise ValueError(f"{path}: {' and '.join(alike['a caption'])} may be the caption: say {remedy}")
    if is_silent and not columns.is_native_format:
        raise ValueError(
            f"{path}: no column has captions: it has {_listed([*unused, columns.clip])}; name the file with the "
            "captions, or say --columns caption=COLUMN"
        )
    untimed = columns.start is None and columns.end is None and columns.span is None
    if untimed and alike["a time"] and not given.keys() & {"start", "end", "span"}:
        spans = [columns_option("span", name) for name in alike["a time"] if _has_lists(name, rows)]
        remedy = " or ".join(spans) or "--columns start=COLUMN end=COLUMN, in seconds"
        raise ValueError(
            f"{path}: {' and '.join(alike['a time'])} may be the times of the clip: say {remedy}, or --columns start= "
            "for whole videos"
        )
    ends = [name for name in alike["a time"] if _ENDS.search(plain(name))]
    if columns.start and columns.end is None and ends and "end" not in given:
        raise ValueError(
            f"{path}: {columns.start} has no end, and {' and '.join(ends)} may be it: say "
            f"{' or '.join(columns_option('end', name) for name in ends)}, in seconds, or --columns end= for clips up "
            "to the end of the video"
        )
    lengths = [name for name in unused if plain(name) in LENGTHS]
    if columns.start and columns.end is None and lengths and "duration" not in given:
        raise ValueError(
            f"{path}: {columns.start} has no end, and {lengths[0]} may be the length of the clip or of the video: say "
            f"{columns_option('duration', lengths[0])}, or --columns duration= for clips up to the end of the video"
        )
    flags = [name for name in alike["a split"] if plain(name).startswith("is")]
    if columns.split is None and flags and "split" not in given:
        raise ValueError(
            f"{path}: {' and '.join(flags)} may say the split: write a column with train, val or test, or say "
            "--columns split= to leave it out"
        )
    return tuple(f"{name} is not used, and looks like {sort}" for sort, names in alike.items() for name in names)


def _has_lists(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return all(isinstance(items_of(row.get(name)), list) for row in rows if not is_nothing(row.get(name)))


def _has_values(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(not is_nothing(row.get(name)) for row in rows)
