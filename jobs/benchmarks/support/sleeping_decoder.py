"""Replacement for decoding in the measurement `control-plane`. It imports exactly what decoding imports."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.stream.loader import CLIP_SCHEMA, ClipSource


@dataclass(frozen=True, kw_only=True)
class Sleeping(ClipSource):
    """Clips that are not read: each takes `seconds_per_clip` and has the size of a real one."""

    seconds_per_clip: float


def sleep_block(numbers: pa.Table, *, source: Sleeping, start_step: int, stop_step: int, num_ranks: int) -> pa.Table:
    """Return a block like `loader.decode_block`, after the same time, with one picture in all clips."""
    steps, rank = source.steps_of_block(numbers["id"][0].as_py(), start_step, stop_step, num_ranks)
    share = source.share(num_ranks)
    slots = ((np.array(steps)[:, None] * num_ranks + rank) * share + np.arange(share)).ravel()
    time.sleep(len(slots) * source.seconds_per_clip)
    pixels = pa.scalar(picture(source.num_frames * source.frame_size_px**2 * 3), pa.large_binary())
    columns = {field.name: pa.nulls(len(slots), field.type) for field in CLIP_SCHEMA}
    columns |= {"slot": pa.array(slots), "frames": pa.repeat(pixels, len(slots))}
    return pa.table(columns, schema=CLIP_SCHEMA)


@functools.cache
def picture(num_bytes: int) -> bytes:
    """Return incompressible bytes."""
    return np.random.default_rng(0).bytes(num_bytes)
