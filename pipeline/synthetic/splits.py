"""Sample the scenes of each split: held-out combinations, groups of the temporal test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.scenes import (
    COLOURS,
    DIRECTIONS,
    JOINT_ACTIONS,
    REPEATABLE,
    RESIZES,
    SHAPES,
    SIZES,
    SOLO_ACTIONS,
    TEXTURES,
    Background,
    Event,
    Scene,
    Thing,
    combinations_of,
)
from pipeline.synthetic.statements import Statement, meaning_of

Combination = tuple[str, str, str]
"""(colour, shape, action)"""
Appearance = tuple[str, str]
"""(colour, shape)"""
Arrange = Callable[[np.random.Generator, tuple[Scene, ...]], tuple[Scene, ...]]
"""Alters drawn scenes that differ only in their events, such as by distractors, the same way in each."""

_STREAMS = ("held_out", "train", "val", "test", "temporal", "image", "caption", "question", "choice")
_HELD_OUT_ONE_IN = 5
_GROUP_KINDS = ("direction", "size", "direction", "order", "direction", "size", "direction", "relation")
_SHARE_BY_LAYOUT = {"twice": 0.2, "order": 0.3, "joint": 0.3, "bystander": 0.2}
"""Shares among the clips with two events or two things."""
_WEIGHT_OF_REVERSIBLE = 1.5
"""Weight of moves and changes of size, relative to 1 for other actions of a single thing."""
_MAX_ATTEMPTS = 500


@dataclass(frozen=True, kw_only=True)
class Richness:
    """How diverse a corpus is."""

    num_colours: int = 8
    """Of 10."""
    num_shapes: int = 6
    """Of 8."""
    num_actions: int = 12
    """Actions of a single thing, of 12; the four actions of two things are always there."""
    double_share: float = 0.3
    """Share of the clips that have two things or two events."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("num_colours", 3, len(COLOURS)),
            ("num_shapes", 3, len(SHAPES)),
            ("num_actions", 8, len(SOLO_ACTIONS)),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"richness.{name} must be in {least}..{most}, got {getattr(self, name)}")
        if not 0 <= self.double_share <= 1:
            raise ValueError(f"richness.double_share must be in [0, 1], got {self.double_share}")

    @property
    def colours(self) -> tuple[str, ...]:
        """Return the colours that occur."""
        return COLOURS[: self.num_colours]

    @property
    def shapes(self) -> tuple[str, ...]:
        """Return the shapes that occur."""
        return SHAPES[: self.num_shapes]

    @property
    def solo_actions(self) -> tuple[str, ...]:
        """Return the actions of one thing that occur."""
        return SOLO_ACTIONS[: self.num_actions]

    @property
    def actions(self) -> tuple[str, ...]:
        """Return all actions that occur."""
        return (*self.solo_actions, *JOINT_ACTIONS)

    @property
    def repeatable(self) -> tuple[str, ...]:
        """Return the actions that can follow one another."""
        return tuple(action for action in REPEATABLE if action in self.solo_actions)


def rng_for(seed: int, stream: str, *keys: int) -> np.random.Generator:
    """Return a generator for one clip that depends only on the arguments."""
    return np.random.default_rng([seed, _STREAMS.index(stream), *keys])


def held_out_combinations(seed: int, richness: Richness) -> frozenset[Combination]:
    """Return about one combination in five, spread evenly, so that each pair of attributes also occurs in training."""
    rng = rng_for(seed, "held_out")
    axes = (richness.colours, richness.shapes, richness.actions)
    places = [dict(zip(axis, rng.permutation(len(axis)).tolist(), strict=True)) for axis in axes]
    return frozenset(
        combination
        for combination in itertools.product(*axes)
        if sum(place[value] for place, value in zip(places, combination, strict=True)) % _HELD_OUT_ONE_IN == 0
    )


def as_drawn(_: np.random.Generator, scenes: tuple[Scene, ...]) -> tuple[Scene, ...]:
    """Return the scenes unaltered, and draw nothing."""
    return scenes


def train_scenes(seed: int, richness: Richness, num_clips: int, arrange: Arrange = as_drawn) -> list[Scene]:
    """Draw scenes without held-out combinations."""
    held_out = held_out_combinations(seed, richness)
    appearances = _appearances_by_action(
        set(itertools.product(richness.colours, richness.shapes, richness.actions)) - held_out
    )

    def draw(index: int) -> Scene:
        for attempt in range(_MAX_ATTEMPTS):
            rng = rng_for(seed, "train", index, attempt)
            (scene,) = arrange(rng, (_draw_scene(rng, richness, appearances),))
            if held_out.isdisjoint(combinations_of(scene)):
                return scene
        raise ValueError(f"no training scene found for clip {index}: raise the richness of the corpus")

    return [draw(index) for index in range(num_clips)]


