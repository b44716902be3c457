"""Names and captions of strangers as text, wherever they are shown: in a terminal, in Markdown. HTML escapes by itself.

A name may hold cursor codes, which would write elsewhere in a terminal, and markup, which a browser would run.
"""

from __future__ import annotations

import re

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline; and marks that turn the direction of the text around them."""
_MARKUP = str.maketrans({"<": "&lt;", ">": "&gt;", **{character: f"\\{character}" for character in "\\`[]|"}})


def printable(text: str) -> str:
    """Return `text` with each control character as its escape, as in `\\x1b`."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def in_markdown(text: str) -> str:
    """Return `text` as Markdown that shows it, on one line, also in a table."""
    return printable(" ".join(text.splitlines())).translate(_MARKUP)
