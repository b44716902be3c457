"""The name that was meant where there is none of the name that was given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, names: Iterable[str], cutoff: float = 0.4) -> str | None:
    """Return the name that is most like `word`; None if none is as like it as `cutoff`, of 1."""
    return next(iter(difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, names: Iterable[str], cutoff: float = 0.4) -> str:
    """Return the question whether the nearest of `names` was meant; empty if none is near."""
    near = nearest(word, names, cutoff)
    return f"did you mean {near}?" if near else ""
