"""Which frames of a video make a clip. Pure: length, rule, policy and generator in, frame indices out.

A video of V frames is cut into m = min(num_frames, V) segments of equal length; one frame is taken from each
segment, by policy; a video shorter than the clip repeats its frames evenly. Other rules space the frames equally, and
the policy says where they start.
"""

from __future__ import annotations

import itertools
from enum import StrEnum

import numpy as np

from pipeline.decode.config import Sampling


class Policy(StrEnum):
    """Which frame of a segment is taken, or which of the places where equally spaced frames can start."""

    MIDDLE = "middle"
    """The middle one: evaluation."""
    RANDOM = "random"
    """A uniformly drawn one: training."""


SEGMENTS = Sampling()


def choose(
    sampling: Sampling,
    num_frames: int,
    length: int,
    policy: Policy = Policy.MIDDLE,
    *,
    fps: float,
    rng: np.random.Generator | None = None,
) -> list[int]:
    """Return `num_frames` ascending positions in a sequence of `length` frames (of key frames, under that rule).

    `fps` is the video's rate; where it varies, the mean one, so that `fps` clips are evenly spaced in frames.
    """
    match sampling.rule:
        case "segments" | "key_frames":
            return sample_frames(num_frames, length, policy, rng=rng)
        case "dense":
            return spaced_frames(num_frames, length, float(sampling.stride), policy, rng=rng)
        case "fps":
            return spaced_frames(num_frames, length, fps / sampling.frames_per_second, policy, rng=rng)


def spaced_frames(
    num_frames: int,
    length: int,
    step: float,
    policy: Policy = Policy.MIDDLE,
    *,
    rng: np.random.Generator | None = None,
) -> list[int]:
    """Return `num_frames` ascending indices, `step` frames apart, into a video of `length` frames.

    They start in the middle of the room they have, or anywhere in it, by policy. Where not all fit, those that do are
    repeated evenly.
    """
    _refuse_none(num_frames, length)
    offsets = [offset for index in range(num_frames) if (offset := int(index * step)) < length]
    start = _take(0, length - offsets[-1], policy, rng)
    return _repeated([start + offset for offset in offsets], num_frames)


def segments(num_frames: int, length: int) -> list[tuple[int, int]]:
    """Cut [0, length) into min(num_frames, length) intervals [first, stop), none empty, without gap or overlap."""
    _refuse_none(num_frames, length)
    edges = np.linspace(0, length, min(num_frames, length) + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))


def sample_frames(
    num_frames: int, length: int, policy: Policy = Policy.MIDDLE, *, rng: np.random.Generator | None = None
) -> list[int]:
    """Return `num_frames` ascending indices into a video of `length` frames. `rng` is needed by `Policy.RANDOM`."""
    return _repeated([_take(first, stop, policy, rng) for first, stop in segments(num_frames, length)], num_frames)


def published_frames(
    num_frames: int,
    length: int,
    policy: Policy = Policy.MIDDLE,
    *,
    frames: tuple[int, int] | None = None,
    rng: np.random.Generator | None = None,
) -> list[int]:
    """Return what the published code drew of the `frames` [first, stop) of a video, by default of all: the reference.

    It never draws the last frame of a segment (of more than one frame), and repeats the last frame of the video where
    `frames` ends after it.
    """
    start, end = frames or (0, length)
    cut = segments(num_frames, end - start)
    if policy == Policy.RANDOM:
        cut = [(first, max(stop - 1, first + 1)) for first, stop in cut]
    indices = _repeated([_take(first, stop, policy, rng) for first, stop in cut], num_frames)
    return [min(min(start, length - 1) + index, length - 1) for index in indices]


def window(*, fps: float, start_seconds: float, end_seconds: float) -> tuple[int, int]:
    """Return [first, stop) of the frames between two times, at least one frame; a video may end before."""
    if not 0 <= start_seconds < end_seconds:
        raise ValueError(f"a clip needs 0 <= start < end, got start {start_seconds} s and end {end_seconds} s")
    first = int(start_seconds * fps)
    return first, first + max(1, int((end_seconds - start_seconds) * fps))


def _refuse_none(num_frames: int, length: int) -> None:
    if num_frames < 1 or length < 1:
        raise ValueError(f"a clip needs at least 1 frame from at least 1 frame, got {num_frames} from {length}")


def _repeated(indices: list[int], num_frames: int) -> list[int]:
    """Repeat `indices` evenly to `num_frames`."""
    if len(indices) == num_frames:
        return indices
    last = len(indices) - 1
    return [indices[int(last * j / (num_frames - 1) + 0.5)] for j in range(num_frames)]


def _take(first: int, stop: int, policy: Policy, rng: np.random.Generator | None) -> int:
    if policy == Policy.MIDDLE:
        return (first + stop - 1) // 2
    if rng is None:
        raise ValueError("the policy `random` needs a generator: pass rng=")
    return int(rng.integers(first, stop))
