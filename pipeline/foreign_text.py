"""Escape untrusted names and captions for terminals and Markdown. HTML templates escape by themselves.

A name may contain cursor codes, which would write elsewhere in a terminal, and markup, which a browser would execute.
"""

from __future__ import annotations

import re

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, and bidirectional formatting characters, which reorder the text."""
_MARKUP = str.maketrans({"<": "&lt;", ">": "&gt;", **{character: f"\\{character}" for character in "\\`[]|"}})


def printable(text: str) -> str:
    """Replace each control character by its escape, such as `\\x1b`."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def in_markdown(text: str) -> str:
    """Escape `text` as a single line of Markdown, safe in a table."""
    return printable(" ".join(text.splitlines())).translate(_MARKUP)
