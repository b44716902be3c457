"""Files by what annotations call them: by path, else by a unique name with suffix, case or Unicode form aside."""

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
"""What names have before them in annotations and not in files, or the other way round: ActivityNet's."""
MAX_COMPARED = 50_000
"""Names among which the nearest one is looked for."""


def stem_of(path: str) -> str:
    """Return the name without folders, and without the suffix of a video or an image."""
    name = posixpath.basename(path)
    return posixpath.splitext(name)[0] if kind_of(name) else name


def folded(name: str) -> str:
    """Return `name` with case and Unicode form aside."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def bucket_of_name(path: str) -> int:
    """Return one number for all paths of clips and files that `Names` or `Source` may take for one another: what is
    before the first dot of the last part, with case, Unicode form and `PREFIXES` aside."""
    name = folded(path.rpartition("/")[2].partition(".")[0])
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return zlib.crc32(name.encode(errors="surrogateescape")) % NUM_BUCKETS


class Names:
    """The clips of a source by their names."""

    def __init__(self, places: Iterable[str]) -> None:
        """`places`: paths of all files; those of clips are matched."""
        self._places = [place for place in places if kind_of(place)]

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        by_stem: dict[str, list[str]] = defaultdict(list)
        for place in self._places:
            by_stem[folded(stem_of(place))].append(place)
        return by_stem

    def candidates(self, path: str) -> list[str]:
        """Return the files that `path` may mean and that fit it best; a single one is it."""
        stem = folded(stem_of(path))
        prefixed = [stem.removeprefix(prefix) for prefix in PREFIXES] + [prefix + stem for prefix in PREFIXES]
        prefixed.append(unquote(stem))
        places = next((self._by_stem[key] for key in (stem, *prefixed) if key in self._by_stem), [])
        scores = {place: _fit(path, place) for place in places}
        best = max(scores.values(), default=None)
        return [place for place in places if scores[place] == best]

    def match(self, paths: Iterable[str]) -> dict[str, str]:
        """Return path → file, for the paths whose file is certain.

        A file goes to several names only where one is the end of the other, to the letter.
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
        """Return, in words, the file that is called most alike; empty if none is."""
        if len(places := self.candidates(path)) > 1:
            return f"{', '.join(places[:3])} are called so: name the clip by its path below the root"
        if len(self._by_stem) > MAX_COMPARED:
            return ""
        near = nearest(folded(stem_of(path)), self._by_stem, cutoff=0.75)
        return f"the nearest is {self._by_stem[near][0]}" if near else ""


def _parts(path: str) -> list[str]:
    return [*map(folded, posixpath.dirname(path).split("/")), folded(stem_of(path))]


def _is_end(path: str, place: str) -> bool:
    """Return whether one of two paths is the end of the other, with suffix, case and Unicode form aside."""
    mine, theirs = ([part for part in _parts(name) if part] for name in (path, place))
    shared = min(len(mine), len(theirs))
    return mine[-shared:] == theirs[-shared:]


def _fit(path: str, place: str) -> tuple[int, bool, bool, bool]:
    """Return how well `place` fits `path`: equal parts from the end, then kind, then case."""
    mine, theirs = _parts(path)[::-1], _parts(place)[::-1]
    shared = next((i for i, parts in enumerate(zip(mine, theirs, strict=False)) if parts[0] != parts[1]), len(mine))
    same_name = stem_of(path) == stem_of(place)
    return shared, kind_of(path) == kind_of(place), same_name, path == place
