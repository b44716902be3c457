"""Draw the augmentation of clips on the host; transforms.py applies it on the device.

    (seed, epoch, clip_id) ──► crop, mirror, RandAugment ──► one affine map per clip, and colour changes

All frames of a clip are augmented alike, so no motion or flicker is added. Evaluation is deterministic: centre crop.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pipeline.records import ClipRows
from pipeline.stream.config import STRONGEST, AugmentationConfig, Operation
from pipeline.stream.randomness import Purpose, clip_rng

SIDED_WORD = re.compile(r"\b(left|right)|clockwise\b", re.IGNORECASE)
"""Matches words that become wrong when mirrored: those that begin with a side (leftmost, right-hand), and rotations."""

MAGNITUDE_STD = 0.5
"""Magnitudes are drawn around the configured one with this standard deviation."""


LARGEST_MOVE = {
    Operation.ROTATE: math.radians(30),
    Operation.SHEAR_X: 0.3,
    Operation.SHEAR_Y: 0.3,
    Operation.TRANSLATE_X: 0.45,
    Operation.TRANSLATE_Y: 0.45,
}
"""Operation → amount at strength 1: radians, or shares of the displayed part."""


@dataclass(frozen=True, kw_only=True)
class ColourChange:
    """A colour operation on the clips of a batch that drew it."""

    operation: Operation
    rows: Int64[Tensor, " n"]
    strengths: Float[Tensor, " n"]
    """From −1 to 1; operations without a direction use the absolute value."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How the `B` clips of a batch are shown."""

    size_px: int
    """Side of the square that the network sees."""
    maps: Float[Tensor, "B 2 3"]
    """From (x, y, 1) in that square to (x, y) in the decoded one; coordinates run from −1 to 1 between outer edges."""
    colour_changes: tuple[ColourChange, ...]
    """In the order of application."""


def draw_augmentation(
    rows: ClipRows, config: AugmentationConfig, *, seed: int, is_training: bool
) -> Augmentation | None:
    """Draw the augmentation of `rows`; None: none. A clip's depends only on (seed, epoch, clip_id) and its caption."""
    if config.crop_px is None and not (is_training and (config.flip_probability or config.num_operations)):
        return None
    is_real = ~rows.frame_pad_mask[:, 0]
    sizes = np.stack([is_real.any(1).sum(1), is_real.any(2).sum(1)], 1)
    square_px, maps = is_real.shape[1], []
    changes: dict[tuple[int, Operation], dict[int, float]] = defaultdict(dict)
    for row, clip_id in enumerate(rows.clip_ids.tolist()):
        rng = clip_rng(seed, rows.epoch, clip_id, Purpose.AUGMENTATION) if is_training else None
        crop = cut_out(config, sizes[row], rng) if config.crop_px else None
        is_mirrored, operations = False, []
        if rng is not None:
            is_mirrored = bool(rng.random() < config.flip_probability) and may_flip(rows.captions[row])
            operations = draw_operations(config, rng)
        maps.append(sampling_map(sizes[row], square_px, crop, is_mirrored, operations))
        for turn, (operation, strength) in enumerate(operations):
            if operation not in LARGEST_MOVE:
                changes[turn, operation][row] = strength
    return Augmentation(
        size_px=config.crop_px or square_px,
        maps=torch.from_numpy(np.stack(maps)).float(),
        colour_changes=tuple(
            ColourChange(operation=operation, rows=torch.tensor([*drawn]), strengths=torch.tensor([*drawn.values()]))
            for (_, operation), drawn in sorted(changes.items())
        ),
    )


def may_flip(caption: str) -> bool:
    """Return whether the caption still fits the mirrored clip: it names neither a side nor a sense of rotation.

    Known limits: English words only, and text in the picture is mirrored too.
    """
    return SIDED_WORD.search(caption) is None


def cut_out(
    config: AugmentationConfig, size: Int64[np.ndarray, " 2"], rng: np.random.Generator | None
) -> tuple[Float64[np.ndarray, " 2"], float]:
    """Draw centre (x, y) and side, in decoded pixels, of the displayed square of a clip of `size` (width, height)."""
    assert config.crop_px is not None
    assert config.short_side_px is not None
    lowest, highest = config.short_side_px
    short_px = lowest if rng is None else int(rng.integers(lowest, highest, endpoint=True))
    place = np.array([0.5, 0.5]) if rng is None else rng.random(2)
    side = float(size.min() * config.crop_px / short_px)
    return side / 2 + place * (size - side), side


def draw_operations(config: AugmentationConfig, rng: np.random.Generator) -> list[tuple[Operation, float]]:
    """Draw RandAugment's operations for a clip, with strengths from −1 to 1."""
    drawn = rng.permutation(len(Operation))[: config.num_operations]
    is_applied = rng.random(len(drawn)) < config.operation_probability
    magnitudes = rng.normal(config.magnitude, MAGNITUDE_STD, len(drawn)).clip(0, STRONGEST)
    strengths = magnitudes / STRONGEST * rng.choice([-1.0, 1.0], len(drawn))
    known = list(Operation)
    return [(known[number], float(strengths[turn])) for turn, number in enumerate(drawn) if is_applied[turn]]


def sampling_map(
    size: Int64[np.ndarray, " 2"],
    square_px: int,
    crop: tuple[Float64[np.ndarray, " 2"], float] | None,
    is_mirrored: bool,
    operations: list[tuple[Operation, float]],
) -> Float64[np.ndarray, "2 3"]:
    """Return the map from the displayed square to the decoded one, whose upper left corner holds a clip of `size`.

    Operations are about the centre of the displayed part: the crop, or the clip without its padding.
    """
    centre, shown = (size / 2, size.astype(float)) if crop is None else (crop[0], np.full(2, crop[1]))
    side = square_px if crop is None else crop[1]
    # each matrix acts on (x, y, 1) in decoded pixels around `centre`; the last one acts first
    result = _affine(shift=centre)
    for operation, strength in operations:
        if operation in LARGEST_MOVE:
            result = result @ _move(operation, strength * LARGEST_MOVE[operation], shown)
    result = result @ _affine([[-1.0 if is_mirrored else 1.0, 0.0], [0.0, 1.0]])
    result = result @ _affine([[side / 2, 0.0], [0.0, side / 2]], (side - shown) / 2)
    return (_affine([[2 / square_px, 0.0], [0.0, 2 / square_px]], [-1.0, -1.0]) @ result)[:2]


def _move(operation: Operation, amount: float, shown: Float64[np.ndarray, " 2"]) -> Float64[np.ndarray, "3 3"]:
    cosine, sine = math.cos(amount), math.sin(amount)
    match operation:
        case Operation.ROTATE:
            return _affine([[cosine, -sine], [sine, cosine]])
        case Operation.SHEAR_X:
            return _affine([[1.0, amount], [0.0, 1.0]])
        case Operation.SHEAR_Y:
            return _affine([[1.0, 0.0], [amount, 1.0]])
        case Operation.TRANSLATE_X:
            return _affine(shift=[amount * shown[0], 0.0])
        case _:
            return _affine(shift=[0.0, amount * shown[1]])


def _affine(
    linear: Sequence[Sequence[float]] = ((1.0, 0.0), (0.0, 1.0)),
    shift: Sequence[float] | Float64[np.ndarray, " 2"] = (0.0, 0.0),
) -> Float64[np.ndarray, "3 3"]:
    return np.array([[*linear[0], shift[0]], [*linear[1], shift[1]], [0.0, 0.0, 1.0]])
