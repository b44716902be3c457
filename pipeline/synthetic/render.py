"""Render scenes to pixels: anti-aliased shapes on muted, textured backgrounds."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.synthetic.scenes import FRAME_UNITS, Background, Pose, Scene, Thing, poses, rest_pose, tau_at

_OVERSAMPLING = 4
RGB_BY_COLOUR = {
    "red": (222, 22, 28),
    "blue": (28, 62, 230),
    "yellow": (255, 226, 20),
    "green": (20, 160, 48),
    "white": (252, 252, 252),
    "purple": (138, 20, 178),
    "orange": (255, 128, 0),
    "black": (10, 10, 12),
    "pink": (255, 120, 190),
    "brown": (105, 58, 18),
}


def render_video(scene: Scene, *, num_frames: int, size_px: int) -> NDArray[np.uint8]:
    """Render frames (T, H, W, 3), uint8 RGB; frame `num_frames // 2` shows the middle state."""
    background = _draw_still(scene, size_px)
    over_time = [poses(scene, tau_at(frame, num_frames)) for frame in range(num_frames)]
    drawn = {posed: _draw(scene, posed, background) for posed in dict.fromkeys(over_time)}
    return np.stack([drawn[posed] for posed in over_time])


def render_image(scene: Scene, *, size_px: int) -> NDArray[np.uint8]:
    """Render the scene in its middle state, (H, W, 3) uint8 RGB."""
    return _draw(scene, poses(scene, 0.0), _draw_still(scene, size_px))


def draw_background(background: Background, size_px: int) -> NDArray[np.float32]:
    """Render a texture in two similar tones of low saturation with a little grain, (H, W, 3) float32 in [0, 255]."""
    rng = np.random.default_rng(background.seed)
    base = rng.uniform(105, 150) + rng.uniform(-12, 12, 3)
    contrast = rng.uniform(30, 42) * rng.choice([-1.0, 1.0])
    pattern = _pattern(background.texture, size_px, rng)
    grain = rng.normal(0.0, 30.0 if background.texture == "grainy" else 2.0, (size_px, size_px, 1))
    return (base + contrast * pattern[..., None] + grain).clip(50, 210).astype(np.float32)


def _pattern(texture: str, size_px: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the pattern of a texture, (H, W) in [-1, 1]."""
    period = rng.uniform(9.0, 13.0) * size_px / FRAME_UNITS
    offset_y, offset_x = rng.uniform(0, period, 2)
    angle = rng.uniform(-0.35, 0.35) + (math.pi / 2) * rng.integers(0, 2)
    y, x = np.mgrid[:size_px, :size_px] + 0.5
    wave_x, wave_y = np.sin(2 * math.pi * (x + offset_x) / period), np.sin(2 * math.pi * (y + offset_y) / period)
    match texture:
        case "striped":
            along = x * math.cos(angle) + y * math.sin(angle) + offset_x
            return np.clip(3 * np.sin(2 * math.pi * along / period), -1, 1)
        case "dotted":
            return np.clip(4 * (wave_x + wave_y - 1.0), -1, 1)
        case "checked":
            return np.clip(4 * wave_x * wave_y, -1, 1)
        case _:  # plain, grainy
            return np.zeros((size_px, size_px))


def _draw_still(scene: Scene, size_px: int) -> NDArray[np.float32]:
    """Render the background and the distractors in front of it, (H, W, 3) float32 in [0, 255]."""
    frame = draw_background(scene.background, size_px)
    for thing in scene.distractors:
        _paint(frame, thing, rest_pose(thing))
    return frame


def _draw(scene: Scene, posed: tuple[Pose, ...], behind: NDArray[np.float32]) -> NDArray[np.uint8]:
    frame = behind.copy()
    pairs = list(zip(scene.things, posed, strict=True))
    for thing, pose in reversed(pairs):  # the main thing in front
        if pose.visible:
            _paint(frame, thing, pose)
    return (frame + 0.5).astype(np.uint8)


def _paint(frame: NDArray[np.float32], thing: Thing, pose: Pose) -> None:
    top, left, alpha = _coverage(thing.shape, pose, len(frame))
    patch = frame[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    patch += alpha * (np.asarray(RGB_BY_COLOUR[thing.colour], np.float32) - patch)


def _coverage(shape: str, pose: Pose, size_px: int) -> tuple[int, int, NDArray[np.float32]]:
    """Return top and left of the patch that a shape covers, and its alpha in [0, 1], (h, w, 1)."""
    scale = size_px / FRAME_UNITS
    outlines = [
        ((outline * (pose.radius * pose.width, pose.radius) + (pose.x, pose.y)) * scale, fill)
        for outline, fill in _outlines(shape)
    ]
    corner = np.floor(np.min(outlines[0][0], axis=0)).clip(0, size_px)
    width, height = (np.ceil(np.max(outlines[0][0], axis=0)).clip(0, size_px) - corner).astype(int).tolist()
    left, top = corner.astype(int).tolist()
    if width <= 0 or height <= 0:
        return top, left, np.zeros((0, 0, 1), np.float32)
    canvas = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING), 0)
    pen = ImageDraw.Draw(canvas)
    for points, fill in outlines:
        pen.polygon(((points - corner) * _OVERSAMPLING - 0.5).ravel().tolist(), fill=fill)
    alpha = np.asarray(canvas.reduce(_OVERSAMPLING), np.float32)[..., None] / np.float32(255)
    return top, left, alpha


@lru_cache
def _outlines(shape: str) -> tuple[tuple[NDArray[np.float64], int], ...]:
    """Return the polygons (N, 2) of a shape of about unit radius, y downwards, with fill: 255 adds, 0 cuts out."""
    match shape:
        case "circle":
            return ((_circle(1.0), 255),)
        case "ring":
            return ((_circle(1.05), 255), (_circle(0.58), 0))
        case "moon":
            return ((_circle(1.05), 255), (_circle(0.85) + np.array((0.5, -0.15)), 0))
        case "square":
            return ((np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.9, 255),)
        case "triangle":
            return ((np.array([(0, -1.1), (1.15, 0.9), (-1.15, 0.9)]), 255),)
        case "star":
            angles = np.arange(10) * math.pi / 5 - math.pi / 2
            radii = np.where(np.arange(10) % 2 == 0, 1.25, 0.52)
            return ((np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1), 255),)
        case "cross":
            arm, half = 1.1, 0.36
            quarter = np.array([(half, -arm), (half, -half), (arm, -half)])
            turned = [quarter @ np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
            return ((np.concatenate(turned), 255),)
        case "heart":
            t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
            x = 16 * np.sin(t) ** 3
            y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
            return ((np.stack([x, y], 1) / 15, 255),)
    raise ValueError(f"no such shape: {shape!r}")


def _circle(radius: float) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)
