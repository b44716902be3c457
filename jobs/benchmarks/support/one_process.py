"""A run in this process, without Ray: a world of size 1 that also decodes. For measurements and tests of the code
between a command and its losses."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch

from cluster import run as cluster_run
from cluster.ray_internals import SNAPSHOT
from cluster.run import Runtime
from cluster.world import World
from jobs.benchmarks.support.fixtures import manifest_row
from jobs.evaluation import scoring
from jobs.launch import driver
from jobs.run import run_files
from jobs.training.job import Job
from pipeline.corpus.manifest import make_manifest, write_manifest
from pipeline.decode.codec import encode_video
from pipeline.stream.loader import decode_share, segments


class OneProcess(Runtime):
    """Replaces the `Runtime` of a rank in this process. Checkpoints are committed as in Ray Train."""

    def __init__(self, job: Job) -> None:
        super().__init__(World(0, 1, torch.device("cpu")), upload=lambda folder, name: None)
        self.job = job

    def open(self, datasets: object) -> None:
        """Do nothing: there are no other ranks to wait for."""

    def tables(self, dataset: str, share: int) -> Iterator[pa.Table]:
        """Decode each step of a dataset on demand."""
        del share
        sources, num_steps = self.job.sources, self.job.optim.num_steps
        training = segments(sources["train"], num_steps, 1) if "train" in sources else []
        steps = {name: range(start, stop) for name, start, stop in training}
        first = run_files.committed_step(self.job.run_folder)
        if dataset in steps:
            yield from (decode_share(sources["train"], step, 0, 1) for step in steps[dataset] if step >= first)
        else:
            source = sources[dataset]
            yield from (decode_share(source, step, 0, 1) for step in range(source.num_evaluation_steps()))

    def report(self, score: float, step: int, write: Callable[[str], None] | None, probes: Mapping[str, float]) -> None:
        """Write a checkpoint to the run's folder and commit it."""
        assert write, "the only rank writes"
        name = f"checkpoint_{step:06}"
        os.makedirs(f"{self.job.run_folder}/{name}", exist_ok=True)
        write(f"{self.job.run_folder}/{name}")
        latest = {"checkpoint_dir_name": name, "metrics": {"score": score, "step": step, **probes}}
        snapshot = {"checkpoint_results": [latest], "latest_checkpoint_result": latest}
        run_files.write_json(f"{self.job.run_folder}/{SNAPSHOT}", snapshot)

    def is_preempted(self) -> bool:
        """Return False: this process is never preempted."""
        return False

    @contextlib.contextmanager
    def restored(self) -> Iterator[str | None]:
        """Yield the folder of the last committed checkpoint."""
        name = run_files.committed_checkpoint(self.job.run_folder)
        yield f"{self.job.run_folder}/{name}" if name else None


def run(function: Callable[[Any, Runtime], None], config: Any, **options: Any) -> None:
    """Replace `cluster.run.run`. Whatever would be sent to ranks is pickled too."""
    del options
    config = pickle.loads(pickle.dumps(config))
    function(config, OneProcess(getattr(config, "job", config)))


@contextlib.contextmanager
def in_one_process() -> Iterator[None]:
    """Make `driver.pretrain` and `scoring.evaluate` run in this process within the context."""
    with (
        mock.patch.object(cluster_run, "run", run),
        mock.patch.object(driver, "connected_ray", return_value=contextlib.nullcontext()),
        mock.patch.object(driver, "refuse_scattered_metrics", return_value=None),
        mock.patch.object(scoring, "connected_ray", return_value=contextlib.nullcontext()),
    ):
        yield


def make_clips(folder: Path) -> str:
    """Write a manifest of short videos of noise, six to train on, and return its path. Each evaluation split, val and
    test, has four clips of its own."""
    rows = []
    for number in range(14):
        split = "train" if number < 6 else ("val", "test")[number % 2]
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 4, 3), np.uint8)
        path = folder / f"{number}.mp4"
        path.write_bytes(encode_video(coarse.repeat(8, 1).repeat(8, 2), fps=8))
        rows.append(manifest_row("noise", path, f"the bright square number {number} moves", split))
    write_manifest(make_manifest("noise", str(folder), rows), manifest := str(folder / "manifest.parquet"))
    return manifest


def small_options(manifest: str, storage: Path, *, num_steps: int = 2) -> list[str]:
    """Return the command line of a run of a few seconds on `make_clips`, with the losses of `tiny`."""
    settings = {
        "name": "small",
        "data.manifest": manifest,
        "data.temporal-split": None,
        "data.num-frames": 2,
        "data.frame-size-px": 32,
        "data.decoder": "pyav",
        "text.vocabulary-size": 120,
        "model.hidden": 16,
        "model.num-layers": 1,
        "model.num-heads": 2,
        "model.feed-forward": 32,
        "objective.num-hard-negatives": 1,
        "optim.num-steps": num_steps,
        "optim.global-batch": 4,
        "optim.warmup-steps": 1,
        "selection.evaluate-every": num_steps,
        "placement.storage": storage,
        "placement.num-workers": 1,
    }
    return ["tiny", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]
