"""Thumbnails of clips like those of `dedup`, drawn directly at thumbnail size: coloured objects over a texture.

As in `dedup`, four of each ten clips share a texture and two share their objects. A copy shows a part of its original
at other sampling times, slightly blurred and with an encoder's noise.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from jobs.benchmarks.dedup import FAMILY, HEIGHT_PX, MAX_CUT, MAX_SECONDS, MIN_SECONDS, WIDTH_PX
from pipeline.dedup.fingerprints import FRAMES_PER_SECOND, LUMA_SIDE, PLANES, YCBCR

SIDE = LUMA_SIDE
CELL_PX = np.array([WIDTH_PX, HEIGHT_PX], np.float32) / SIDE
"""Width and height of the cell over which a luma value is averaged."""
GRAINS = ((4, 9, 30), (12, 24, 14), (24, 32, 4))
"""Least and most cells across the texture, and standard deviation in levels; of the finest grain, that after
averaging."""
NOISE, BLUR = 1.2, 0.04
"""Of a copy: standard deviation of the noise in levels, and weight of each neighbour in the blur."""
_X, _Y = ((np.arange(SIDE, dtype=np.float32) + 0.5) * size for size in CELL_PX)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A moving ellipse or rectangle; positions in pixels, times in seconds."""

    colour: Float64[np.ndarray, " 3"]
    half_size: Float64[np.ndarray, " 2"]
    start: Float64[np.ndarray, " 2"]
    velocity: Float64[np.ndarray, " 2"]
    swing: tuple[float, float]
    is_round: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Thing:
        """Draw appearance and path at random, in the ranges of `dedup.drawn_thing`."""
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(10, 90)
        return cls(
            colour=YCBCR @ rng.integers(0, 256, 3),
            half_size=rng.uniform(7, 22, 2),
            start=rng.uniform((0, 0), (WIDTH_PX, HEIGHT_PX)),
            velocity=speed * np.array([np.cos(angle), np.sin(angle)]),
            swing=(rng.uniform(0, 15), rng.uniform(0.2, 1.0)),
            is_round=bool(rng.integers(2)),
        )

    def coverage(self, seconds: Float32[np.ndarray, " T"]) -> Float32[np.ndarray, "T 16 16"]:
        """Return the share of each cell that the object covers."""
        border = np.array([WIDTH_PX, HEIGHT_PX])
        centre = border - abs((self.start + seconds[:, None] * self.velocity) % (2 * border) - border)
        centre[:, 1] += self.swing[0] * np.sin(2 * np.pi * self.swing[1] * seconds)
        x, y = (np.abs(axis - centre[:, [place]]).astype(np.float32) for place, axis in enumerate((_X, _Y)))
        (a, b), (width, height) = self.half_size.astype(np.float32), CELL_PX
        if not self.is_round:
            across, down = ((a - x) / width + 0.5).clip(0, 1), ((b - y) / height + 0.5).clip(0, 1)
            return down[:, :, None] * across[:, None, :]
        distance = np.sqrt(np.square(y / b)[:, :, None] + np.square(x / a)[:, None, :])
        return ((1 - distance) * (min(a, b) / width) + 0.5).clip(0, 1)


def texture(rng: np.random.Generator) -> Float32[np.ndarray, "3 32 32"]:
    """Draw luma and chroma of coloured noise of three grain sizes, twice as large as the picture."""
    planes = np.zeros((3, 2 * SIDE, 2 * SIDE), np.float32) + rng.uniform(60, 195, 3).astype(np.float32)[:, None, None]
    for least, most, strength in GRAINS:
        weights = _interpolation(int(rng.integers(least, most)))
        grid = rng.standard_normal((3, weights.shape[1], weights.shape[1]), np.float32)
        planes += strength * (weights @ grid @ weights.T)
    return np.tensordot(YCBCR, planes.clip(0, 255), 1)


@functools.cache
def _interpolation(cells: int) -> Float32[np.ndarray, "32 cells"]:
    """Return the Catmull-Rom weights that interpolate a row of cells to twice `SIDE` values."""
    distance = np.abs((np.arange(2 * SIDE)[:, None] + 0.5) / (2 * SIDE) * cells - np.arange(cells) - 0.5)
    near, far = 1.5 * distance**3 - 2.5 * distance**2 + 1, -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def original(seed: int, index: int) -> UInt8[np.ndarray, "T 384"]:
    """Draw the thumbnails of a clip, each in four versions: as drawn, and mirrored in one or both directions."""
    return _mirrored(_drawn(seed, _base(index)), index)


