"""Wordy captions: two sentences in which the words about the scene are rare among function words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.synthetic.captions import (
    Caption,
    Style,
    fill,
    layout_of,
    names_second,
    num_words,
    parts_of,
    statement_of,
)
from pipeline.synthetic.scenes import Scene

MAX_WORDS = 50
"""A comma or full stop counts as a word."""

_CORES = {
    "single": (
        "{thing} is {adverb} {doing} {tail}",
        "there is {thing} that {adverb} {does} {tail}",
        "it is {thing} that is {adverb} {doing} {tail}",
        "{thing} , and no other , {adverb} {does} {tail}",
        "what we have in here is {thing} that {adverb} {does} {tail}",
    ),
    "twice": (
        "{thing} {does} {tail} , and then , after that , it also {then_does} {then_tail}",
        "there is {thing} that {adverb} {does} {tail} before it also {then_does} {then_tail}",
        "{thing} at first {does} {tail} and only after that {then_does} {then_tail}",
    ),
    "order": (
        "{thing} {does} {tail} , and then {other} {then_does} {then_tail}",
        "at first {thing} {does} {tail} and only after that {other} {then_does} {then_tail}",
        "{thing} {does} {tail} before {other} {then_does} {then_tail}",
        "once {thing} {does} {tail} and is over with it , {other} {then_does} {then_tail}",
    ),
    "mutual": (
        "{thing} and {other} {adverb} {do} {tail}",
        "there are {thing} and {other} , and they are {adverb} {doing} {tail}",
        "it is {thing} and {other} that {adverb} {do} {tail}",
    ),
    "chase": (
        "{thing} {adverb} {does} {other} {direction}",
        "{thing} is {adverb} {doing} {other} {direction}",
        "there is {thing} that {adverb} {does} {other} {direction}",
    ),
    "still": ("there is {thing}", "what we have in here is {thing}", "it is {thing} that is there"),
    "still pair": ("there is {thing} and also {other}", "both {thing} and {other} are there with one another"),
}
"""Templates of what happens, by layout."""
_OPENINGS = (
    "well , here it is once more , and in it",
    "here and now , just as before ,",
    "so , as it has always been in here ,",
    "among all that there is in here ,",
    "of all of those that are in here ,",
    "once again , and not for no one ,",
    "as it is and has been all along ,",
)
_CLOSINGS = (
    "while all of the others are just as they were",
    "while none of the others does anything at all",
    "and that is about all there is to it",
    "as if there were no one else in there",
    "and all of the others are where they are",
    "but none of the others is with it",
    "which is all that we have for now",
)
_RESTS = (
    "all of this is {place} , and there is no more to it",
    "it is all {place} , where it will be for quite some while",
    "{place} there are also some others , but this is not about them",
    "however that may be , it is all {place} and that is it",
    "so there we are , {place} , and that is it for now",
    "{place} is where all of it is , just as it was before",
    "there is more in here , but then all of it is {place}",
)
"""Templates of the second sentence."""


def wordy_caption(rng: np.random.Generator, scene: Scene, *, names_everything: bool) -> Caption:
    """Describe a scene without bystanders in two sentences of about 30 to 45 words: what happens, and where.

    It states what a caption of the plain corpus states, and of the distractors no more than that they are there.
    """
    style = Style.draw(rng, names_everything=names_everything)
    names_other = names_second(scene, style)
    parts = parts_of(scene, style)
    core = fill(_pick(rng, _CORES[layout_of(scene, names_other)]), parts)
    happens = f"{core} , {_pick(rng, _CLOSINGS)}"
    rest = fill(_pick(rng, _RESTS), parts)
    text = f"{fill(f'{_pick(rng, _OPENINGS)} {happens}', {})}. {rest}."
    if num_words(text) > MAX_WORDS:
        text = f"{fill(happens, {})}. {rest}."
    assert num_words(text) <= MAX_WORDS, text
    return Caption(text, statement_of(scene, style, names_other))


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
