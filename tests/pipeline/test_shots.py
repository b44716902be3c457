"""Shots of long videos: changes between frames, transitions, lengths, and every frame of a file."""

from __future__ import annotations

import colorsys
import itertools
from pathlib import Path

import numpy as np
import pytest
from films import FILMS, NUM_FRAMES, WHOLE, Film

from jobs.benchmarks.support.joined_film import FPS, f1_of, joined_film
from pipeline.curation.cuts import bound_lengths, content_changes, hsv, runs_above, spans_of_shots
from pipeline.curation.shots import ContentDetector, Cutting, shots_of
from pipeline.decode import every_frame
from pipeline.decode.codec import encode_video, open_video
from pipeline.decode.config import Limits
from pipeline.records import DecodeError


def frames_of(seed: int, num_frames: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 9, 16, 3), np.uint8)


def test_hue_saturation_and_value_are_those_of_the_standard_library() -> None:
    frames = frames_of(0, 1)
    expected = [colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in frames.reshape(-1, 3)]
    np.testing.assert_allclose(hsv(frames).reshape(-1, 3), np.array(expected) * (180, 255, 255), atol=1e-3)


def test_changes_are_those_of_the_content_detector_that_the_field_uses() -> None:
    pytest.importorskip("cv2")
    scenedetect = pytest.importorskip("scenedetect.detectors")
    common = pytest.importorskip("scenedetect.common")
    detector, frames, scores = scenedetect.ContentDetector(), frames_of(1), []
    for number, frame in enumerate(frames):
        detector.process_frame(common.FrameTimecode(number, 25.0), frame[..., ::-1])
        scores.append(detector._frame_score)
    np.testing.assert_allclose(content_changes(frames), scores[1:], atol=0.5)  # OpenCV rounds to whole numbers


def test_frames_of_a_slow_transition_are_in_no_shot() -> None:
    assert runs_above(np.array([0.0, 5, 0, 0, 7, 9, 5]), 5.0) == [(1, 2), (4, 7)]
    times = np.arange(10) / 10
    assert spans_of_shots([(3, 3), (6, 8)], times, 1.0) == [(0.0, 0.3), (0.3, 0.6), (0.8, 1.0)]
    assert spans_of_shots([(0, 2), (8, 10)], times, 1.0) == [(0.2, 0.8)]
    assert spans_of_shots([], times, 1.0) == [(0.0, 1.0)]


def test_clips_have_the_allowed_lengths_and_leave_nothing_out_but_short_ones() -> None:
    spans = [(0.0, 1.5), (2.0, 4.0), (4.0, 24.5)]
    parts = bound_lengths(spans, 2.0, 10.0)
    assert parts[0] == (2.0, 4.0)
    assert [round(end - start, 3) for start, end in parts[1:]] == [6.833] * 3
    assert parts[1][0] == 4.0
    assert parts[-1][1] == 24.5
    assert bound_lengths([(0.0, 30.0)], 0.0, 10.0) == [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0)]


@pytest.mark.parametrize("name", ["Matroska", "turned", "open groups of HEVC", "AVI, which has no times"])
def test_every_frame_is_what_an_opened_file_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every_frame, "FRAMES_AT_ONCE", 20)
    path = tmp_path / "film"
    data = {**FILMS, **WHOLE}[name].made(path)
    timeline, chunks = every_frame.every_frame(str(path), size=(48, 27), limits=Limits(), decoder="auto")
    with open_video(data) as video:
        expected = video.frames(range(NUM_FRAMES), (48, 27))
        np.testing.assert_allclose(timeline.times, video.timeline.times)
        assert timeline.end == pytest.approx(video.timeline.end)
    chunks = list(chunks)
    assert len(chunks) >= 4
    np.testing.assert_array_equal(np.concatenate(chunks), expected)


def test_frames_are_gone_through_once_and_from_key_frames_on() -> None:
    for num_frames, keys in ((1, [0]), (512, [0]), (2000, range(0, 2000, 250)), (5000, [0]), (1300, [0, 400, 1100])):
        goes = every_frame.frame_ranges(num_frames, list(keys))
        assert [frame for go in goes for frame in go] == list(range(num_frames))
        assert max(map(len, goes)) <= every_frame.FRAMES_AT_ONCE
    assert [go.start for go in every_frame.frame_ranges(2000, list(range(0, 2000, 250)))] == [0, 500, 1000, 1500]


def test_cuts_between_scenes_are_where_they_were_made(tmp_path: Path) -> None:
    film = joined_film(3, 5, "cuts")
    path = tmp_path / "film.mp4"
    path.write_bytes(encode_video(film.frames, fps=FPS))
    bounds = [0, *(start for start, _ in film.transitions), len(film.frames)]
    spans = shots_of(str(path), ContentDetector(threshold=8.0), limits=Limits(), decoder="auto")
    expected = [(start / FPS, stop / FPS) for start, stop in itertools.pairwise(bounds)]
    np.testing.assert_allclose(spans, expected, atol=1e-6)


def test_a_stride_needs_no_frame_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(Film(has_sound=False).made(path))
    cutting = Cutting(by="stride", detector="content", threshold=None, window_seconds=2.0, stride_seconds=1.0)
    assert cutting.spans(str(path), limits=Limits(), decoder="auto") == [(0.0, 2.0), (1.0, 3.0)]
    path.write_bytes(b"no video at all")
    with pytest.raises(DecodeError):
        cutting.spans(str(path), limits=Limits(), decoder="auto")


def test_what_counts_as_seen() -> None:
    assert f1_of([(10, 10), (30, 31)], [(12, 12), (40, 40)], 2) == 0.5
    assert f1_of([(10, 10), (11, 11)], [(10, 20)], 2) == pytest.approx(2 / 3)
    assert f1_of([], [(1, 1)], 2) == 0
