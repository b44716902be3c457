"""The source of a stream: which clips it reads, and how they are decoded."""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from pipeline.corpus.listing import Rows
from pipeline.corpus.manifest import open_manifest
from pipeline.decode.config import Limits, Sampling
from pipeline.records import Kind
from pipeline.stream.epoch_plan import Plan, PlannedStep, sequential

BLOCK_BYTES = 16 * 2**20
"""Bytes of pixels per block: several steps of small clips, since each block costs Ray Data some milliseconds."""


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Which clips are read, and how they are decoded: everything that a decode worker needs."""

    manifest_path: str
    split: str
    num_frames: int
    frame_size_px: int
    decoder: str
    seed: int
    plan: Plan | None
    """The order of training; None reads the split's videos once, in order of clip_id, with middle frames."""
    batch: int
    """Slots per step: the global batch."""

    max_clips: int | None = None
    """Evaluation reads at most this many clips, the first by clip_id."""
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    long_sides_px: tuple[int, ...] = ()
    """Training decodes each clip with one of these long sides, drawn anew in each epoch; none: `frame_size_px`."""
    caption_weights: tuple[str, ...] = ()
    """Weights `SOURCE=WEIGHT` (`config.caption_weights`) by which training draws a caption; none: uniformly."""
    patience_seconds: float = 0.0
    """How long a failing store is retried before a clip counts as unavailable."""
    failures: str = ""
    """Folder that records clips that fail to decode, so that none is decoded again; empty: none is recorded."""

    @property
    def clip_bytes(self) -> int:
        """Return the largest number of bytes of a clip's pixels."""
        return self.num_frames * self.frame_size_px**2 * 3

    def share(self, num_ranks: int) -> int:
        """Return the slots per step of one rank. If the ranks do not divide the batch, the last slots stay empty."""
        return -(-self.batch // num_ranks)

    def steps_per_block(self, num_ranks: int) -> int:
        """Return the number of steps of one rank that are decoded together."""
        return max(1, BLOCK_BYTES // (self.share(num_ranks) * self.clip_bytes))

    def first_step(self, group: int, num_ranks: int) -> int:
        """Return the first step of a rank's block `group`, relative to the start of the stream.

        Blocks have 1, 1, 2, 4 … steps, up to `steps_per_block`, so that training starts as soon as one step is decoded.
        The second block is as small, since Ray Data yields a block only when it has the next.
        """
        size = self.steps_per_block(num_ranks)
        num_grown = min(group, size.bit_length())
        return 2**num_grown // 2 + (group - num_grown) * size

    def num_groups(self, num_steps: int, num_ranks: int) -> int:
        """Return the number of blocks in which a rank's `num_steps` steps fit."""
        first_step = functools.partial(self.first_step, num_ranks=num_ranks)
        return bisect.bisect_left(range(num_steps + 1), num_steps, key=first_step)

    def steps_of_block(self, number: int, start_step: int, stop_step: int, num_ranks: int) -> tuple[range, int]:
        """Return the steps of a block, within [start, stop), and the rank whose shares it holds."""
        group, rank = divmod(number, num_ranks)
        first, after = (start_step + self.first_step(index, num_ranks) for index in (group, group + 1))
        return range(first, min(after, stop_step)), rank

    def planned(self, step: int) -> PlannedStep:
        """Return the rows of one step."""
        if self.plan is not None:
            return self.plan.step(step)
        return sequential(step, length=self.num_clips, batch=self.batch, kind=Kind.VIDEO)

    def clips(self, kind: Kind) -> Rows:
        """Return the clips of one kind in the split, by number."""
        return split_clips(self.manifest_path, self.split)[kind]

    @property
    def num_clips(self) -> int:
        """Return the number of videos that are read of an evaluation split."""
        num_videos = len(self.clips(Kind.VIDEO))
        return num_videos if self.max_clips is None else min(num_videos, self.max_clips)

    def rows(self) -> pa.Table:
        """Return the videos of an evaluation split, in order of clip_id."""
        return self.clips(Kind.VIDEO).range(0, self.num_clips)

    def groups(self, clip_ids: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Return a number per clip, equal for clips of one group; −1 for clips without a group."""
        rows = self.rows()
        names = dict(zip(rows["clip_id"].to_pylist(), rows["group"].to_pylist(), strict=True))
        known = {name: number for number, name in enumerate(sorted({name for name in names.values() if name}))}
        return np.array([known.get(names[clip_id], -1) for clip_id in clip_ids.tolist()], dtype=np.int64)

    def num_evaluation_steps(self) -> int:
        """Return the number of steps of one pass over an evaluation split."""
        return -(-self.num_clips // self.batch)


@functools.cache
def split_clips(manifest_path: str, split: str) -> dict[Kind, Rows]:
    """Return the clips of a split by kind; the manifest is opened once per process and split."""
    manifest = open_manifest(manifest_path)
    manifest.refuse_empty(split)
    return {kind: manifest.rows(split, kind) for kind in Kind}


def split_rows(manifest_path: str, split: str) -> dict[Kind, pa.Table]:
    """Return all rows of a split by kind, in memory, in order of clip_id."""
    return {kind: rows.range(0, len(rows)) for kind, rows in split_clips(manifest_path, split).items()}
