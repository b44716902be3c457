"""One self-contained HTML page with the clips nearest to the threshold of each filter rule."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

NUM_SHOWN = 8
"""Clips on either side of a threshold."""
_STYLE = "body{font-family:sans-serif;margin:2em}figure{display:inline-block;margin:.5em}img{height:96px}"


class AnyRule(Protocol):
    """The interface of a rule that the page needs."""

    @property
    def name(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    def keeps(self, score: float | None) -> bool: ...


def page_of(rows: Sequence[Mapping[str, Any]], rules: Sequence[AnyRule], summary: str) -> str:
    """Return the page as HTML. `rows` have scores, uri and a strip of frames (JPEG)."""
    parts = [f"<title>filter</title><style>{_STYLE}</style><h1>Filter</h1><pre>{html.escape(summary)}</pre>"]
    for rule in rules:
        parts.append(f"<h2>{html.escape(str(rule))}</h2>")
        for stays in (True, False):
            parts.append(f"<h3>{'just stays' if stays else 'just goes'}</h3>")
            parts += map(_figure, [rule] * NUM_SHOWN, at_border(rows, rule, stays=stays))
    return f'<!doctype html><html lang="en"><meta charset="utf-8">{"".join(parts)}</html>'


def at_border(rows: Sequence[Mapping[str, Any]], rule: AnyRule, *, stays: bool) -> list[Mapping[str, Any]]:
    """Return the clips nearest to the threshold of `rule`, on the side that stays or on the other."""
    side = [row for row in rows if row[rule.name] is not None and rule.keeps(row[rule.name]) == stays]
    return sorted(side, key=lambda row: abs(row[rule.name] - rule.threshold))[:NUM_SHOWN]


def _figure(rule: AnyRule, row: Mapping[str, Any]) -> str:
    source = f"data:image/jpeg;base64,{base64.b64encode(row['strip'] or b'').decode()}"
    caption = html.escape(f"{row[rule.name]:.4g} · {row['uri'].rpartition('/')[2]}")
    return f'<figure><img src="{source}" alt=""><figcaption>{caption}</figcaption></figure>'
