"""Measures of a clip's pixels for filtering a corpus: motion, blur, black, static, letterbox, text. Pure."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, UInt8

REC_601 = np.array([0.299, 0.587, 0.114], np.float32)
DARK = 32.0
"""Largest luma of a black pixel, of 255."""
BLACK_SHARE = 0.98
"""Smallest share of black pixels in a black frame."""
STATIC_CHANGE = 0.5
"""Mean change of luma, of 255, below which two frames count as equal."""
COARSE_PX = 32
"""Long side of the frames in which motion is measured, so that even fast motion is a step of few pixels."""
REBLUR_PX, MAX_BLUR_PX = 1.5, 16.0
EDGE_SHARE, MIN_SLOPE = 0.02, 1.0
"""Pixels that count as edges: the steepest share of them, and the smallest change of luma per pixel."""
LETTER_SLOPE, LETTER_PX = 20.0, 6
"""Change of luma from pixel to pixel at the edge of a letter's stroke, and the widest stroke or gap."""
LETTERS_PX, MIN_STROKES = (8, 16), 2.0
"""Height and width of a cell of the picture, and the mean number of stroke edges per row in a cell of text."""
STANDING_SHARE = 0.6
"""Smallest share of frames in which an edge must be at the same place to belong to text."""

Luma = Float32[np.ndarray, "T H W"]


def luma(frames: UInt8[np.ndarray, "T H W 3"]) -> Luma:
    """Convert RGB frames to luma in [0, 255]."""
    return frames.astype(np.float32) @ REC_601


def black(frames: Luma) -> float:
    """Return the share of black frames."""
    return float(((frames <= DARK).mean((1, 2)) >= BLACK_SHARE).mean())


def static(frames: Luma) -> float:
    """Return the share of frames that equal the frame before them; 0 for a single frame."""
    changes = np.abs(np.diff(frames, axis=0)).mean((1, 2))
    return float((changes < STATIC_CHANGE).mean()) if len(changes) else 0.0


def letterbox(frames: Luma) -> float:
    """Return the share of the picture in black bars at its edges, in all frames; 0 if everything is black."""
    brightest = frames.max(0)
    rows, columns = (np.flatnonzero(np.quantile(brightest, 0.98, axis=axis) > DARK) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return 0.0
    inside = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return 1 - float(inside) / brightest.size


def motion(frames: Luma, frames_per_second: float) -> float:
    """Return the mean speed of edges, in long sides per second.

    The temporal change divided by the spatial gradient is the displacement of an edge (the normal flow). Static edges
    count, too, so a small moving object counts little. 0 for a single frame.
    """
    if len(frames) < 2:
        return 0.0
    coarse = reduced(frames, COARSE_PX)
    middle = (coarse[1:] + coarse[:-1]) / 2
    down, across = np.gradient(middle, axis=(1, 2))
    way_px = np.abs(np.diff(coarse, axis=0)).sum() / max(float(np.hypot(down, across).sum()), 1e-6)
    return float(way_px) / max(coarse.shape[1:]) * frames_per_second


def reduced(frames: Luma, long_side_px: int) -> Float32[np.ndarray, "T h w"]:
    """Downscale frames to about `long_side_px` by block means."""
    step = max(1, round(max(frames.shape[1:]) / long_side_px))
    height, width = (length // step * step for length in frames.shape[1:])
    cut = frames[:, :height, :width].reshape(len(frames), height // step, step, width // step, step)
    return cut.mean((2, 4))


def blur(frames: Luma) -> float:
    """Return the blur of edges: the standard deviation, in pixels, of the Gaussian that blurs a sharp edge that much;
    the median over strong edges and over frames (Zhuo and Sim, 2011).

    Reblurred by a known Gaussian, a sharp edge loses much of its slope, a blurred one little. A picture without edges
    gets `MAX_BLUR_PX`.
    """
    return float(np.median([_edge_width_px(frame) for frame in frames]))


def _edge_width_px(frame: Float32[np.ndarray, "H W"]) -> float:
    (down, across), (less_down, less_across) = np.gradient(frame), np.gradient(blurred(frame, REBLUR_PX))
    slopes, flatter = np.hypot(down, across), np.hypot(less_down, less_across)
    min_slope = max(np.quantile(slopes, 1 - EDGE_SHARE), MIN_SLOPE)
    ratios = slopes[slopes >= min_slope] / np.maximum(flatter[slopes >= min_slope], 1e-6)
    lost = float(np.median(ratios)) ** 2 - 1 if len(ratios) else 0.0
    return min(MAX_BLUR_PX, REBLUR_PX / lost**0.5) if lost > 0 else MAX_BLUR_PX


def blurred(frame: Float32[np.ndarray, "H W"], deviation_px: float) -> Float32[np.ndarray, "H W"]:
    """Blur a picture by a Gaussian, with replicated borders."""
    reach = round(4 * deviation_px)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation_px) ** 2).astype(np.float32)
    for _ in range(2):
        padded = np.pad(frame, ((reach, reach), (0, 0)), mode="edge")
        parts = [weight * padded[k : k + len(frame)] for k, weight in enumerate(weights / weights.sum())]
        frame = np.sum(parts, axis=0).T
    return frame


def text(frames: Luma) -> float:
    """Return the share of the picture covered by text: cells where luma rises and falls every few pixels, at places
    that do not move. In a static picture, other fine patterns count, too.
    """
    slopes = np.diff(frames, axis=2)
    rises, falls = slopes > LETTER_SLOPE, slopes < -LETTER_SLOPE
    strokes = (rises & _soon(falls)) | (falls & _soon(rises))
    standing = strokes.mean(0) >= STANDING_SHARE
    rows, columns = (length // side for length, side in zip(standing.shape, LETTERS_PX, strict=True))
    if not rows or not columns:
        return 0.0
    cut = standing[: rows * LETTERS_PX[0], : columns * LETTERS_PX[1]]
    cells = cut.reshape(rows, LETTERS_PX[0], columns, LETTERS_PX[1]).sum((1, 3)) / LETTERS_PX[0]
    return float((cells >= MIN_STROKES).mean())


def _soon(edges: Bool[np.ndarray, "T H W"]) -> Bool[np.ndarray, "T H W"]:
    """Return where one of `edges` lies less than `LETTER_PX` pixels to the right."""
    soon = np.zeros_like(edges)
    for way in range(1, LETTER_PX):
        soon[..., :-way] |= edges[..., way:]
    return soon
