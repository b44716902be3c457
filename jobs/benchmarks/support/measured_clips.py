"""Clips with known motion, blur, black bars and text: panned pictures of noise with objects on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from jobs.benchmarks.dedup import drawn_texture

SIZE_PX, FPS, NUM_FRAMES = (256, 144), 8, 16
MOST_MOTION, MOST_BLUR_PX, MOST_BARS, MOST_TEXT = 0.5, 4.0, 0.4, 0.3
"""Upper limits: share of the width per second, standard deviation of a Gaussian, share of the height, share of the
picture."""
WORDS = "breaking news subscribe now the quick brown fox jumps over a lazy dog weather today at half past seven".split()
NUM_THINGS = 40


@dataclass(frozen=True)
class MeasuredClip:
    """A clip, and its true properties."""

    frames: UInt8[np.ndarray, "16 144 256 3"]
    truth: dict[str, float]
    """Name of a score → the value by which it should rank."""


def measured_clip(seed: int, number: int) -> MeasuredClip:
    """Return a clip with one of motion, blur, bars and text drawn evenly; the others are moderate, the same for all."""
    rng = np.random.default_rng([seed, number])
    varied = ("motion", "blur", "letterbox", "text")[number % 4]
    level = float(rng.uniform())
    motion = MOST_MOTION * (level if varied == "motion" else 0.1)
    blur_px = MOST_BLUR_PX * level if varied == "blur" else 0.0
    bar_px = round(SIZE_PX[1] * MOST_BARS * level / 2) if varied == "letterbox" else 0
    frames = panned(drawn_picture(rng, blur_px), motion, rng.uniform(0, 2 * np.pi))
    frames[:, :bar_px] = frames[:, SIZE_PX[1] - bar_px :] = 0
    frames, text = lettered(frames, MOST_TEXT * level if varied == "text" else 0.0, rng)
    truth = {"motion": motion, "blur": blur_px, "letterbox": 2 * bar_px / SIZE_PX[1], "text": text}
    return MeasuredClip(frames, {varied: truth[varied]})


def drawn_picture(rng: np.random.Generator, blur_px: float) -> Image.Image:
    """Return a picture of more than twice the size of a clip, blurred by a Gaussian."""
    width, height = (2 * side + 128 for side in SIZE_PX)
    picture = drawn_texture(rng).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(NUM_THINGS):
        x, y, half_width, half_height = rng.uniform((0, 0, 5, 5), (width, height, 40, 40)).tolist()
        draw = pen.ellipse if rng.integers(2) else pen.rectangle
        colour = tuple(rng.integers(0, 256, 3).tolist())
        draw((x - half_width, y - half_height, x + half_width, y + half_height), fill=colour)
    return picture.filter(ImageFilter.GaussianBlur(blur_px)) if blur_px else picture


def panned(picture: Image.Image, motion: float, angle: float) -> UInt8[np.ndarray, "16 144 256 3"]:
    """Return frames cut out of a picture along a straight path, with a speed of `motion` widths per second."""
    way = motion * SIZE_PX[0] / FPS * np.array([np.cos(angle), np.sin(angle)])
    frames = []
    for place in np.arange(NUM_FRAMES) - (NUM_FRAMES - 1) / 2:
        left, top = (np.array(picture.size) - SIZE_PX) / 2 + place * way
        cut = picture.transform(
            SIZE_PX, Image.Transform.AFFINE, (1, 0, left, 0, 1, top), resample=Image.Resampling.BICUBIC
        )
        frames.append(np.asarray(cut))
    return np.stack(frames)


def lettered(
    frames: UInt8[np.ndarray, "T H W 3"], share: float, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "T H W 3"], float]:
    """Return frames with lines of text over about `share` of the picture, in several sizes and colours, on bars or with
    an outline; and the exact share of the boxes around the lines."""
    height, width = frames.shape[1:3]
    layer = Image.new("RGBA", (width, height))
    pen, boxes, area = ImageDraw.Draw(layer), [], 0
    for _ in range(300):
        line, size = " ".join(rng.choice(WORDS, rng.integers(1, 5))), int(rng.integers(9, 24))
        font = ImageFont.load_default(size)
        left, top, right, bottom = (round(side) for side in font.getbbox(line))
        wide, high = right - left, bottom - top
        x, y = (int(rng.integers(3, max(4, room))) for room in (width - wide - 3, height - high - 3))
        box = (x, y, x + wide, y + high)
        meets = any(x < b[2] + 5 and b[0] - 5 < box[2] and y < b[3] + 4 and b[1] - 4 < box[3] for b in boxes)
        if meets or box[2] > width - 3 or area + wide * high > share * height * width:
            continue
        boxes.append(box)
        area += wide * high
        has_bar = bool(rng.integers(2))
        if has_bar:
            pen.rectangle((x - 3, y - 2, box[2] + 2, box[3] + 1), fill=(0, 0, 0, 255))
        colour = ((255, 255, 255, 255), (255, 230, 40, 255))[rng.integers(2)]
        pen.text((x - left, y - top), line, colour, font, stroke_width=int(not has_bar), stroke_fill=(0, 0, 0, 255))
    letters = np.asarray(layer)
    alpha = letters[..., 3:] / 255
    return (frames * (1 - alpha) + letters[..., :3] * alpha).astype(np.uint8), area / (height * width)
