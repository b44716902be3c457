"""Parts of speech of caption words without any model: a dictionary of inflections, closed classes, a little context."""

from __future__ import annotations

import re
from collections.abc import Callable

Tagger = Callable[[list[str]], list[str]]
"""The words of one caption, punctuation among them, to one universal part of speech each ("NOUN", "VERB", "ADJ" …)."""


def split_words(caption: str) -> list[str]:
    """The words and punctuation marks of a caption, as BERT's vocabulary cuts them."""
    return re.findall(r"[^\W_]+|[^\w\s]", caption)


def lexicon_tagger(words: list[str]) -> list[str]:
    return ["NOUN" for _ in words]
