"""Questions about clips, each with its unique answer and the answers that are possible given the middle frame."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.scenes import MUTUAL_ACTIONS, Event, Scene, Thing
from pipeline.synthetic.words import WORDS_BY_SHAPE

QUESTION_TYPES = ("colour", "shape", "count", "action", "order")

_NUMBER_WORDS = ("no", "one", "two")
_ANSWER_BY_ACTION = {"left": "move left", "right": "move right", "part": "move apart", "pass": "pass each other"}
_COLOUR = ("what colour is the {shape} ?", "which colour does the {shape} have ?")
_SHAPE = ("what shape is the {colour} thing ?", "which shape does the {colour} thing have ?")
_COUNT = ("how many shapes are there ?", "how many shapes can we see here ?")
_ACTION = ("what does the {colour} {shape} do ?", "what is it that the {colour} {shape} does ?")
_MUTUAL_ACTION = ("what do the two shapes do ?", "what is it that the two shapes do ?")
_STARTS_ON = (
    "on which side does the {colour} {shape} start ?",
    "does the {colour} {shape} start on the left or on the right ?",
)
_WHEN = ("when is the {colour} {shape} {state} ?", "is the {colour} {shape} {state} at the start or at the end ?")
_WHEN_TWO = ("when are the two shapes closer ?", "are the two shapes closer at the start or at the end ?")
_TURNS = {
    "first": ("what does the {colour} {shape} do first ?", "what is the first thing that the {colour} {shape} does ?"),
    "last": ("what does the {colour} {shape} do last ?", "what is the last thing that the {colour} {shape} does ?"),
}
_WHO = {
    "first": ("which shape acts first ?", "which of the two shapes is the first to act ?"),
    "last": ("which shape acts last ?", "which of the two shapes is the last to act ?"),
    "behind": ("which shape goes behind the other ?", "which shape goes after the other one ?"),
}
_STATE_AND_TIME = {
    "rise": ("higher", "end"),
    "fall": ("higher", "start"),
    "grow": ("bigger", "end"),
    "shrink": ("bigger", "start"),
    "vanish": ("gone", "end"),
    "appear": ("gone", "start"),
    "meet": ("closer", "end"),
    "part": ("closer", "start"),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about one clip."""

    text: str
    answer: str
    question_type: str
    form: str
    """Questions of one form have the same possible answers, unless the middle frame narrows them."""
    seen: tuple[str, ...] = ()
    """The answers that are possible given the middle frame; empty: any answer of the form."""


def questions_of(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return one question of each type that the scene can answer; ValueError for a scene with distractors."""
    if scene.distractors:
        raise ValueError("questions count and name the things of a plain scene, and this one has distractors")
    main = scene.things[scene.events[0].actors[0]] if scene.events else scene.things[0]
    number = _NUMBER_WORDS[len(scene.things)]
    seen = (("colour", _COLOUR, main.colour), ("shape", _SHAPE, main.shape), ("count", _COUNT, number))
    drawn = [(kind, kind, texts, answer, (answer,)) for kind, texts, answer in seen] + _event_questions(scene, rng)
    return [
        Question(text=_phrase_question(rng, texts, main, form), answer=answer, question_type=kind, form=form, seen=seen)
        for kind, form, texts, answer, seen in drawn
    ]


_Drawn = tuple[str, str, tuple[str, ...], str, tuple[str, ...]]
"""Question type, form, texts, answer, answers that are possible given the middle frame."""


def _event_questions(scene: Scene, rng: np.random.Generator) -> list[_Drawn]:
    if not scene.events:
        return []
    first, last = scene.events[0], scene.events[-1]
    if len(scene.events) == 2:
        which = str(rng.choice(["first", "last"]))
        event = first if which == "first" else last
        if first.actors == last.actors:
            return [("order", "turn", _TURNS[which], _answer(event), ())]
        return [("action", "action", _ACTION, _answer(first), ()), _actor_question(scene, which, event)]
    is_mutual = first.action in MUTUAL_ACTIONS
    form, texts = ("mutual action", _MUTUAL_ACTION) if is_mutual else ("action", _ACTION)
    drawn: list[_Drawn] = [("action", form, texts, _answer(first), ())]
    if first.action == "chase":
        drawn.append(_actor_question(scene, "behind", first))
    elif first.action in ("left", "right"):
        drawn.append(("order", "side", _STARTS_ON, "right" if first.action == "left" else "left", ()))
    elif first.action in _STATE_AND_TIME:
        state, time = _STATE_AND_TIME[first.action]
        drawn.append(("order", f"time {state}", _WHEN_TWO if is_mutual else _WHEN, time, ()))
    return drawn


def _actor_question(scene: Scene, which: str, event: Event) -> _Drawn:
    shapes = tuple(sorted(thing.shape for thing in scene.things))
    return "order", "who", _WHO[which], scene.things[event.actors[0]].shape, shapes


def _answer(event: Event) -> str:
    return _ANSWER_BY_ACTION.get(event.action, event.action)


def _phrase_question(rng: np.random.Generator, texts: tuple[str, ...], thing: Thing, form: str) -> str:
    shape_words = WORDS_BY_SHAPE[thing.shape]
    return texts[rng.integers(len(texts))].format(
        colour=thing.colour, shape=shape_words[rng.integers(len(shape_words))], state=form.removeprefix("time ")
    )


def closed_answers(questions: Iterable[Question]) -> list[str]:
    """Return the distinct answers, most frequent first."""
    counts = Counter(question.answer for question in questions)
    return sorted(counts, key=lambda answer: (-counts[answer], answer))


def single_frame_accuracy(asked: Sequence[Question], train: Iterable[Question]) -> float:
    """Return the best accuracy on `asked`, not empty, from the middle frame and the answers given in training.

    Where the frame shows which answers are possible, one of them is guessed; else the most frequent answer of the form.
    Ties are broken at random.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        counts[question.form][question.answer] += 1

    def chance(question: Question) -> float:
        known = counts[question.form]
        most = max(known.values(), default=0)
        # frequencies over all training clips, as of shapes that act first, say nothing about the shapes in this frame
        best = question.seen or [answer for answer, count in known.items() if count == most]
        return (question.answer in best) / max(len(best), 1)

    return sum(map(chance, asked)) / len(asked)