def novel_scenes(seed: int, richness: Richness, split: str, num_clips: int, arrange: Arrange = as_drawn) -> list[Scene]:
    """Draw scenes of pairwise different meaning whose main thing has a held-out combination."""
    appearances = _appearances_by_action(held_out_combinations(seed, richness))

    def draw(rng: np.random.Generator, _: int) -> tuple[Scene, ...]:
        return arrange(rng, (_draw_scene(rng, richness, appearances),))

    drawn = _distinct(draw, seed, split, num_clips, "scenes found; ask for fewer or raise richness")
    return [scene for (scene,) in drawn]


def uncovered_pairs(richness: Richness, scenes: Iterable[Scene]) -> set[tuple[str, str]]:
    """Return the pairs of colour and shape, shape and action, colour and action that occur in none of the scenes."""
    axes = (richness.colours, richness.shapes, richness.actions)
    possible = {pair for left, right in itertools.combinations(axes, 2) for pair in itertools.product(left, right)}
    shown = (combination for scene in scenes for combination in combinations_of(scene))
    return possible - {pair for combination in shown for pair in itertools.combinations(combination, 2)}


def still_scenes(seed: int, richness: Richness, num_images: int, arrange: Arrange = as_drawn) -> list[Scene]:
    """Draw scenes without events, for images."""

    def draw(index: int) -> Scene:
        rng = rng_for(seed, "image", index)
        appearances = _draw_appearances(rng, richness, 2 if rng.random() < richness.double_share else 1)
        scene = Scene(things=_place(rng, appearances), events=(), background=_draw_background(rng))
        return arrange(rng, (scene,))[0]

    return [draw(index) for index in range(num_images)]


def temporal_groups(
    seed: int, richness: Richness, num_groups: int, arrange: Arrange = as_drawn
) -> list[tuple[Scene, ...]]:
    """Draw groups of four scenes that differ only in their events; they form two pairs of mutual reversals."""

    def draw(rng: np.random.Generator, index: int) -> tuple[Scene, ...]:
        return arrange(rng, _draw_group(rng, richness, _GROUP_KINDS[index % len(_GROUP_KINDS)]))

    return _distinct(draw, seed, "temporal", num_groups, "groups found; ask for fewer")


def _distinct(
    draw: Callable[[np.random.Generator, int], tuple[Scene, ...]], seed: int, split: str, num_groups: int, refusal: str
) -> list[tuple[Scene, ...]]:
    """Draw groups of scenes of pairwise different meaning: each is redrawn until it is new."""
    groups: dict[frozenset[Statement], tuple[Scene, ...]] = {}
    for index in range(num_groups):
        for attempt in range(_MAX_ATTEMPTS):
            group = draw(rng_for(seed, split, index, attempt), index)
            if groups.setdefault(frozenset(map(meaning_of, group)), group) is group:
                break
        else:
            raise ValueError(f"{split}: only {index} of {num_groups} distinct {refusal}")
    return list(groups.values())


def _draw_group(rng: np.random.Generator, richness: Richness, kind: str) -> tuple[Scene, ...]:
    things = _place(rng, _draw_appearances(rng, richness, 2 if kind in ("order", "relation") else 1))
    background = _draw_background(rng)
    match kind:
        case "direction":
            variants = [(_event(rng, action, 0),) for action in DIRECTIONS]
        case "size":
            pair = DIRECTIONS[:2] if rng.random() < 0.5 else DIRECTIONS[2:]
            variants = [(_event(rng, action, 0),) for action in (*RESIZES, *pair)]
        case "order":
            actions = rng.choice(richness.repeatable, 2, replace=False).tolist()
            variants = [_in_turn(action, action, actors) for action in actions for actors in ((0, 1), (1, 0))]
        case _:  # relation
            pairs = (("meet", (0, 1)), ("part", (0, 1)), ("chase", (0, 1)), ("chase", (1, 0)))
            variants = [(_event(rng, action, *actors),) for action, actors in pairs]
    return tuple(Scene(things=things, events=events, background=background) for events in variants)


