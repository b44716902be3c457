"""Suggest the closest known name for an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, names: Iterable[str], cutoff: float = 0.4) -> str | None:
    """Return the name most similar to `word`; None if no similarity reaches `cutoff`, in [0, 1]."""
    return next(iter(difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, names: Iterable[str], cutoff: float = 0.4) -> str:
    """Return the question "did you mean …?" with the most similar name; empty if none is similar enough."""
    near = nearest(word, names, cutoff)
    return f"did you mean {near}?" if near else ""
