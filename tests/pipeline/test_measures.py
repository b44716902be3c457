"""Measures of clips against clips that have them by construction."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.stats import spearmanr

from jobs.benchmarks.filter_scores import rank_correlation
from jobs.benchmarks.support.measured_clips import MOST_MOTION, MOST_TEXT, drawn_picture, lettered, panned
from pipeline.curation.measures import MAX_BLUR_PX, black, blur, letterbox, luma, motion, static, text
from pipeline.curation.scores import scores_of
from pipeline.records import Kind


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return drawn_picture(np.random.default_rng(0), 0.0)


def test_motion_is_the_way_of_the_picture_per_second(picture: Image.Image) -> None:
    ways = [0.0, 0.05, 0.2, MOST_MOTION]
    scores = [motion(luma(panned(picture, way, 0.7)), 8.0) for way in ways]
    assert scores[0] == 0
    np.testing.assert_allclose(scores[1:], ways[1:], rtol=0.4)
    assert scores == sorted(scores)
    assert motion(luma(panned(picture, 0.2, 0.7)[:1]), 8.0) == 0


def test_blur_grows_with_the_gaussian_and_not_with_contrast(picture: Image.Image) -> None:
    frames = [np.asarray(picture.filter(ImageFilter.GaussianBlur(px)))[None] for px in (0.0, 1.0, 2.0, 4.0)]
    scores = [blur(luma(frame)) for frame in frames]
    np.testing.assert_allclose(scores[1:], [1.0, 2.0, 4.0], rtol=0.35)
    assert scores[0] < 0.9  # what the differences of neighbours themselves blur
    assert blur(luma(frames[1]) / 3) == pytest.approx(scores[1], rel=0.02)
    assert blur(np.zeros((2, 20, 20), np.float32)) == MAX_BLUR_PX


def test_bars_black_frames_and_standing_pictures_are_counted(picture: Image.Image) -> None:
    frames = panned(picture, 0.2, 0.0)
    assert (letterbox(luma(frames)), black(luma(frames)), static(luma(frames))) == (0, 0, 0)
    barred = frames.copy()
    barred[:, :18] = barred[:, -18:] = 16
    barred[:, :, :32] = 5
    assert letterbox(luma(barred)) == pytest.approx(1 - (108 / 144) * (224 / 256))
    barred[:4] = 10
    assert black(luma(barred)) == 0.25
    assert letterbox(luma(barred)) == pytest.approx(1 - (108 / 144) * (224 / 256))
    barred[8:] = barred[8]
    assert static(luma(barred)) == (3 + 7) / 15
    assert letterbox(luma(np.zeros_like(frames))) == 0


def test_letters_are_ranked_by_the_share_that_their_lines_have() -> None:
    pairs = []
    for number in range(16):
        rng = np.random.default_rng([1, number])
        frames = panned(drawn_picture(rng, 0.0), 0.15, rng.uniform(0, 6))[::4]
        shown, share = lettered(frames, number * MOST_TEXT / 16, rng)
        pairs.append((share, text(luma(shown))))
        assert text(luma(frames)) < 0.02
    assert spearmanr(*zip(*pairs, strict=True)).statistic > 0.95
    assert text(luma(np.zeros((2, 4, 4, 3), np.uint8))) == 0


def test_letters_that_pass_by_are_none_of_the_pictures() -> None:
    rng = np.random.default_rng(0)
    still, _ = lettered(np.full((4, 144, 256, 3), 128, np.uint8), 0.2, rng)
    rolling = np.stack([np.roll(frame, 11 * place, axis=0) for place, frame in enumerate(still)])
    assert text(luma(still)) > 5 * text(luma(rolling))


def test_an_image_has_no_motion(picture: Image.Image) -> None:
    scores = scores_of(np.asarray(picture)[None], Kind.IMAGE)
    assert (scores["motion"], scores["static"]) == (None, None)
    assert scores["black"] == 0


def test_rank_correlation_is_the_one_of_the_field() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 9, 50).astype(float)
    other = one + rng.normal(0, 3, 50)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
