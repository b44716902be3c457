from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from golden import golden

from pipeline.decode.codec import DecodeError, Timeline, VideoInfo
from pipeline.decode.config import Sampling
from pipeline.decode.sampling import (
    Policy,
    _repeated,
    _take,
    choose,
    clip_indices,
    published_window,
    sample_frames,
    segments,
    spaced_frames,
)

CASES = [(1, 1), (1, 7), (4, 2), (4, 4), (4, 5), (4, 100), (16, 3), (16, 300), (7, 10_001)]


def _used(indices: np.ndarray) -> list[int]:
    return [int(index) for index in indices if index >= 0]


PUBLISHED = Sampling(clock="index")


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


def clip_of(num_frames: int, length: int, *, fps: float, **settings: Any) -> list[int]:
    info = VideoInfo(num_frames=length, fps=fps, width=1, height=1, duration_seconds=length / fps)
    return clip_indices(Timeline.uniform(info), num_frames=num_frames, **settings)


def test_golden_frames_of_whole_videos():
    recorded = golden("frame_sampling")
    for (num_frames, length), expected in zip(
        recorded["in/whole/n_clips_and_length"].tolist(), recorded["out/whole/eval_indices"], strict=True
    ):
        assert published_frames(num_frames, length) == _used(expected)
        assert sample_frames(num_frames, length) == _used(expected)


def test_golden_ranges_of_random_frames():
    recorded = golden("frame_sampling")
    for (num_frames, length), ranges in zip(
        recorded["in/whole/n_clips_and_length"].tolist(), recorded["out/whole/train_half_open_ranges"], strict=True
    ):
        if length < num_frames:
            continue
        rng = np.random.default_rng(0)
        drawn = np.array([published_frames(num_frames, length, Policy.RANDOM, rng=rng) for _ in range(200)])
        for column, (low, high) in zip(drawn.T, ranges[:num_frames], strict=True):
            assert low <= column.min()
            assert column.max() < high
            if high - low <= 8:
                assert set(column.tolist()) == set(range(low, high))


def test_golden_frames_of_windows():
    recorded = golden("frame_sampling")
    for row, expected in zip(
        recorded["in/window/n_length_fps_start_end"], recorded["out/window/eval_indices"], strict=True
    ):
        num_frames, length = int(row[0]), int(row[1])
        fps, start, end = row[2:].tolist()
        assert published_frames(num_frames, length, frames=published_window(fps, start, end)) == _used(expected)
        if int(start * fps) + int((end - start) * fps) <= length:
            times = {"start_seconds": start, "end_seconds": end}
            assert clip_of(num_frames, length, fps=fps, sampling=PUBLISHED, **times) == _used(expected)


@pytest.mark.parametrize(("num_frames", "length"), CASES)
def test_segments_cover_the_video_once(num_frames, length):
    cut = segments(num_frames, length)
    assert len(cut) == min(num_frames, length)
    assert [index for first, stop in cut for index in range(first, stop)] == list(range(length))


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize(("num_frames", "length"), CASES)
def test_a_clip_has_the_asked_number_of_ascending_frames_of_the_video(num_frames, length, policy):
    indices = sample_frames(num_frames, length, policy, rng=np.random.default_rng(3))
    assert len(indices) == num_frames
    assert all(a <= b for a, b in itertools.pairwise(indices))
    assert 0 <= indices[0] <= indices[-1] < length


RULES = [
    Sampling(),
    Sampling(rule="key_frames"),
    Sampling(rule="dense", stride=1),
    Sampling(rule="dense", stride=7),
    Sampling(rule="fps", frames_per_second=2.5),
    Sampling(rule="fps", frames_per_second=60.0),
]


@pytest.mark.parametrize("sampling", RULES)
@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize(("num_frames", "length"), CASES)
def test_every_rule_gives_the_asked_number_of_ascending_frames(num_frames, length, policy, sampling):
    rng = np.random.default_rng(3)
    indices = choose(sampling, num_frames, length, policy, 29.97, rng=rng)
    assert len(indices) == num_frames
    assert all(a <= b for a, b in itertools.pairwise(indices))
    assert 0 <= indices[0] <= indices[-1] < length


def test_dense_frames_stand_in_the_middle_or_start_anywhere_in_their_room():
    dense = Sampling(rule="dense", stride=3)
    assert choose(dense, 4, 20, Policy.MIDDLE, 25.0) == [5, 8, 11, 14]
    rng = np.random.default_rng(0)
    drawn = [choose(dense, 4, 20, Policy.RANDOM, 25.0, rng=rng) for _ in range(300)]
    assert {indices[0] for indices in drawn} == set(range(11))
    assert {b - a for indices in drawn for a, b in itertools.pairwise(indices)} == {3}


@pytest.mark.parametrize("fps", [24.0, 30000 / 1001, 50.0])
@pytest.mark.parametrize("rate", [0.7, 3.0, 12.5])
def test_frames_at_a_rate_lie_within_a_frame_of_their_times(fps, rate):
    indices = choose(Sampling(rule="fps", frames_per_second=rate), 8, 1000, Policy.MIDDLE, fps)
    times = np.array(indices) / fps
    assert np.abs(times - times[0] - np.arange(8) / rate).max() <= 1 / fps


