"""Vocabulary of the captions: synonyms of shapes, sizes, textures and actions."""

from __future__ import annotations

from typing import NamedTuple

WORDS_BY_SHAPE = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "ring": ("ring", "hoop", "loop"),
    "cross": ("cross", "plus"),
    "heart": ("heart",),
    "moon": ("moon", "crescent"),
}
WORDS_BY_SIZE = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
WORDS_BY_TEXTURE = {
    "striped": ("striped", "lined"),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "tiled"),
    "plain": ("plain", "blank"),
    "grainy": ("grainy", "sandy"),
}
SURFACES = ("wall", "background", "floor", "cloth")


class Verb(NamedTuple):
    """A verb phrase: `slides`, `sliding`, `slide`, and what follows it."""

    does: str
    doing: str
    do: str
    tail: str = ""


_SIDEWAYS = ("slides sliding slide", "moves moving move", "glides gliding glide", "drifts drifting drift")


def _verbs(*forms: str, tail: str = "") -> tuple[Verb, ...]:
    return tuple(Verb(*form.split(), tail=tail) for form in forms)


_UP = _verbs("goes going go", "floats floating float", tail="up")
_DOWN = _verbs("goes going go", "drops dropping drop", tail="down")
_BIGGER, _SMALLER = (_verbs("gets getting get", tail=tail) for tail in ("bigger", "smaller"))
VERBS_BY_ACTION: dict[str, tuple[Verb, ...]] = {
    "left": _verbs(*_SIDEWAYS, tail="to the left"),
    "right": _verbs(*_SIDEWAYS, tail="to the right"),
    "rise": (*_verbs("rises rising rise", "climbs climbing climb"), *_UP),
    "fall": (*_verbs("falls falling fall", "sinks sinking sink"), *_DOWN),
    "grow": (*_verbs("grows growing grow", "expands expanding expand"), *_BIGGER),
    "shrink": (*_verbs("shrinks shrinking shrink", "contracts contracting contract"), *_SMALLER),
    "jump": _verbs("jumps jumping jump", "hops hopping hop", "bounces bouncing bounce"),
    "spin": (*_verbs("spins spinning spin", "rotates rotating rotate"), *_verbs("turns turning turn", tail="around")),
    "vanish": _verbs("vanishes vanishing vanish", "disappears disappearing disappear"),
    "appear": (*_verbs("appears appearing appear"), *_verbs("shows showing show", tail="up")),
    "blink": _verbs("blinks blinking blink", "flashes flashing flash", "flickers flickering flicker"),
    "shake": _verbs("shakes shaking shake", "trembles trembling tremble", "wobbles wobbling wobble"),
    "meet": (*_verbs("meets meeting meet"), *_verbs("comes coming come", "moves moving move", tail="together")),
    "part": _verbs("moves moving move", "drifts drifting drift", "goes going go", tail="apart"),
    "pass": (
        *_verbs("passes passing pass", tail="each other"),
        *_verbs("swaps swapping swap", "changes changing change", tail="places"),
    ),
    "chase": _verbs("chases chasing chase", "follows following follow", "hunts hunting hunt"),
}
ADVERBS = ("slowly", "gently", "steadily", "smoothly", "quietly", "simply", "just", "now", "clearly", "really")
