"""The plan of an epoch: the clip of each slot of each step. Pure, and never materialised.

    (seed, number of clips, global batch) ── step ──► epoch, kind, global_batch rows of the manifest (−1: padding)

The order is a keyed permutation that is evaluated at single positions, so a worker derives the rows of its steps at a
cost independent of the number of clips. Global batches do not depend on the number of workers. In a large corpus in
parts, consecutive steps draw from few blocks of the manifest (`OrderConfig`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from pipeline.records import Kind
from pipeline.stream.config import MixingConfig, OrderConfig
from pipeline.stream.permutation import BLOCK_CLIPS, permute, permute_in_windows

PADDING = -1
"""Row of a slot without a clip, at the end of an epoch."""


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One step of the plan."""

    step: int
    epoch: int
    """Epoch of the clips of `kind`, in which each is shown at most once."""
    kind: Kind
    rows: Int64[np.ndarray, " global_batch"]
    """Row of each slot's clip among the clips of `kind` in order of clip_id, or `PADDING`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every epoch trains on each clip exactly once; images and videos have separate steps."""

    seed: int
    num_videos: int
    num_images: int
    global_batch: int
    mixing: MixingConfig = field(default_factory=MixingConfig)
    """A corpus of one kind has no images to put first, so there `image_epochs` counts as None."""
    order: OrderConfig | None = None
    """Order for a corpus in parts; None permutes the clips of each kind as a whole, whatever their number."""

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise ValueError(f"optim.global_batch must be at least 1, got {self.global_batch}")
        if self.num_videos + self.num_images < 1:
            raise ValueError("a plan needs at least one clip; the training split is empty")
        if self.num_videos and self.num_images:
            return
        if self.mixing.weights is not None:
            raise ValueError(
                f"data.mixing.weights={self.mixing.weights} needs images and videos, but the training split has "
                f"{self.num_images} images and {self.num_videos} videos; set it to None"
            )
        object.__setattr__(self, "mixing", MixingConfig())

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
        """Return the first step of `epoch` of the run, which equals the number of steps of the epochs before it."""
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
        return self._planned(step, *self._place(step))

    def step_to_prefetch(self, step: int) -> PlannedStep | None:
        """Return the step of the same kind one window of blocks later, whose rows should be prefetched now; None if
        clips are permuted as a whole."""
        kind, epoch, position = self._place(step)
        if self.order is None or not self._is_windowed(kind):
            return None
        later = position + -(-self.order.window_blocks * BLOCK_CLIPS // self.global_batch)
        return self._planned(step, kind, epoch + later // self.num_steps(kind), later % self.num_steps(kind))

    def _planned(self, step: int, kind: Kind, epoch: int, position: int) -> PlannedStep:
        length = self.num_clips(kind)
        slots = position * self.global_batch + np.arange(self.global_batch, dtype=np.int64)
        rows = np.full(self.global_batch, PADDING, dtype=np.int64)
        is_real, key = slots < length, (self.seed, epoch, 1 + (kind == Kind.IMAGE))
        if self.order is not None and self._is_windowed(kind):
            window_blocks = self.order.window_blocks
            rows[is_real] = permute_in_windows(slots[is_real], length, window_blocks=window_blocks, key=key)
        else:
            rows[is_real] = permute(slots[is_real], length, key=key)
        return PlannedStep(step=step, epoch=epoch, kind=kind, rows=rows)

    def _is_windowed(self, *kinds: Kind) -> bool:
        """Return whether any of `kinds` has too many clips to be permuted as a whole."""
        return self.order is not None and any(self.num_clips(kind) > self.order.whole_up_to for kind in kinds)

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
        if self._is_windowed(*Kind):  # shuffled steps would each need another window
            earlier = position * self.num_steps(Kind.IMAGE) // self.steps_per_epoch
            is_image = (position + 1) * self.num_steps(Kind.IMAGE) // self.steps_per_epoch > earlier
            return (Kind.IMAGE, epoch, earlier) if is_image else (Kind.VIDEO, epoch, position - earlier)
        drawn = int(permute(np.array([position]), self.steps_per_epoch, key=(self.seed, epoch, 0))[0])
        num_video_steps = self.num_steps(Kind.VIDEO)
        return (Kind.VIDEO, epoch, drawn) if drawn < num_video_steps else (Kind.IMAGE, epoch, drawn - num_video_steps)


def sequential(step: int, *, length: int, batch: int, kind: Kind) -> PlannedStep:
    """Return step `step` of one pass over `length` clips in order of clip_id, as evaluation reads them."""
    slots = step * batch + np.arange(batch, dtype=np.int64)
    return PlannedStep(step=step, epoch=0, kind=kind, rows=np.where(slots < length, slots, PADDING))
