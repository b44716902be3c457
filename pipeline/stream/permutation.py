"""Stateless keyed permutations of [0, length), evaluated only at the requested positions.

`permute` scatters neighbouring positions anywhere. `permute_in_windows` keeps them in few blocks of contiguous rows:

    blocks of rows ──permuted──► windows of some blocks ──rows of each window permuted──► positions
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

NUM_ROUNDS = 6
BLOCK_CLIPS = 1024
"""Rows of a block: those of a row group of a manifest in parts."""
_BLOCKS, _TAIL, _ROWS = range(3)
"""Sub-keys for the random choices of `permute_in_windows`."""


def permute(positions: Int64[np.ndarray, " n"], length: int, *, key: tuple[int, ...]) -> Int64[np.ndarray, " n"]:
    """Permute `positions` in [0, length) by the permutation that `key` selects.

    A Feistel network over the next power of four, repeated until it lands inside (cycle walking), so that memory and
    time do not depend on `length`.
    """
    half_bits = max(1, ((max(length, 2) - 1).bit_length() + 1) // 2)
    round_keys = _mix(np.arange(1, NUM_ROUNDS + 1, dtype=np.uint64) ^ _fold(key))
    moved = _feistel(positions.astype(np.uint64), half_bits, round_keys)
    while (outside := moved >= length).any():
        moved[outside] = _feistel(moved[outside], half_bits, round_keys)
    return moved.astype(np.int64)


def permute_in_windows(
    positions: Int64[np.ndarray, " n"], length: int, *, window_blocks: int, key: tuple[int, ...]
) -> Int64[np.ndarray, " n"]:
    """Permute `positions` in [0, length), at least one block, so that the positions of a window map to at most
    `window_blocks` blocks, which may be anywhere.

    `key` selects the blocks of each window and the order of the rows in it. All windows have the same size, up to one
    block, except that one of them also holds the rows after the last whole block.
    """
    num_blocks, num_tail_rows = divmod(length, BLOCK_CLIPS)
    num_windows = -(-num_blocks // window_blocks)
    holder = int(permute(np.zeros(1, np.int64), num_windows, key=(*key, _TAIL))[0])
    rows = np.empty_like(positions)
    windows = _windows_of(positions, num_blocks, num_windows, holder, num_tail_rows)
    for window in np.unique(windows).tolist():
        is_here = windows == window
        first, after = (number * num_blocks // num_windows for number in (window, window + 1))
        start = first * BLOCK_CLIPS + (num_tail_rows if window > holder else 0)
        size = (after - first) * BLOCK_CLIPS + (num_tail_rows if window == holder else 0)
        place, inside = np.divmod(permute(positions[is_here] - start, size, key=(*key, _ROWS, window)), BLOCK_CLIPS)
        blocks = permute(np.arange(first, after), num_blocks, key=(*key, _BLOCKS))
        rows[is_here] = np.append(blocks, num_blocks)[place] * BLOCK_CLIPS + inside
    return rows


def _windows_of(
    positions: Int64[np.ndarray, " n"], num_blocks: int, num_windows: int, holder: int, num_tail_rows: int
) -> Int64[np.ndarray, " n"]:
    """Return the window of each position; window w begins with block w · num_blocks // num_windows."""
    first, after = (number * num_blocks // num_windows * BLOCK_CLIPS for number in (holder, holder + 1))
    is_held = (positions >= first) & (positions < after + num_tail_rows)
    blocks = np.where(positions < first, positions, positions - num_tail_rows) // BLOCK_CLIPS
    return np.where(is_held, holder, ((blocks + 1) * num_windows - 1) // num_blocks)


def _feistel(values: np.ndarray, half_bits: int, round_keys: np.ndarray) -> np.ndarray:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << shift) | right


def _fold(key: tuple[int, ...]) -> np.uint64:
    folded = np.zeros(1, dtype=np.uint64)
    for number in key:
        folded = _mix(folded ^ np.array([number & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    return folded[0]


def _mix(values: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finaliser: every input bit affects every output bit."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