@functools.lru_cache(FAMILY)
def _drawn(seed: int, base: int) -> UInt8[np.ndarray, "T 384"]:
    num_seconds = _length(seed, base)
    seconds = (np.arange(int(num_seconds * FRAMES_PER_SECOND)) + 0.5) / FRAMES_PER_SECOND
    return _thumbnails(_scene(seed, base, seconds))


def _base(index: int) -> int:
    return index // (4 * FAMILY) * FAMILY + index % FAMILY


def _mirrored(thumbnails: UInt8[np.ndarray, "T 384"], index: int) -> UInt8[np.ndarray, "T 384"]:
    down, right = (slice(None, None, -1 if index // FAMILY & bit else 1) for bit in (1, 2))
    planes = np.split(thumbnails, PLANES[1:], axis=1)
    grids = (plane.reshape(len(plane), math.isqrt(plane.shape[1]), -1)[:, down, right] for plane in planes)
    return np.concatenate([grid.reshape(len(thumbnails), -1) for grid in grids], axis=1)


def copy(seed: int, index: int) -> UInt8[np.ndarray, "T 384"]:
    """Draw the thumbnails of the copy of a clip: cut by up to a fifth, blurred and noisy."""
    rng, base = np.random.default_rng([seed, 3, index]), _base(index)
    num_seconds = _length(seed, base)
    num_cut = rng.uniform(0, MAX_CUT) * num_seconds
    num_frames = int((num_seconds - num_cut) * FRAMES_PER_SECOND)
    seconds = rng.uniform(0, num_cut) + (np.arange(num_frames) + 0.5) / FRAMES_PER_SECOND
    planes = _scene(seed, base, seconds)
    planes[..., 1:-1, :] += BLUR * (planes[..., :-2, :] + planes[..., 2:, :] - 2 * planes[..., 1:-1, :])
    planes[..., 1:-1] += BLUR * (planes[..., :-2] + planes[..., 2:] - 2 * planes[..., 1:-1])
    noisy = planes + NOISE * rng.standard_normal(planes.shape, np.float32)
    return _mirrored(_thumbnails(noisy), index)


def _length(seed: int, index: int) -> float:
    return np.random.default_rng([seed, 2, index]).uniform(MIN_SECONDS, MAX_SECONDS)


def _scene(seed: int, index: int, seconds: Float64[np.ndarray, " T"]) -> Float32[np.ndarray, "3 T 16 16"]:
    """Return luma and chroma of a clip at some times. Clips of a family are drawn as in `dedup.frames_of`."""
    first, place = index - index % FAMILY, index % FAMILY
    of_texture = np.random.default_rng([seed, 0, first if place in (1, 2, 3) else index])
    of_things = np.random.default_rng([seed, 1, first if place == 4 else index])
    ground = texture(of_texture)
    pan = of_texture.uniform(-25, 25, 2) * of_texture.integers(2)
    planes = _panned(ground, pan, seconds)
    for _ in range(of_things.integers(1, 4)):
        thing = Thing.drawn(of_things)
        planes += thing.coverage(seconds.astype(np.float32)) * (
            thing.colour[:, None, None, None].astype(np.float32) - planes
        )
    return planes


def _panned(
    ground: Float32[np.ndarray, "3 32 32"], pan: Float64[np.ndarray, " 2"], seconds: Float64[np.ndarray, " T"]
) -> Float32[np.ndarray, "3 T 16 16"]:
    """Return the visible part of a texture at some times; `pan` in pixels per second."""
    if not pan.any():
        middle = ground[:, None, SIDE // 2 : -SIDE // 2, SIDE // 2 : -SIDE // 2]
        return middle.repeat(len(seconds), axis=1)
    corner = SIDE / 2 + (seconds[:, None] - MAX_SECONDS / 2) * pan / CELL_PX
    whole = np.floor(corner).astype(int)
    right, down = (corner - whole).astype(np.float32).T[:, :, None, None]
    columns, rows = (np.minimum(whole[:, place, None] + np.arange(SIDE + 1), 2 * SIDE - 1) for place in (0, 1))
    crop = ground[:, rows[:, :, None], columns[:, None, :]]
    crop = crop[..., :-1, :] + down * (crop[..., 1:, :] - crop[..., :-1, :])
    return crop[..., :-1] + right * (crop[..., 1:] - crop[..., :-1])


def _thumbnails(planes: Float32[np.ndarray, "3 T 16 16"]) -> UInt8[np.ndarray, "T 384"]:
    length = planes.shape[1]
    chroma = planes[1:].reshape(2, length, SIDE // 2, 2, SIDE // 2, 2).mean((3, 5)) + 128
    joined = np.concatenate([plane.reshape(length, -1) for plane in (planes[0], *chroma)], axis=1)
    return np.rint(joined).clip(0, 255).astype(np.uint8)