def test_a_rate_that_divides_the_videos_is_a_stride():
    by_rate = choose(Sampling(rule="fps", frames_per_second=5.0), 6, 100, Policy.MIDDLE, 25.0)
    assert by_rate == choose(Sampling(rule="dense", stride=5), 6, 100, Policy.MIDDLE, 25.0)


def test_a_video_shorter_than_a_dense_clip_repeats_the_frames_that_fit():
    assert spaced_frames(4, 10, 8.0) == [0, 0, 8, 8]
    assert spaced_frames(3, 1, 8.0) == [0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0}, "data.sampling.stride must be at least 1, got 0"),
        ({"frames_per_second": 0.0}, "data.sampling.frames_per_second must be above 0, got 0"),
    ],
)
def test_rules_that_give_no_frames_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
    with pytest.raises(ValueError, match="at least 1 frame"):
        spaced_frames(2, 0, 1.0)


def test_every_frame_can_be_drawn_but_the_published_code_never_draws_the_last_of_a_segment():
    rng = np.random.default_rng(0)
    assert {i for _ in range(300) for i in sample_frames(2, 8, Policy.RANDOM, rng=rng)} == set(range(8))
    published = {i for _ in range(300) for i in published_frames(2, 8, Policy.RANDOM, rng=rng)}
    assert published == {0, 1, 2, 4, 5, 6}


def test_a_window_past_the_end_is_cut_to_the_video():
    assert published_frames(4, 120, frames=published_window(24.0, 4.0, 20.0)) == [119, 119, 119, 119]
    assert clip_of(4, 120, fps=24.0, start_seconds=4.0, end_seconds=20.0) == [96 + i for i in sample_frames(4, 24)]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"start_seconds": 2.0, "end_seconds": 2.0}, "0 <= start < end"),
        ({"start_seconds": -1.0, "end_seconds": 2.0}, "0 <= start < end"),
        ({"start_seconds": 5.0, "end_seconds": 6.0}, r"starts at 5.0 s, the video ends at 4.000 s"),
    ],
)
def test_impossible_windows_are_refused(times, message):
    with pytest.raises((ValueError, DecodeError), match=message):
        clip_of(4, 40, fps=10.0, **times)


def test_random_needs_a_generator_and_a_video_needs_frames():
    with pytest.raises(ValueError, match="rng="):
        sample_frames(2, 8, Policy.RANDOM)
    with pytest.raises(ValueError, match="at least 1 frame"):
        sample_frames(2, 0)


@pytest.mark.parametrize("sampling", [rule for rule in RULES if rule.rule != "key_frames"])
@pytest.mark.parametrize("fps", [10.0, 24.0, 25.0, 30000 / 1001])
def test_at_a_constant_rate_places_in_time_are_the_frames_of_the_same_number(sampling, fps):
    for start, stop in [(0, 100), (0, 7), (13, 90), (99, 100)]:
        times = {"start_seconds": start / fps, "end_seconds": stop / fps}
        expected = choose(sampling, 8, stop - start, Policy.MIDDLE, round(fps, 6))
        assert clip_of(8, 100, fps=fps, sampling=sampling, **times) == [start + place for place in expected]


def test_where_the_rate_varies_frames_are_evenly_spaced_in_time():
    """Ten frames in the first second, then one a second for nine seconds."""
    timeline = Timeline(np.concatenate([np.arange(10) / 10, np.arange(1, 10)]), 10.0)
    assert clip_indices(timeline, num_frames=5) == [7, 11, 13, 15, 17]  # on screen at 0.8, 2.9, 4.5, 6.6 and 8.7 s
    assert clip_indices(timeline, num_frames=5, sampling=PUBLISHED) == [1, 4, 8, 12, 16]
    assert clip_indices(timeline, num_frames=2, start_seconds=2.5, end_seconds=4.5) == [11, 12]
    assert clip_indices(timeline, num_frames=1, start_seconds=9.4, end_seconds=9.6) == [18]


def test_seconds_are_those_of_a_player_where_the_video_begins_late():
    timeline = Timeline(2.0 + np.arange(75) / 25, 5.0)
    assert clip_indices(timeline, num_frames=3, start_seconds=4.0, end_seconds=4.12) == [50, 51, 52]
    assert clip_indices(timeline, num_frames=1, start_seconds=0.0, end_seconds=2.04) == [0]
    with pytest.raises(DecodeError, match=r"the clip ends at 1.0 s, the first frame appears at 2.000 s"):
        clip_indices(timeline, num_frames=1, start_seconds=0.0, end_seconds=1.0)
    with pytest.raises(DecodeError, match=r"starts at 5.0 s, the video ends at 5.000 s"):
        clip_indices(timeline, num_frames=1, start_seconds=5.0)


@pytest.mark.parametrize("fps", [23.976, 29.97, 60.0, 120.0])
def test_times_that_a_container_rounds_to_milliseconds_name_the_same_frames(fps):
    exact = np.arange(1000) / fps
    rounded = Timeline(exact.round(3), 1000 / fps)
    for number in (1, 7, 500, 998):
        assert rounded.window(number / fps, (number + 1) / fps) == range(number, number + 1)
    assert clip_indices(rounded, num_frames=1000) == list(range(1000))
