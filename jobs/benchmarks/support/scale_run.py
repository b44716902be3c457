"""Measurements of `scale`, each in a separate process: a run up to its first batches, and rows of the plan.

python -m jobs.benchmarks.support.scale_run FUNCTION ARGUMENTS_AS_JSON
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from cluster.run import Runtime
from jobs.benchmarks.support.processes import private_and_shared_bytes
from jobs.launch import driver
from jobs.run.config import Placement, PretrainConfig, SelectionConfig, TextConfig
from jobs.run.presets import tiny
from jobs.training import trainer
from jobs.training.job import Job
from pipeline.corpus.part_rows import CACHE, PartRows
from pipeline.records import Batch, Kind
from pipeline.stream.config import OrderConfig
from pipeline.stream.epoch_plan import PADDING, Plan
from pipeline.stream.source import split_clips
from pipeline.text.significance import mine_significant_words
from pipeline.text.tokenizer import train_wordpiece

DECODER = "jobs.benchmarks.support.invented_video:InventedVideo"
NUM_STEPS = 150_000
"""Steps of the whole run, within an epoch of ten million clips; a measurement ends after `MEASURED_STEPS`."""
MEASURED_STEPS = 30
NAME = "scale"


def recorded_rank(job: Job, runtime: Runtime) -> None:
    """Train as a rank does, record the completion time of the first step, and request the end after some steps."""
    first: list[int] = []

    def record(step: int, metrics: dict[str, Tensor], batch: Batch) -> None:
        del metrics, batch
        if not first:
            first.append(step)
            facts = {"step": step, "time": time.time(), "pid": os.getpid()}
            Path(job.run_folder, f"first-{runtime.world.rank}.json").write_text(json.dumps(facts))
        if runtime.world.is_first and step == first[0] + MEASURED_STEPS:
            driver.request_stop(job.run_folder)

    trainer.pretrain_rank(job, runtime, on_step=record)


def config_of(manifest: str, storage: str) -> PretrainConfig:
    """Return a small run of two ranks on all clips of a manifest, with given vocabulary and words."""
    base = tiny()
    return dataclasses.replace(
        base,
        name=NAME,
        data=dataclasses.replace(
            base.data, manifest=manifest, temporal_split=None, num_frames=2, frame_size_px=32, decoder=DECODER
        ),
        text=TextConfig(
            vocabulary=f"{storage}/vocabulary", significant_words=f"{storage}/significant_words.json", lvwm_top_k=None
        ),
        optim=dataclasses.replace(base.optim, num_steps=NUM_STEPS),
        selection=SelectionConfig(evaluate_every=NUM_STEPS),
        placement=Placement(storage=storage, log_every=10),
    )


def write_words(manifest: str, storage: str) -> None:
    """Write the vocabulary and the significant words of the validation captions."""
    captions = [text for texts in split_clips(manifest, "val")[Kind.VIDEO].range(0, 1000)["captions"] for text in texts]
    captions = [text.as_py() for text in captions]
    tokenizer = train_wordpiece(captions, 1000)
    tokenizer.save(f"{storage}/vocabulary")
    mine_significant_words(captions, tokenizer.pieces).save(f"{storage}/significant_words.json")


def first_batch(manifest: str, storage: str) -> dict[str, Any]:
    """Run `pretrain` for some steps; return the seconds to the first step, and its number."""
    started = time.time()
    driver.pretrain(config_of(manifest, storage), on_rank=recorded_rank)
    firsts = [json.loads(path.read_text()) for path in Path(storage, NAME).glob("first-*.json")]
    return {
        "driver_pid": os.getpid(),
        "first_step": firsts[0]["step"],
        "seconds_to_first_batch": max(first["time"] for first in firsts) - started,
    }


def planned_rows(
    manifest: str, *, num_steps: int, batch: int, num_workers: int = 1, num_repeats: int = 1
) -> dict[str, Any]:
    """Look up the rows of the steps of one of `num_workers` decode workers, and those that it prefetches.

    `num_repeats`: how often the parts are listed, so that a few of them simulate a manifest of many more rows; without
    the last part, since only the others start and end at a block of the order.
    """
    clips = split_clips(manifest, "train")[Kind.VIDEO]
    if isinstance(clips, PartRows) and num_repeats > 1:
        clips = PartRows(clips.folder, clips.parts[:-1] * num_repeats, CACHE)
    order = OrderConfig() if clips.is_in_parts else None
    plan = Plan(seed=0, num_videos=len(clips), num_images=0, global_batch=batch, order=order)
    cpu, wall = time.process_time(), time.perf_counter()
    for step in range(0, num_steps * num_workers, num_workers):
        rows = plan.step(step).rows
        assert len(clips.take(rows[rows != PADDING]).to_pylist()) == (rows != PADDING).sum()
        later = plan.step_to_prefetch(step)
        if later:
            clips.prefetch(later.rows[later.rows != PADDING])
    num_rows, (private, shared) = num_steps * batch, private_and_shared_bytes()
    return {
        "num_rows": len(clips),
        "row_cpu_us": 1e6 * (time.process_time() - cpu) / num_rows,
        "row_us": 1e6 * (time.perf_counter() - wall) / num_rows,
        "row_bytes_read": CACHE.num_bytes_read / num_rows,
        "private_mib": private / 2**20,
        "shared_mib": shared / 2**20,
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
