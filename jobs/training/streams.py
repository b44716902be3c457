"""What each dataset of a run holds, for as many ranks as a worker group has. Imported where datasets are built."""

from __future__ import annotations

import ray.data

from jobs.run import run_files
from pipeline.stream.loader import ClipSource, clip_stream


def training_stream(source: ClipSource, run_folder: str, start: int, stop: int, num_ranks: int) -> ray.data.Dataset:
    """The steps [start, stop) that are not yet committed; one step if all are, which nobody then asks for."""
    first = min(max(start, run_files.committed_step(run_folder)), stop - 1)
    return clip_stream(source, start_step=first, stop_step=stop, num_ranks=num_ranks)


def evaluation_stream(source: ClipSource, num_ranks: int) -> ray.data.Dataset:
    """One pass over an evaluation split."""
    return clip_stream(source, start_step=0, stop_step=source.num_evaluation_steps(), num_ranks=num_ranks)
