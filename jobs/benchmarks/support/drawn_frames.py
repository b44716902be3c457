"""Frames that show their own number and known colours, so that decoded frames can be identified.

Four rows of eight cells: the number's bits in black and white, the inverted bits, eight colours, and a wave that moves
from frame to frame. No rotation or flip of a frame equals another frame.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

NUM_BITS = 8
BLACK, WHITE = 35, 220
COLOURS = np.array(
    [[200, 40, 40], [40, 170, 50], [50, 60, 200], [40, 180, 180], [180, 50, 170], [200, 190, 50], [128] * 3, [60] * 3]
)
"""RGB of the cells of the third row: none at the limits of an encoder's range."""


def drawn_frames(num_frames: int, width: int, height: int) -> UInt8[np.ndarray, "T H W 3"]:
    """Draw the frames 0 to `num_frames` - 1; at most 256 are distinct."""
    column, row = np.arange(width) * NUM_BITS // width, np.arange(height) * 4 // height
    number = np.arange(num_frames)[:, None]
    bits = np.where(number >> (NUM_BITS - 1 - column) & 1, WHITE, BLACK)[..., None].repeat(3, 2)
    phase = (np.arange(width) / width * 2)[:, None] + np.arange(3) / 3
    wave = 128 + 80 * np.sin(2 * np.pi * (phase + number[..., None] / 9))
    colours = np.broadcast_to(COLOURS[column], wave.shape)
    return np.stack([bits, BLACK + WHITE - bits, colours, wave.round()], axis=1).astype(np.uint8)[:, row]


def read_number(frame: UInt8[np.ndarray, "H W 3"]) -> int | None:
    """Return the number that a frame of any size shows, or None."""
    upper, lower = (_cells(frame, row).mean(axis=1) for row in (0, 1))
    if np.abs(upper - lower).min() < 25:
        return None
    return int("".join("1" if bit else "0" for bit in upper > lower), 2)


def colour_error(frame: UInt8[np.ndarray, "H W 3"]) -> float:
    """Return the largest difference, in 0–255, between a cell of the third row and its drawn colour."""
    return float(np.abs(_cells(frame, 2) - COLOURS).max())


def _cells(frame: np.ndarray, row: int) -> np.ndarray:
    """Return the mean colours (8, 3) of the centres of the cells in a row."""
    height, width = frame.shape[:2]
    top, bottom = int((row + 0.35) * height / 4), max(1, int((row + 0.65) * height / 4))
    edges = [(int((cell + 0.35) * width / NUM_BITS), int((cell + 0.65) * width / NUM_BITS)) for cell in range(NUM_BITS)]
    rows = frame[top : max(bottom, top + 1)]
    return np.stack([rows[:, left : max(right, left + 1)].mean(axis=(0, 1)) for left, right in edges])
