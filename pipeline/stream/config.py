"""Settings of the order of clips and of augmentation. Imports nothing slow, since every command line reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

ANNOTATION = "annotation"
"""Source of captions without an entry in `caption_sources`."""
STRONGEST = 10.0
"""Upper end of RandAugment's magnitude scale."""


class Operation(StrEnum):
    """RandAugment's operations: those of colour first, then those that move pixels."""

    BRIGHTNESS = "brightness"
    CONTRAST = "contrast"
    SATURATION = "saturation"
    SHARPNESS = "sharpness"
    AUTO_CONTRAST = "auto_contrast"
    EQUALISE = "equalise"
    INVERT = "invert"
    POSTERISE = "posterise"
    SOLARISE = "solarise"
    ROTATE = "rotate"
    SHEAR_X = "shear_x"
    SHEAR_Y = "shear_y"
    TRANSLATE_X = "translate_x"
    TRANSLATE_Y = "translate_y"


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How clips are shown to the network while training; by default as they are decoded."""

    crop_px: int | None = None
    """Side of the square that is cut out: anywhere while training, from the centre in evaluation. None shows whole
    frames, padded to a square."""
    short_side_px: tuple[int, int] | None = None
    """Before a square is cut out, a clip is scaled to a short side drawn from this range, ends included; in evaluation
    to the first. It need not be the size of decoding: both scales are one interpolation."""
    long_sides_px: tuple[int, ...] = ()
    """Training decodes each clip with a long side drawn from these; () takes data.frame_size_px. For whole frames."""
    flip_probability: float = 0.0
    """Share of clips shown in a mirror, of those whose caption names no side."""
    num_operations: int = 0
    """RandAugment: number of distinct operations drawn for a clip."""
    operation_probability: float = 0.5
    """RandAugment: probability of applying each of them."""
    magnitude: float = 9.0
    """RandAugment: strength, from 0 to 10."""

    def __post_init__(self) -> None:
        if (self.crop_px is None) != (self.short_side_px is None):
            raise ValueError(
                "data.augmentation.crop_px and data.augmentation.short_side_px must be set both or neither, got "
                f"{self.crop_px} and {self.short_side_px}"
            )
        if self.crop_px is not None and self.short_side_px is not None:
            lowest, highest = self.short_side_px
            if not 1 <= self.crop_px <= lowest <= highest:
                raise ValueError(
                    "data.augmentation.short_side_px must be a range that begins at data.augmentation.crop_px or above "
                    f"it, since the square is cut out of the clip, got {self.short_side_px} for {self.crop_px}"
                )
            if self.long_sides_px:
                raise ValueError(
                    "data.augmentation.long_sides_px is for whole frames; set it to () or data.augmentation.crop_px to "
                    "None"
                )
        if min(self.long_sides_px, default=1) < 1:
            raise ValueError(f"data.augmentation.long_sides_px must be at least 1 each, got {self.long_sides_px}")
        for name in ("flip_probability", "operation_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.augmentation.{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.magnitude <= STRONGEST:
            raise ValueError(f"data.augmentation.magnitude must lie in [0, {STRONGEST:g}], got {self.magnitude}")
        if not 0 <= self.num_operations <= len(Operation):
            raise ValueError(
                f"data.augmentation.num_operations must lie in [0, {len(Operation)}], got {self.num_operations}"
            )


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """The order of steps of images and steps of videos; by default mixed, each clip once per epoch."""

    weights: tuple[int, int] | None = None
    """By turns: (steps of images, steps of videos) of each period. Each kind has epochs of its own, and an epoch of the
    run is then one of its videos."""
    image_epochs: int | None = None
    """In sequence: so many epochs of images, then epochs of videos to the end of the run; of no effect on a corpus of
    one kind."""

    def __post_init__(self) -> None:
        if self.weights is not None and self.image_epochs is not None:
            raise ValueError(
                f"data.mixing.weights={self.weights} (by turns) and data.mixing.image_epochs={self.image_epochs} (in "
                "sequence) exclude each other; set one of them to None"
            )
        if self.weights is not None and min(self.weights) < 1:
            raise ValueError(f"data.mixing.weights must be at least 1 each, got {self.weights}; None mixes all steps")
        if self.image_epochs is not None and self.image_epochs < 1:
            raise ValueError(f"data.mixing.image_epochs must be at least 1 or None, got {self.image_epochs}")


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """How far the clips of a step are spread over a manifest in parts, of which a process reads 1,024 rows at a time. A
    manifest in one file is permuted as a whole."""

    whole_up_to: int = 102_400
    """A kind with at most this many clips is permuted as a whole. Of a larger one, blocks of 1,024 clips are permuted,
    then the clips within windows of blocks."""
    window_blocks: int = 48
    """Blocks of a window, from which a step's clips are drawn. A process keeps 112 blocks: this window and the next."""

    def __post_init__(self) -> None:
        if self.whole_up_to < 1024:
            raise ValueError(f"data.order.whole_up_to must be at least 1024, a block, got {self.whole_up_to}")
        if self.window_blocks < 2:
            raise ValueError(f"data.order.window_blocks must be at least 2, got {self.window_blocks}")


def caption_weights(pairs: Sequence[str]) -> dict[str, float]:
    """Parse the `SOURCE=WEIGHT` pairs of data.caption_weights into source → weight. ValueError for malformed ones."""
    weights = {}
    for pair in pairs:
        source, _, text = pair.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not source or not 0 <= weight < math.inf or source in weights:
            raise ValueError(f"data.caption_weights are SOURCE=WEIGHT, each source once, from 0 on, got {pair!r}")
        weights[source] = weight
    if weights and not any(weights.values()):
        raise ValueError(f"data.caption_weights must have one above 0, got {' '.join(pairs)}")
    return weights
