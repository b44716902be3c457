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
    FIXED = "fixed"
    """The first one."""


SEGMENTS = Sampling()


def choose(
    sampling: Sampling,
    num_frames: int,
    length: int,
    policy: Policy = Policy.MIDDLE,
    *,
    fps: float,
    rng: np.random.Generator | None = None,
    reference: bool = False,
) -> list[int]:
    """`num_frames` ascending positions in a sequence of `length` frames (of key frames, under that rule).

    `fps` is the video's rate; where it varies, the mean one, so that `fps` clips are evenly spaced in frames.
    """
    match sampling.rule:
        case "segments" | "key_frames":
            return sample_frames(num_frames, length, policy, rng=rng, reference=reference)
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
    """`num_frames` ascending indices, `step` frames apart, into a video of `length` frames.

    They start in the middle of the room they have, anywhere in it, or at the first frame, by policy. Where not all
    fit, those that do are repeated evenly.
    """
    if num_frames < 1 or length < 1:
        raise ValueError(f"a clip needs at least 1 frame from at least 1 frame, got {num_frames} from {length}")
    offsets = [offset for index in range(num_frames) if (offset := int(index * step)) < length]
    start = _take(0, length - offsets[-1], policy, rng, reference=False)
    return _repeated([start + offset for offset in offsets], num_frames)


def segments(num_frames: int, length: int) -> list[tuple[int, int]]:
    """min(num_frames, length) intervals [first, stop), none empty, that cover [0, length) without gap or overlap."""
    if num_frames < 1 or length < 1:
        raise ValueError(f"a clip needs at least 1 frame from at least 1 frame, got {num_frames} from {length}")
    edges = np.linspace(0, length, min(num_frames, length) + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))


def sample_frames(
    num_frames: int,
    length: int,
    policy: Policy = Policy.MIDDLE,
    *,
    rng: np.random.Generator | None = None,
    reference: bool = False,
) -> list[int]:
    """`num_frames` ascending indices into a video of `length` frames.

    `rng` is needed by `Policy.RANDOM` alone. `reference` draws as the published code did: never the last frame
    of a segment (of more than one frame).
    """
    taken = [_take(first, stop, policy, rng, reference) for first, stop in segments(num_frames, length)]
    return _repeated(taken, num_frames)


def sample_window(
    num_frames: int,
    length: int,
    policy: Policy = Policy.MIDDLE,
    *,
    fps: float,
    start_seconds: float,
    end_seconds: float,
    rng: np.random.Generator | None = None,
    reference: bool = False,
) -> list[int]:
    """`num_frames` ascending indices that lie in [start, end) of a video of `length` frames.

    A window that ends after the video is cut to it. `reference` samples the whole window and then clips the indices,
    as the published code did, which repeats the last frame instead. A window that starts at or after the end of
    the video is refused with ValueError (except under `reference`).
    """
    first, stop = window(fps=fps, start_seconds=start_seconds, end_seconds=end_seconds)
    if reference:
        indices = sample_frames(num_frames, stop - first, policy, rng=rng, reference=True)
        return [min(min(first, length - 1) + index, length - 1) for index in indices]
    if first >= length:
        raise ValueError(f"the clip starts at {start_seconds} s, the video ends at {length / fps:.3f} s")
    return [first + index for index in sample_frames(num_frames, min(stop, length) - first, policy, rng=rng)]


def window(*, fps: float, start_seconds: float, end_seconds: float) -> tuple[int, int]:
    """[first, stop) of the frames between two times, at least one frame; a video may end before."""
    if not 0 <= start_seconds < end_seconds:
        raise ValueError(f"a clip needs 0 <= start < end, got start {start_seconds} s and end {end_seconds} s")
    first = int(start_seconds * fps)
    return first, first + max(1, int((end_seconds - start_seconds) * fps))


def _repeated(taken: list[int], num_frames: int) -> list[int]:
    """`taken`, evenly repeated to `num_frames`."""
    if len(taken) == num_frames:
        return taken
    last = len(taken) - 1
    return [taken[int(last * j / (num_frames - 1) + 0.5)] for j in range(num_frames)]


def _take(first: int, stop: int, policy: Policy, rng: np.random.Generator | None, reference: bool) -> int:
    last = stop - 1
    match policy:
        case Policy.MIDDLE:
            return (first + last) // 2
        case Policy.FIXED:
            return first
        case Policy.RANDOM:
            if rng is None:
                raise ValueError("the policy `random` needs a generator: pass rng=")
            return int(rng.integers(first, max(last, first + 1) if reference else stop))
