"""Sample the frames of a clip. Pure: times, rule, policy and generator in, frame indices out.

A window of V frames is cut into m = min(num_frames, V) segments of equal length; the policy selects one place from each
segment; a video shorter than the clip repeats its frames evenly. Other rules space the places equally, and the policy
selects where they start. A place is the V-th part of the window's time, and stands for the frame on screen in its
middle: at a constant rate, the frame of the same number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from pipeline.decode.config import Sampling
from pipeline.decode.timeline import Timeline
from pipeline.records import DecodeError, Reason


class Policy(StrEnum):
    """Selects the frame of a segment, or the start of equally spaced frames."""

    MIDDLE = "middle"
    """The middle one: evaluation."""
    RANDOM = "random"
    """A uniformly drawn one: training."""


SEGMENTS = Sampling()


def clip_indices(
    timeline: Timeline,
    *,
    num_frames: int,
    sampling: Sampling = SEGMENTS,
    policy: Policy = Policy.MIDDLE,
    rng: np.random.Generator | None = None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    key_frames: Sequence[int] = (),
) -> list[int]:
    """Return the frames of a clip, as indices into `timeline`.

    DecodeError: out_of_range if the window contains no frame, no_frames if the rule is `key_frames` and the window
    contains none of them.
    """
    window = timeline.window(start_seconds, end_seconds)
    if sampling.rule == "key_frames":
        keys = [index for index in key_frames if index in window]
        if not keys:
            raise DecodeError(Reason.NO_FRAMES, "no key frame lies in the clip: choose another data.sampling.rule")
        return [keys[place] for place in sample_frames(num_frames, len(keys), policy, rng=rng)]
    if sampling.clock == "index":
        first, stop = published_window(timeline.fps, start_seconds, end_seconds)
        frames = range(len(timeline.times))[first : None if end_seconds is None else stop] or window
        return [frames[place] for place in choose(sampling, num_frames, len(frames), policy, timeline.fps, rng=rng)]
    start = max(start_seconds or 0.0, float(timeline.times[window[0]]))
    end = timeline.end if end_seconds is None else min(end_seconds, timeline.end)
    places_per_second = round(len(window) / (end - start), 6)
    places = choose(sampling, num_frames, len(window), policy, places_per_second, rng=rng)
    shown = timeline.on_screen(start + (np.array(places) + 0.5) * (end - start) / len(window))
    return [min(max(index, window[0]), window[-1]) for index in shown]


def choose(
    sampling: Sampling,
    num_frames: int,
    length: int,
    policy: Policy,
    fps: float,
    *,
    rng: np.random.Generator | None = None,
) -> list[int]:
    """Return `num_frames` ascending places in a sequence of `length` places with `fps` places per second."""
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

    The policy selects the start: the middle of the possible ones, or a random one. If not all frames fit, those that do
    are repeated evenly.
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
    """Return `num_frames` ascending indices into a video of `length` frames. `Policy.RANDOM` needs `rng`."""
    return _repeated([_take(first, stop, policy, rng) for first, stop in segments(num_frames, length)], num_frames)


def published_window(fps: float, start_seconds: float | None, end_seconds: float | None) -> tuple[int, int]:
    """Return [first, stop) of the frames between two times, at least one frame; it may exceed the video."""
    first = int((start_seconds or 0.0) * fps)
    return first, first + max(1, int(((end_seconds or 0.0) - (start_seconds or 0.0)) * fps))


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