def _appearances_by_action(combinations: Iterable[Combination]) -> dict[str, list[Appearance]]:
    appearances: dict[str, list[Appearance]] = {}
    for colour, shape, action in sorted(combinations):
        appearances.setdefault(action, []).append((colour, shape))
    return appearances


def _draw_scene(rng: np.random.Generator, richness: Richness, appearances: dict[str, list[Appearance]]) -> Scene:
    """Draw a scene whose main thing looks as in `appearances[action]`; the second thing may look in any way."""
    is_double = rng.random() < richness.double_share
    layout = rng.choice(list(_SHARE_BY_LAYOUT), p=list(_SHARE_BY_LAYOUT.values())) if is_double else "single"
    action = _draw_action(rng, richness, layout)
    drawn = _draw_appearances(rng, richness, 1 if layout in ("single", "twice") else 2, appearances[action])
    second_action = rng.choice([other for other in richness.repeatable if layout == "order" or other != action])
    match layout:
        case "twice":
            events = _in_turn(action, str(second_action), (0, 0))
        case "order":
            events = _in_turn(action, str(second_action), (0, 1))
        case "joint":
            events = (_event(rng, action, 0, 1),)
        case _:
            events = (_event(rng, action, 0),)
    return Scene(things=_place(rng, drawn), events=events, background=_draw_background(rng))


def _draw_action(rng: np.random.Generator, richness: Richness, layout: str) -> str:
    actions = {
        "single": richness.solo_actions,
        "twice": richness.repeatable,
        "order": richness.repeatable,
        "joint": JOINT_ACTIONS,
        "bystander": tuple(action for action in richness.solo_actions if action not in ("left", "right")),
    }[layout]
    weights = np.array([_WEIGHT_OF_REVERSIBLE if action in (*DIRECTIONS, *RESIZES) else 1.0 for action in actions])
    return str(rng.choice(actions, p=weights / weights.sum()))


def _event(rng: np.random.Generator, action: str, *actors: int) -> Event:
    phase = str(rng.choice(["first", "second"])) if action == "pass" else "whole"
    return Event(action=action, actors=actors, phase=phase, moment=float(rng.choice([2.0, 3.0])))


def _in_turn(action: str, next_action: str, actors: tuple[int, int]) -> tuple[Event, Event]:
    first = Event(action=action, actors=actors[:1], phase="first")
    return first, Event(action=next_action, actors=actors[1:], phase="second")


def _draw_appearances(
    rng: np.random.Generator, richness: Richness, num_things: int, of_main: Sequence[Appearance] = ()
) -> list[Appearance]:
    """Draw appearances without common colour or shape; the first is from `of_main`, unless that is empty."""
    appearances = list(itertools.product(richness.colours, richness.shapes))
    first = (of_main or appearances)[int(rng.integers(len(of_main or appearances)))]
    others = [appearance for appearance in appearances if appearance[0] != first[0] and appearance[1] != first[1]]
    return [first, *(others[rng.integers(len(others))] for _ in range(num_things - 1))]


def _place(rng: np.random.Generator, appearances: Sequence[Appearance]) -> tuple[Thing, ...]:
    """Place things in their middle state. Positions depend on the number of things, never on their actions."""
    sizes = [SIZES[rng.integers(len(SIZES))]]
    centre_x, centre_y = (float(value) for value in rng.uniform(25, 39, 2))
    if len(appearances) == 1:
        places = [(centre_x, centre_y)]
    else:  # two big things would leave no space to move
        sizes.append(SIZES[rng.integers(len(SIZES))] if sizes[0] == "small" else "small")
        distance, angle, side = rng.uniform(28, 31), rng.uniform(-0.3, 0.3), rng.choice([-1.0, 1.0])
        half_x, half_y = side * distance / 2 * np.cos(angle), distance / 2 * np.sin(angle)
        middle_x = (centre_x - 32) / 3 + 32
        places = [(middle_x - half_x, centre_y - half_y), (middle_x + half_x, centre_y + half_y)]
    return tuple(
        Thing(colour=colour, shape=shape, size=size, x=round(float(x), 2), y=round(float(y), 2))
        for (colour, shape), size, (x, y) in zip(appearances, sizes, places, strict=True)
    )


def _draw_background(rng: np.random.Generator) -> Background:
    return Background(texture=TEXTURES[rng.integers(len(TEXTURES))], seed=int(rng.integers(2**31)))
