"""Cost on the host per batch besides the step: `host-cost` of `python jobs/benchmark.py`.

    share of a step, as Ray Data hands it out ─► `RankBatches` ─► batch

The steps imitate those of a GPU: each holds the interpreter for short intervals, as launching kernels does, and sleeps
otherwise. The time of the loop beyond the steps is exposed cost. It runs in a separate process with the environment of
a rank.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.run import Runtime
from cluster.worker_environment import WORKER_ENVIRONMENT
from cluster.world import World
from jobs.benchmarks.support.fixtures import json_of_child
from jobs.run.config import PretrainConfig
from jobs.tasks.captions import CaptionTask
from jobs.tasks.text import TextProcessor
from jobs.training.batches import RankBatches
from jobs.training.job import Job
from jobs.training.step import Clock
from pipeline.stream.epoch_plan import Plan
from pipeline.stream.loader import CLIP_SCHEMA, ClipSource
from pipeline.text.significance import mine_significant_words
from pipeline.text.tokenizer import train_wordpiece

WORDS = (
    "a an the of on in with and at near young old woman man dog horse beach sunset city street traffic walking riding "
    "slow motion aerial view shot close up background water mountains people talking running cooking vegetables kitchen"
)
STEP_SECONDS, HELD_SECONDS, NUM_PIECES = 0.150, 0.060, 60


def host_cost(num_steps: int = 100, num_clips: int = 256, num_frames: int = 4, size_px: int = 224) -> dict[str, Any]:
    """Return the CPU seconds per batch, and the time of the loop beyond its steps as a share of a step."""
    sizes = (num_steps, num_clips, num_frames, size_px)
    return json_of_child(__name__, *sizes, environment=WORKER_ENVIRONMENT)


def measure(num_steps: int, num_clips: int, num_frames: int, size_px: int) -> dict[str, Any]:
    """Return the figures of `num_steps` steps after three warm-up steps."""
    alone = statistics.mean(stand_in() for _ in range(20))
    share = shares(num_clips, num_frames, size_px)
    batches = rank_batches(rank_job(share, num_frames, size_px), share, num_steps + 3)
    for _ in range(3):
        next(batches)
        stand_in()
    waits, steps, held = [], [], 0.0
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(num_steps):
        begun = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - begun)
        thread = time.thread_time()
        steps.append(stand_in())
        held += time.thread_time() - thread
    cpu, wall = time.process_time() - cpu - held, time.perf_counter() - start
    return {
        "seconds_per_batch": cpu / num_steps,
        "exposed_share": (wall / num_steps - alone) / STEP_SECONDS,
        "exposed_share_median": (statistics.median(map(sum, zip(waits, steps, strict=True))) - alone) / STEP_SECONDS,
        "wait_seconds": statistics.mean(waits),
        "step_seconds": statistics.mean(steps),
        "step_seconds_alone": alone,
    }


def stand_in() -> float:
    """Hold the interpreter and sleep alternately; return the seconds that this took."""
    start = time.perf_counter()
    for piece in range(NUM_PIECES):
        time.sleep(max(0.0, start + piece * STEP_SECONDS / NUM_PIECES - time.perf_counter()))
        stop = time.thread_time() + HELD_SECONDS / NUM_PIECES
        while time.thread_time() < stop:
            pass
    time.sleep(max(0.0, start + STEP_SECONDS - time.perf_counter()))
    return time.perf_counter() - start


def rank_job(share: pa.Table, num_frames: int, size_px: int, **sections: Any) -> Job:
    """Return the job of the only rank of a run whose every step is `share`; `sections` of its configuration."""
    config, num_clips = PretrainConfig(name="measured", **sections), len(share)
    source = ClipSource(
        manifest_path="",
        split="train",
        num_frames=num_frames,
        frame_size_px=size_px,
        decoder="pyav",
        seed=0,
        plan=Plan(seed=0, num_videos=10**6, num_images=0, global_batch=num_clips),
        batch=num_clips,
    )
    tokenizer = train_wordpiece(captions := share["caption"].to_pylist(), 1000)
    text = TextProcessor(
        tokenizer=tokenizer,
        table=mine_significant_words(captions, tokenizer.pieces),
        text=config.text,
        masking=config.masking,
        seed=0,
        length_groups=config.placement.length_groups,
    )
    return Job(
        name=config.name,
        seed=0,
        run_folder="",
        text=text,
        task=CaptionTask(objective=config.objective),
        model=config.model,
        sources={"train": source},
        data=config.data,
        optim=config.optim,
        selection=config.selection,
        placement=config.placement,
    )


def rank_batches(job: Job, share: pa.Table, num_steps: int) -> Iterator[Any]:
    """Return the training batches of the rank."""
    place, num_clips = CLIP_SCHEMA.get_field_index("slot"), len(share)
    slots = (np.arange(step * num_clips, (step + 1) * num_clips) for step in range(num_steps))
    tables = (share.set_column(place, "slot", pa.array(of_step)) for of_step in slots)
    runtime = Runtime(World(0, 1, torch.device("cpu")), lambda folder, name: None)
    return RankBatches(job, runtime, Clock()).read("train", tables, 0)


def shares(num_clips: int, num_frames: int, size_px: int) -> pa.Table:
    """Return a decoded share of a step: clips of noise with captions of 6 to 24 words."""
    rng, words = np.random.default_rng(0), WORDS.split()
    clip_bytes = num_frames * size_px**2 * 3
    stops = pa.py_buffer(np.arange(num_clips + 1) * clip_bytes)
    pixels = pa.py_buffer(rng.bytes(num_clips * clip_bytes))
    rows = [
        {
            "slot": row,
            "clip_id": int(rng.integers(2**62)),
            "weight": 1.0,
            "caption": " ".join(rng.choice(words, rng.integers(6, 25))),
            "num_frames": num_frames,
            "real_height": size_px,
            "real_width": size_px,
            "uri": f"{row}.mp4",
            "reason": "",
            "detail": "",
            "num_retries": 0,
        }
        for row in range(num_clips)
    ]
    place = CLIP_SCHEMA.get_field_index("frames")
    frames = pa.LargeBinaryArray.from_buffers(pa.large_binary(), num_clips, [None, stops, pixels])
    table = pa.Table.from_pylist(rows, schema=CLIP_SCHEMA.remove(place))
    return table.add_column(place, CLIP_SCHEMA.field(place), frames)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
