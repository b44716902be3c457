"""Versions of a manifest in parts: FOLDER is the newest, FOLDER@3 is the third.

index.json ── the newest ── names ──► index-00002-….json, index-00001-….json ── their parts, many of them the same
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import storage

MAX_VERSIONS = 10
"""Number of versions of a manifest that stay readable, counting the newest. Files of older ones are removed."""
_NAMED = re.compile(r"(.+)@(\d+|[0-9a-f]{32})")


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a manifest."""

    number: int
    """From 1."""
    hash: str
    num_rows: int

    @property
    def file(self) -> str:
        """Return the file name of its index once it is no longer the newest."""
        return f"index-{self.number:05d}-{self.hash[:12]}.json"

    def matches(self, name: str) -> bool:
        """Return whether `name` is its number or hash."""
        return name in (str(self.number), self.hash)


def split_version(path: str) -> tuple[str, str | None]:
    """Split PATH@VERSION into the path of a manifest and its version, a number or a hash (None: not given)."""
    named = _NAMED.fullmatch(path)
    if named is None or storage.exists(path):
        return path, None
    return named[1], named[2]


def find_version(name: str, versions: Sequence[Version], path: str) -> Version:
    """Return the version of the manifest at `path` with this number or hash; `versions` are in order. ValueError for an
    unknown one."""
    for version in versions:
        if version.matches(name):
            return version
    listed = ", ".join(f"{version.number} ({version.num_rows} clips)" for version in versions)
    older = f"; {MAX_VERSIONS} are kept" if versions[0].number > 1 else ""
    raise ValueError(
        f"{path} has no version {name}: it has {listed}{older}. Name one of them, as {path}@{versions[-1].number}, or "
        f"leave @{name} out for the newest"
    )
