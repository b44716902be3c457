"""Clutter: still things around those that act, so that a caption is about few of the things that a clip shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from pipeline.synthetic.scenes import FRAME_UNITS, Scene, Thing
from pipeline.synthetic.splits import Richness

NUM_THINGS = (3, 4)
"""Fewest and most things of a cluttered scene."""
_CELLS = (18.0, 46.0)
"""Centres of the rows and columns of a 2 × 2 grid, in frame units: far enough from the edge for half of a thing to stay
visible while it jumps or leaves its cell, and far enough apart for one big thing among small ones."""
_JITTER = 1.5
"""Largest distance from the centre of a cell, in frame units along each axis."""


def cluttered(rng: np.random.Generator, scenes: tuple[Scene, ...], richness: Richness) -> tuple[Scene, ...]:
    """Return the scenes with three or four things: those that act, moved off the centre, and distractors around them.

    `scenes` differ only in their events. A thing that never acts is left out; of a still picture all are kept. No two
    things of a scene have the same colour or shape, and where a thing is does not tell whether it acts.
    """
    events = [event for scene in scenes for event in scene.events]
    actors = {actor for event in events for actor in event.actors}
    kept = [thing for index, thing in enumerate(scenes[0].things) if index in actors or not events]
    assert not events or actors == set(range(len(kept))), "the things that act come first"
    row, column = (int(value) for value in rng.integers(len(_CELLS), size=2))
    if len(kept) == 1:
        things = [_in_cell(rng, kept[0], row, column)]
        free = [(i, j) for i in range(2) for j in range(2) if (i, j) != (row, column)]
    else:
        things = _in_row(rng, kept, row)
        free = [(1 - row, j) for j in range(2)]
    number = int(rng.integers(NUM_THINGS[0], NUM_THINGS[1] + 1)) - len(things)
    cells = [free[index] for index in rng.permutation(len(free))[:number]]
    distractors = tuple(_in_cell(rng, thing, *cell) for thing, cell in _others(rng, things, cells, richness))
    return tuple(replace(scene, things=tuple(things), distractors=distractors) for scene in scenes)


def _others(
    rng: np.random.Generator, things: Sequence[Thing], cells: Sequence[tuple[int, int]], richness: Richness
) -> list[tuple[Thing, tuple[int, int]]]:
    """Draw a thing for each cell, of colours and shapes that `things` lack; there is space for one big thing in all."""
    colours = rng.permutation([colour for colour in richness.colours if colour not in {t.colour for t in things}])
    shapes = rng.permutation([shape for shape in richness.shapes if shape not in {t.shape for t in things}])
    sizes = ["small"] * len(cells)
    if all(thing.size == "small" for thing in things) and rng.random() < 0.5:
        sizes[0] = "big"
    looks = zip(colours.tolist(), shapes.tolist(), sizes, strict=False)
    centre = FRAME_UNITS / 2
    return [
        (Thing(colour=colour, shape=shape, size=size, x=centre, y=centre), cell)
        for (colour, shape, size), cell in zip(looks, cells, strict=False)
    ]


def _in_cell(rng: np.random.Generator, thing: Thing, row: int, column: int) -> Thing:
    x, y = (_CELLS[place] + rng.uniform(-_JITTER, _JITTER) for place in (column, row))
    return replace(thing, x=round(float(x), 2), y=round(float(y), 2))


def _in_row(rng: np.random.Generator, pair: Sequence[Thing], row: int) -> list[Thing]:
    """Move a pair up or down, so that their line and who is on the left remain."""
    shift = _CELLS[row] + rng.uniform(-_JITTER, _JITTER) - fmean(thing.y for thing in pair)
    return [replace(thing, y=round(float(thing.y + shift), 2)) for thing in pair]
