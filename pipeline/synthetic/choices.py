"""Five-option choices: which of five captions belongs to the clip?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.synthetic.captions import Caption, Style, caption_of
from pipeline.synthetic.scenes import JOINT_ACTIONS, SIZES, TEXTURES, Event, Scene, combinations_of
from pipeline.synthetic.splits import Combination, Richness
from pipeline.synthetic.statements import agrees, meaning_of

NUM_OPTIONS = 5
_NUM_OTHER_ACTIONS = 2
"""How many of the four wrong options of a hard choice differ in the action, if possible; the others differ in
something visible."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Five captions, one of which is true."""

    options: tuple[Caption, ...]
    answer: int
    """Position of the true one."""
    difficulty: str
    """`random`: captions of other clips; `hard`: each wrong one differs in exactly one attribute."""


def random_choice(rng: np.random.Generator, scene: Scene, true: Caption, others: Sequence[Caption]) -> Choice | None:
    """Return a choice between the true caption and four of other clips; None if `others` has too few wrong ones."""
    meaning = meaning_of(scene)
    wrong: dict[str, Caption] = {}
    for index in rng.permutation(len(others)):
        if not agrees(others[index].statement, meaning):
            wrong.setdefault(others[index].text, others[index])
        if len(wrong) == NUM_OPTIONS - 1:
            return _shuffled(rng, true, list(wrong.values()), "random")
    return None


def hard_choice(
    rng: np.random.Generator, scene: Scene, richness: Richness, held_out: frozenset[Combination] = frozenset()
) -> Choice | None:
    """Return a choice between the scene and four that differ in one attribute each, all described by the same sentence.

    For training no option shows a combination of `held_out`: the true one never does, so text alone would reveal it.
    None if too few scenes are left. ValueError for a scene with distractors.
    """
    if scene.distractors:
        raise ValueError("the options of a choice are captions of plain scenes, and this scene has distractors")

    def allowed(scenes: list[Scene]) -> list[Scene]:
        return [other for other in scenes if held_out.isdisjoint(combinations_of(other))]

    style = Style.draw(rng, names_everything=True)
    true = caption_of(scene, style)
    acting = _pick(rng, allowed(_other_events(scene, richness)), _NUM_OTHER_ACTIONS)
    visible = _pick(rng, allowed(_other_appearances(rng, scene, richness)), NUM_OPTIONS - 1 - len(acting))
    wrong = [caption_of(other, style) for other in (*acting, *visible)]
    if len(wrong) < NUM_OPTIONS - 1:
        return None
    assert len({caption.text for caption in (true, *wrong)}) == NUM_OPTIONS, (true, wrong)
    return _shuffled(rng, true, wrong, "hard")


def _shuffled(rng: np.random.Generator, true: Caption, wrong: list[Caption], difficulty: str) -> Choice:
    answer = int(rng.integers(NUM_OPTIONS))
    return Choice(options=(*wrong[:answer], true, *wrong[answer:]), answer=answer, difficulty=difficulty)


def _pick(rng: np.random.Generator, scenes: list[Scene], number: int) -> list[Scene]:
    return [scenes[index] for index in rng.permutation(len(scenes))[:number]]


def _other_events(scene: Scene, richness: Richness) -> list[Scene]:
    """Return variants of the scene with another action, or with its events in reverse order."""
    events = scene.events
    variants: list[tuple[Event, ...]]
    if len(events) == 2:
        first, second = events
        variants = [(replace(second, phase="first"), replace(first, phase="second"))]
        for action in richness.repeatable:
            if action not in (first.action, second.action):
                variants += [(replace(first, action=action), second), (first, replace(second, action=action))]
    else:
        actions = JOINT_ACTIONS if len(events[0].actors) == 2 else richness.solo_actions
        variants = [(replace(events[0], action=action),) for action in actions if action != events[0].action]
    return [replace(scene, events=variant) for variant in variants]


def _other_appearances(rng: np.random.Generator, scene: Scene, richness: Richness) -> list[Scene]:
    """Return variants of the scene in which one attribute of a thing or of the background has a value new to it."""
    taken_colours, taken_shapes = ({getattr(t, name) for t in scene.things} for name in ("colour", "shape"))
    colours = [colour for colour in richness.colours if colour not in taken_colours]
    shapes = [shape for shape in richness.shapes if shape not in taken_shapes]
    textures = [texture for texture in TEXTURES if texture != scene.background.texture]
    scenes = [replace(scene, background=replace(scene.background, texture=str(rng.choice(textures))))]
    for index, thing in enumerate(scene.things):
        other_size = SIZES[1 - SIZES.index(thing.size)]
        changed = [replace(thing, colour=str(rng.choice(colours))), replace(thing, size=other_size)]
        if shapes:
            changed.append(replace(thing, shape=str(rng.choice(shapes))))
        before, after = scene.things[:index], scene.things[index + 1 :]
        scenes += [replace(scene, things=(*before, other, *after)) for other in changed]
    return scenes
