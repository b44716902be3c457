"""Helpers of all pages: jinja2 templates with escaping, number formats, bars."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2


@functools.cache
def template(name: str) -> jinja2.Template:
    """Return a template that escapes all texts and raises an error for undefined names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, rank=rank_text, duration=duration)
    return environment.get_template(name)


def percent(share: float) -> str:
    """Format `0.534` as `53.4 %`."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def rank_text(rank: float) -> str:
    """Format a rank, with a decimal only if ties make it fractional."""
    return f"{rank:.0f}" if rank == round(rank) else f"{rank:.1f}"


def duration(seconds: float) -> str:
    """Format `312.4` as `5 min 12 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def bars(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row per nonzero count, in the given order, with the length of its bar in [0, 1]."""
    largest = max(counts.values(), default=0)
    return [{"name": name, "count": count, "length": count / largest} for name, count in counts.items() if count]


def most_frequent_first(counts: Mapping[str, int]) -> dict[str, int]:
    """Sort by descending count, equal counts by name."""
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
