"""Find shot boundaries: changes between frames, transitions, and spans of bounded length. Pure.

frames ──content_changes──► changes ──runs_above──► transitions ──spans_of_shots──► seconds ──bound_lengths──► clips
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32, Float64, UInt8

Transition = tuple[int, int]
"""(stop of the shot before, start of the shot after), in frames: equal at a cut, apart at a gradual transition."""
Span = tuple[float, float]
"""[start, end) in seconds on a player's clock."""


def hsv(frames: UInt8[np.ndarray, "T H W 3"]) -> Float32[np.ndarray, "T H W 3"]:
    """Convert RGB frames to hue in [0, 180), saturation and value in [0, 255], OpenCV's scales for 8 bits."""
    colours = frames.astype(np.float32)
    red, green, blue = np.moveaxis(colours, -1, 0)
    value = colours.max(-1)
    chroma = value - colours.min(-1)
    divisor = np.where(chroma, chroma, 1)
    degrees = np.where(
        value == red,
        60 * (green - blue) / divisor,
        np.where(value == green, 120 + 60 * (blue - red) / divisor, 240 + 60 * (red - green) / divisor),
    )
    saturation = 255 * chroma / np.where(value, value, 1)
    return np.stack([degrees % 360 / 2, saturation, value], axis=-1)


def content_changes(frames: UInt8[np.ndarray, "T H W 3"]) -> Float64[np.ndarray, " T_minus_1"]:
    """Return the mean absolute difference of each frame from the one before it, over pixels, hue, saturation and value.

    This is the score of PySceneDetect's content detector, so its thresholds apply here.
    """
    colours = hsv(frames)
    return np.abs(np.diff(colours, axis=0)).mean((1, 2, 3), dtype=np.float64)


def runs_above(scores: Float64[np.ndarray, " T"], threshold: float) -> list[tuple[int, int]]:
    """Return [first, stop) of each run of scores that reach the threshold."""
    edges = np.diff(scores >= threshold, prepend=False, append=False)
    places = np.flatnonzero(edges).tolist()
    return list(zip(places[::2], places[1::2], strict=True))


def spans_of_shots(transitions: Iterable[Transition], times: Float64[np.ndarray, " T"], end: float) -> list[Span]:
    """Return the spans of the shots between transitions. `times` are those of the frames, `end` is when the last one
    disappears, in seconds. Frames of a gradual transition belong to no shot."""
    bounds = [0, *(frame for transition in transitions for frame in transition), len(times)]
    on_screen = [*times.tolist(), end]
    shots = zip(bounds[::2], bounds[1::2], strict=True)
    return [(on_screen[first], on_screen[stop]) for first, stop in shots if first < stop]


def bound_lengths(spans: Iterable[Span], min_seconds: float, max_seconds: float) -> list[Span]:
    """Drop spans that are too short, and cut those that are too long into equal parts."""
    parts = []
    for start, end in spans:
        if end - start < min_seconds:
            continue
        count = math.ceil((end - start) / max_seconds - 1e-9)
        edges = np.linspace(start, end, count + 1).tolist()
        parts += itertools.pairwise(edges)
    return parts
