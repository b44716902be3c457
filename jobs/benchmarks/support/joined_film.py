"""Scenes of the embedded corpus joined into long films, with cuts or gradual transitions between similar clips.

Consecutive clips have the same background texture, and objects of the same colour if possible.
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
"""Range of lengths; all are even, since half of a fade goes to black."""


@dataclass(frozen=True)
class JoinedFilm:
    """The frames of a film, and its transitions."""

    frames: UInt8[np.ndarray, "T 128 128 3"]
    transitions: list[Transition]


def joined_film(seed: int, num_shots: int, kind: Literal["cuts", "gradual"]) -> JoinedFilm:
    """Return a film of `num_shots`; gradual transitions alternate between dissolves and fades through black."""
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
    """Return `length` frames of a dissolve between two shots, and how many frames of each shot they replace."""
    share = ((np.arange(length) + 1) / (length + 1))[:, None, None, None]
    return np.rint((1 - share) * before[-length:] + share * after[:length]).astype(np.uint8), length


def fade(before: np.ndarray, after: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """Return a fade like `dissolve`: the first shot fades to black, then the second fades in."""
    half = length // 2
    share = (np.arange(half) / half)[:, None, None, None]
    frames = np.concatenate([(1 - share) * before[-half:], share * after[:half]])
    return np.rint(frames).astype(np.uint8), half


def f1_of(seen: Sequence[Transition], true: Sequence[Transition], tolerance: int) -> float:
    """Return F1 of the detected transitions; one is right if it is within `tolerance` frames of a true one that no
    other detection has matched."""
    free, num_right = list(true), 0
    for first, stop in seen:
        hit = next(
            (candidate for candidate in free if candidate[0] - tolerance <= stop and first <= candidate[1] + tolerance),
            None,
        )
        if hit is not None:
            free.remove(hit)
            num_right += 1
    return 2 * num_right / (len(seen) + len(true)) if seen or true else 1.0
