"""The plan of an epoch: the clip of each slot of each step. Pure, and never held as a list.

    (seed, number of clips, global batch) ── step ──► epoch, kind, global_batch rows of the manifest (−1: padding)

The order is a keyed permutation, evaluated for one position without the others, so that a worker derives the rows of
its steps whatever the number of clips. Global batches do not depend on the number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from pipeline.records import Kind
from pipeline.stream.config import MixingConfig

PADDING = -1
"""The row of a slot without a clip: the tail of an epoch."""
NUM_ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One step of the plan."""

    step: int
    epoch: int
    """Of the clips of `kind`; each is shown at most once in it."""
    kind: Kind
    rows: Int64[np.ndarray, " global_batch"]
    """Row of each slot's clip among the clips of `kind` in order of clip_id, or `PADDING`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every epoch trains on each clip exactly once; images and videos have steps of their own."""

    seed: int
    num_videos: int
    num_images: int
    global_batch: int
    mixing: MixingConfig = field(default_factory=MixingConfig)

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise ValueError(f"optim.global_batch must be at least 1, got {self.global_batch}")
        if self.num_videos + self.num_images < 1:
            raise ValueError("a plan needs at least one clip; the training split is empty")
        if self.mixing != MixingConfig() and not (self.num_videos and self.num_images):
            raise ValueError(
                f"data.mixing needs images and videos, but the training split has {self.num_images} images and "
                f"{self.num_videos} videos; leave its fields None"
            )

    def num_clips(self, kind: Kind) -> int:
        """Return the number of clips of `kind`."""
        return self.num_videos if kind == Kind.VIDEO else self.num_images

    def num_steps(self, kind: Kind) -> int:
        """Return the number of steps in which every clip of `kind` is seen once."""
        return -(-self.num_clips(kind) // self.global_batch)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps in which every clip is seen once, if kinds are mixed."""
        return self.num_steps(Kind.VIDEO) + self.num_steps(Kind.IMAGE)

    def first_step(self, epoch: int) -> int:
        """Return the first step of `epoch` of the run, which is the number of steps of `epoch` epochs."""
        if self.mixing.weights is not None:
            of_images, of_videos = self.mixing.weights
            earlier = epoch * self.num_steps(Kind.VIDEO)
            return max(0, (earlier - 1) * (of_images + of_videos) // of_videos + 1)
        if self.mixing.image_epochs is not None:
            of_images = min(epoch, self.mixing.image_epochs)
            return of_images * self.num_steps(Kind.IMAGE) + (epoch - of_images) * self.num_steps(Kind.VIDEO)
        return epoch * self.steps_per_epoch

    def step(self, step: int) -> PlannedStep:
        """Return the plan of global step `step`, counted from 0."""
        kind, epoch, position = self._place(step)
        length = self.num_clips(kind)
        slots = position * self.global_batch + np.arange(self.global_batch, dtype=np.int64)
        rows = np.full(self.global_batch, PADDING, dtype=np.int64)
        is_real = slots < length
        rows[is_real] = permute(slots[is_real], length, key=(self.seed, epoch, 1 + (kind == Kind.IMAGE)))
        return PlannedStep(step=step, epoch=epoch, kind=kind, rows=rows)

    def _place(self, step: int) -> tuple[Kind, int, int]:
        """Return the kind of `step`, its epoch, and its place among the steps of its kind in that epoch."""
        if self.mixing.weights is not None:
            of_images, period = self.mixing.weights[0], sum(self.mixing.weights)
            earlier = step * of_images // period
            is_image = (step + 1) * of_images // period > earlier
            kind, index = (Kind.IMAGE, earlier) if is_image else (Kind.VIDEO, step - earlier)
            return kind, *divmod(index, self.num_steps(kind))
        if self.mixing.image_epochs is not None:
            if step < (start := self.first_step(self.mixing.image_epochs)):
                return Kind.IMAGE, *divmod(step, self.num_steps(Kind.IMAGE))
            epoch, position = divmod(step - start, self.num_steps(Kind.VIDEO))
            return Kind.VIDEO, self.mixing.image_epochs + epoch, position
        epoch, position = divmod(step, self.steps_per_epoch)
        drawn = int(permute(np.array([position]), self.steps_per_epoch, key=(self.seed, epoch, 0))[0])
        num_video_steps = self.num_steps(Kind.VIDEO)
        return (Kind.VIDEO, epoch, drawn) if drawn < num_video_steps else (Kind.IMAGE, epoch, drawn - num_video_steps)


def sequential(step: int, *, length: int, batch: int, kind: Kind) -> PlannedStep:
    """Return step `step` of one pass over `length` clips in order of clip_id, as evaluation reads them."""
    slots = step * batch + np.arange(batch, dtype=np.int64)
    return PlannedStep(step=step, epoch=0, kind=kind, rows=np.where(slots < length, slots, PADDING))


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
    """SplitMix64's finaliser: every input bit moves every output bit."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
