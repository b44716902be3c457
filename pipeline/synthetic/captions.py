"""Captions of scenes, from many templates, synonyms and function words, each with its statement as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.synthetic.scenes import Scene, Thing
from pipeline.synthetic.statements import Mention, Statement, direction_of, meaning_of
from pipeline.synthetic.words import (
    ADVERBS,
    SURFACES,
    VERBS_BY_ACTION,
    WORDS_BY_SHAPE,
    WORDS_BY_SIZE,
    WORDS_BY_TEXTURE,
    Verb,
)

MAX_WORDS = 26
"""28 word pieces minus [CLS] and [SEP]; a comma counts as a word."""

T = TypeVar("T")


Slot = IntEnum(
    "Slot",
    "TEMPLATE SHAPE SECOND_SHAPE SIZE SECOND_SIZE VERB SECOND_VERB ADVERB TEXTURE SURFACE PLACE "
    "NAMES_SIZE NAMES_TEXTURE NAMES_ADVERB NAMES_BYSTANDER NAMES_DIRECTION",
    start=0,
)
"""The choices of the grammar."""


@dataclass(frozen=True)
class Style:
    """All choices of one caption, independent of the scene: an altered scene gives the same sentence, altered."""

    uniforms: tuple[float, ...]
    names_everything: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, *, names_everything: bool) -> Style:
        """Draw a style; `names_everything`: its captions distinguish a scene from all others."""
        return cls(tuple(rng.random(len(Slot)).tolist()), names_everything)

    def pick(self, slot: Slot, options: Sequence[T]) -> T:
        """Return the option that the style selects for a slot."""
        return options[int(self.uniforms[slot] * len(options))]

    def names(self, slot: Slot, share: float) -> bool:
        """Return whether an optional fact is named; `share` of the captions name it."""
        return self.names_everything or self.uniforms[slot] < share


class Caption(NamedTuple):
    """A sentence and its statement."""

    text: str
    statement: Statement


_SINGLE = (
    "{thing} {adverb} {does} {tail} {place}",
    "{thing} is {adverb} {doing} {tail} {place}",
    "there is {thing} that {adverb} {does} {tail} {place}",
    "{front} , {thing} is {adverb} {doing} {tail}",
    "{front} there is {thing} which is {adverb} {doing} {tail}",
    "here we can see how {thing} {adverb} {does} {tail} {place}",
    "in this clip there is {thing} that is {adverb} {doing} {tail} {place}",
    "this is {thing} , and it {adverb} {does} {tail} {place}",
    "{place} it is {thing} that {adverb} {does} {tail}",
    "{adverb} , {thing} {does} {tail} {place}",
    "what we have here is {thing} , {adverb} {doing} {tail} {place}",
    "it is {thing} that is {doing} {tail} {adverb} {place}",
)
_TWICE = (
    "{thing} {does} {tail} , and then it {then_does} {then_tail} {place}",
    "first {thing} {does} {tail} , and then it {adverb} {then_does} {then_tail} {place}",
    "{front} , {thing} {does} {tail} and after that it {then_does} {then_tail}",
    "there is {thing} that {adverb} {does} {tail} before it {then_does} {then_tail} {place}",
)
_ORDER = (
    "{thing} {does} {tail} , and then {other} {then_does} {then_tail} {place}",
    "first {thing} {does} {tail} , and only then {other} {then_does} {then_tail} {place}",
    "{front} , {thing} {does} {tail} before {other} {then_does} {then_tail}",
    "after {thing} {does} {tail} , {other} {then_does} {then_tail} {place}",
    "{thing} {does} {tail} and after that {other} {then_does} {then_tail} {place}",
)
_MUTUAL = (
    "{thing} and {other} {adverb} {do} {tail} {place}",
    "{thing} and {other} are {adverb} {doing} {tail} {place}",
    "{front} , {thing} and {other} {adverb} {do} {tail}",
    "there are {thing} and {other} , and they {adverb} {do} {tail} {place}",
    "here it is {thing} and {other} that {do} {tail} {place}",
)
_CHASE = (
    "{thing} {adverb} {does} {other} {direction} {place}",
    "{thing} is {adverb} {doing} {other} {direction} {place}",
    "{front} , {thing} {adverb} {does} {other} {direction}",
    "there is {thing} that {does} {other} {direction} {place}",
)
_BYSTANDER = (
    "{thing} {adverb} {does} {tail} beside {other} {place}",
    "{thing} is {adverb} {doing} {tail} next to {other} {place}",
    "{front} , {thing} {adverb} {does} {tail} while {other} stays where it is",
    "there is {thing} that {adverb} {does} {tail} , not far from {other} {place}",
)
_STILL = (
    "there is {thing} {place}",
    "this is a picture of {thing} {place}",
    "{thing} {adverb} lies there {place}",
    "{front} there is {thing} , and it is all by itself",
    "{thing} is {place} , and there is not much more to it",
    "{front} we can see {thing}",
)
_STILL_PAIR = (
    "there are {thing} and {other} {place}",
    "{thing} is next to {other} {place}",
    "this is a picture of {thing} with {other} {place}",
    "{front} there is {thing} and also {other}",
    "{front} we can see {thing} beside {other}",
)
_TEMPLATES = {
    "single": _SINGLE,
    "twice": _TWICE,
    "order": _ORDER,
    "mutual": _MUTUAL,
    "chase": _CHASE,
    "bystander": _BYSTANDER,
    "still": _STILL,
    "still pair": _STILL_PAIR,
}
_PLACES = ("on a {texture} {surface}", "over a {texture} {surface}", "in front of a {texture} {surface}")


def caption_of(scene: Scene, style: Style) -> Caption:
    """Describe a scene. Colour, shape and action of the main thing are always named."""
    names_other = names_second(scene, style)
    templates, parts = _TEMPLATES[layout_of(scene, names_other)], parts_of(scene, style)
    text = fill(style.pick(Slot.TEMPLATE, templates), parts)
    if num_words(text) > MAX_WORDS:
        text = fill(templates[0], parts | {"adverb": ""})
    assert num_words(text) <= MAX_WORDS, text
    return Caption(text, statement_of(scene, style, names_other))


def names_second(scene: Scene, style: Style) -> bool:
    """Return whether a caption names the second thing: always if it acts."""
    return len(scene.things) > 1 and (
        len(scene.events) != 1 or len(scene.events[0].actors) > 1 or style.names(Slot.NAMES_BYSTANDER, 0.7)
    )


def num_words(text: str) -> int:
    """Return the number of words, commas and full stops."""
    return len(text.replace(",", " ,").replace(".", " .").split())


def fill(template: str, parts: dict[str, str]) -> str:
    """Return a template with its gaps filled or closed, and no space before a comma."""
    words = template.format(**parts).split()
    return " ".join(words).replace(" ,", ",").strip(", ")


def layout_of(scene: Scene, names_other: bool) -> str:
    """Return which templates can describe the scene, a key of a table by layout."""
    if not scene.events:
        return "still pair" if names_other else "still"
    if len(scene.events) == 2:
        return "twice" if scene.events[0].actors == scene.events[1].actors else "order"
    if len(scene.events[0].actors) == 2:
        return "chase" if scene.events[0].action == "chase" else "mutual"
    return "bystander" if names_other else "single"


def parts_of(scene: Scene, style: Style) -> dict[str, str]:
    """Return the words for each gap of a template; empty for what is not named."""
    order = list(dict.fromkeys(actor for event in scene.events for actor in event.actors))
    order += [index for index in range(len(scene.things)) if index not in order]
    named = [_noun_phrase(scene.things[index], style, is_second=place > 0) for place, index in enumerate(order)]
    verbs = [
        style.pick(slot, VERBS_BY_ACTION[event.action])
        for slot, event in zip((Slot.VERB, Slot.SECOND_VERB), scene.events, strict=False)
    ]
    verb, then_verb = (*verbs, Verb("", "", ""), Verb("", "", ""))[:2]
    texture = style.pick(Slot.TEXTURE, WORDS_BY_TEXTURE[scene.background.texture])
    surface = style.pick(Slot.SURFACE, SURFACES)
    place = style.pick(Slot.PLACE, _PLACES).format(texture=texture, surface=surface)
    if not style.names(Slot.NAMES_TEXTURE, 0.85):
        place = "here"
    names_direction = style.names(Slot.NAMES_DIRECTION, 0.7) and scene.events and scene.events[0].action == "chase"
    return {
        "thing": named[0],
        "other": named[-1],
        **verb._asdict(),
        "then_does": then_verb.does,
        "then_tail": then_verb.tail,
        "adverb": style.pick(Slot.ADVERB, ADVERBS) if style.uniforms[Slot.NAMES_ADVERB] < 0.9 else "",
        "direction": f"to the {direction_of(scene, scene.events[0])}" if names_direction else "",
        "place": place,
        "front": place,
    }


def _noun_phrase(thing: Thing, style: Style, *, is_second: bool) -> str:
    size = style.pick(Slot.SECOND_SIZE if is_second else Slot.SIZE, WORDS_BY_SIZE[thing.size])
    shape = style.pick(Slot.SECOND_SHAPE if is_second else Slot.SHAPE, WORDS_BY_SHAPE[thing.shape])
    words = [size, thing.colour, shape] if style.names(Slot.NAMES_SIZE, 0.75) else [thing.colour, shape]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def statement_of(scene: Scene, style: Style, names_other: bool) -> Statement:
    """Return what a caption in this style says of the scene."""
    full = meaning_of(scene)
    names_size = style.names(Slot.NAMES_SIZE, 0.75)
    named = scene.things if names_other else scene.things[:1]
    mentions = sorted(Mention(colour=t.colour, shape=t.shape, size=t.size if names_size else "") for t in named)
    names_direction = style.names(Slot.NAMES_DIRECTION, 0.7)
    return Statement(
        mentions=tuple(mentions),
        texture=full.texture if style.names(Slot.NAMES_TEXTURE, 0.85) else "",
        claims=tuple(claim if names_direction else claim.without_direction() for claim in full.claims),
        is_complete=len(named) == len(scene.things),
    )
