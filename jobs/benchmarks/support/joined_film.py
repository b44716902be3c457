"""Scenes of the embedded corpus joined to long films, with cuts or with slow transitions between clips that look alike.

Clips that follow each other have the same texture behind them, and things of the same colour where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from pipeline.curation.cuts import Transition
from pipeline.synthetic.render import render_video
from pipeline.synthetic.splits import Richness, train_scenes

FPS, SIZE_PX = 25, 128
SHOT_FRAMES = (40, 110)
TRANSITION_FRAMES = (8, 26)
"""Even numbers: a fade goes half of its time to black."""


@dataclass(frozen=True)
class JoinedFilm:
    """The frames of a film, and its transitions."""

    frames: UInt8[np.ndarray, "T 128 128 3"]
    transitions: list[Transition]


def joined_film(seed: int, num_shots: int, kind: Literal["cuts", "gradual"]) -> JoinedFilm:
    """Return a film of `num_shots`; gradual transitions are dissolves and fades through black, in turn."""
    rng = np.random.default_rng([seed, kind == "gradual"])
    scenes = train_scenes(seed, Richness(), num_shots)
    scenes = sorted(scenes, key=lambda scene: (scene.background.texture, scene.things[0].colour))
    shots = [render_video(scene, num_frames=int(rng.integers(*SHOT_FRAMES)), size_px=SIZE_PX) for scene in scenes]
    lengths = 2 * rng.integers(TRANSITION_FRAMES[0] // 2, TRANSITION_FRAMES[1] // 2, num_shots - 1)
    if kind == "cuts":
        starts = np.cumsum([len(shot) for shot in shots])[:-1].tolist()
        return JoinedFilm(np.concatenate(shots), [(start, start) for start in starts])
    parts, transitions, num_frames = [shots[0]], [], len(shots[0])
    for number, (shot, length) in enumerate(zip(shots[1:], lengths.tolist(), strict=True)):
        overlap = dissolve if number % 2 else fade
        bridge, num_shared = overlap(parts[-1], shot, length)
        parts[-1] = parts[-1][: len(parts[-1]) - num_shared]
        start = num_frames - num_shared
        parts += [bridge, shot[num_shared:]]
        transitions.append((start, start + length))
        num_frames = start + length + len(shot) - num_shared
    return JoinedFilm(np.concatenate(parts), transitions)


def dissolve(before: np.ndarray, after: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """Return `length` frames in which one shot turns into the other, and how many of each they take the place of."""
    share = ((np.arange(length) + 1) / (length + 1))[:, None, None, None]
    return np.rint((1 - share) * before[-length:] + share * after[:length]).astype(np.uint8), length


def fade(before: np.ndarray, after: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """As `dissolve`: the first goes to black, then the second comes out of it."""
    half = length // 2
    share = (np.arange(half) / half)[:, None, None, None]
    frames = np.concatenate([(1 - share) * before[-half:], share * after[:half]])
    return np.rint(frames).astype(np.uint8), half


def f1_of(seen: Sequence[Transition], true: Sequence[Transition], tolerance: int) -> float:
    """Return F1 of the transitions that were seen; one is right if it comes within `tolerance` frames of a true one
    that no other has taken."""
    free, num_right = list(true), 0
    for first, stop in seen:
        hit = next((one for one in free if one[0] - tolerance <= stop and first <= one[1] + tolerance), None)
        if hit is not None:
            free.remove(hit)
            num_right += 1
    return 2 * num_right / (len(seen) + len(true)) if seen or true else 1.0
