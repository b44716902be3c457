"""Match names in annotations to files: by path, else by a unique name, ignoring suffix, case and Unicode form."""

from __future__ import annotations

import posixpath
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from urllib.parse import unquote

from pipeline.corpus.buckets import NUM_BUCKETS
from pipeline.corpus.media import kind_of
from pipeline.nearest import nearest

PREFIXES = ("v_",)
"""Prefixes that names may have in annotations but not in files, or vice versa: ActivityNet's."""
MAX_COMPARED = 50_000
"""Largest number of names among which the nearest one is searched."""


def stem_of(path: str) -> str:
    """Return the file name without the suffix of a video or an image."""
    name = posixpath.basename(path)
    return posixpath.splitext(name)[0] if kind_of(name) else name


def folded(name: str) -> str:
    """Normalise case, Unicode form and surrounding whitespace of `name`."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def bucket_of_name(path: str) -> int:
    """Return the bucket of a path: equal for all paths that `NameIndex` or `Source` may match with each other.

    Only the file name up to its first dot counts, without case, Unicode form and `PREFIXES`.
    """
    name = folded(path.rpartition("/")[2].partition(".")[0])
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return zlib.crc32(name.encode(errors="surrogateescape")) % NUM_BUCKETS


class NameIndex:
    """Lookup of the clips of a source by name."""

    def __init__(self, places: Iterable[str]) -> None:
        """`places`: paths of all files; files that are not clips are ignored."""
        self._places = [place for place in places if kind_of(place)]

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        by_stem: dict[str, list[str]] = defaultdict(list)
        for place in self._places:
            by_stem[folded(stem_of(place))].append(place)
        return by_stem

    def candidates(self, path: str) -> list[str]:
        """Return the files that match `path` best. A single file is a certain match."""
        stem = folded(stem_of(path))
        prefixed = [stem.removeprefix(prefix) for prefix in PREFIXES] + [prefix + stem for prefix in PREFIXES]
        prefixed.append(unquote(stem))
        places = next((self._by_stem[key] for key in (stem, *prefixed) if key in self._by_stem), [])
        scores = {place: _fit(path, place) for place in places}
        best = max(scores.values(), default=None)
        return [place for place in places if scores[place] == best]

    def match(self, paths: Iterable[str]) -> dict[str, str]:
        """Return path → file, for the paths whose file is certain.

        If several paths match one file, it goes only to those with its exact stem whose folders agree with its own.
        """
        candidates = {path: self.candidates(path) for path in dict.fromkeys(paths)}
        owners: dict[str, list[str]] = defaultdict(list)
        for path, places in candidates.items():
            if len(places) == 1:
                owners[places[0]].append(path)
        return {
            path: place
            for place, rivals in owners.items()
            for path in rivals
            if len(rivals) == 1 or (_is_end(path, place) and stem_of(path) == stem_of(place))
        }

    def nearest(self, path: str) -> str:
        """Return a hint that names the most similar file, or several equally good ones; empty if there is none."""
        if len(places := self.candidates(path)) > 1:
            return f"{', '.join(places[:3])} are called so: name the clip by its path below the root"
        if len(self._by_stem) > MAX_COMPARED:
            return ""
        near = nearest(folded(stem_of(path)), self._by_stem, cutoff=0.75)
        return f"the nearest is {self._by_stem[near][0]}" if near else ""


def _parts(path: str) -> list[str]:
    return [*map(folded, posixpath.dirname(path).split("/")), folded(stem_of(path))]


def _is_end(path: str, place: str) -> bool:
    """Return whether one of two paths is a suffix of the other, ignoring file extension, case and Unicode form."""
    mine, theirs = ([part for part in _parts(name) if part] for name in (path, place))
    shared = min(len(mine), len(theirs))
    return mine[-shared:] == theirs[-shared:]


def _fit(path: str, place: str) -> tuple[int, bool, bool, bool]:
    """Score how well `place` fits `path`: by equal parts from the end, then kind, exact stem and exact path."""
    mine, theirs = _parts(path)[::-1], _parts(place)[::-1]
    shared = next((i for i, parts in enumerate(zip(mine, theirs, strict=False)) if parts[0] != parts[1]), len(mine))
    same_name = stem_of(path) == stem_of(place)
    return shared, kind_of(path) == kind_of(place), same_name, path == place
