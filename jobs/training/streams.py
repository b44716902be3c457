"""Builders of a run's datasets. Ray calls them in a separate process, so nothing here imports torch."""

from __future__ import annotations

import ray.data

from jobs.run import run_files
from pipeline.stream.loader import clip_stream
from pipeline.stream.source import ClipSource


def training_stream(source: ClipSource, run_folder: str, start: int, stop: int, num_ranks: int) -> ray.data.Dataset:
    """Return the uncommitted steps of [start, stop). If all are committed, return the last one, which no rank reads."""
    first = min(max(start, run_files.committed_step(run_folder)), stop - 1)
    return clip_stream(source, start_step=first, stop_step=stop, num_ranks=num_ranks)


def evaluation_stream(source: ClipSource, num_ranks: int) -> ray.data.Dataset:
    """Return one pass over an evaluation split."""
    return clip_stream(source, start_step=0, stop_step=source.num_evaluation_steps(), num_ranks=num_ranks)
