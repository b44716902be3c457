"""The step of v0.1.0's `tiny` in today's trainer and in that version's own: `tiny_speedup` of `step`.

Model, batch and losses are v0.1.0's; a step is all the work of a rank, from the decoded clips that Ray Data delivers to
the updated weights. The versions alternate, each in a separate process with the environment of a rank.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs import ROOT
from jobs.benchmarks.host_cost import rank_batches, rank_job, shares
from jobs.benchmarks.support.timed_steps import WARM_STEPS, timed
from jobs.run.config import OptimConfig
from jobs.tasks.network import NetworkOptions, build_model
from jobs.training.step import Clock, make_state, training_steps
from pipeline.text.config import MaskingConfig
from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig

NUM_CLIPS, NUM_FRAMES, SIZE_PX = 32, 4, 64
"""A rank's share of v0.1.0's `tiny`."""
EARLIER = Path(__file__).parent / "support" / "tiny_step_v0_1_0.py"


def tiny_speedup(earlier: str, num_steps: int = 12, num_rounds: int = 5) -> dict[str, Any]:
    """Return the speed-up of a step over the worktree `earlier` of v0.1.0: the median over rounds, in seconds and in
    CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/share.parquet"
        pq.write_table(shares(NUM_CLIPS, NUM_FRAMES, SIZE_PX), path)
        today, before = ("-m", "jobs.benchmarks.tiny_step"), (str(EARLIER),)
        rounds = [
            [child(command, tree, path, num_steps) for command, tree in ((before, earlier), (today, str(ROOT)))]
            for _ in range(num_rounds)
        ]
    ratios = {key: [of_before[key] / of_today[key] for of_before, of_today in rounds] for key in ("seconds", "cpu")}
    last_before, last_today = rounds[-1]
    return {
        "tiny_speedup": statistics.median(ratios["seconds"]),
        "tiny_speedup_cpu": statistics.median(ratios["cpu"]),
        "tiny_speedups": ratios["seconds"],
        "seconds_tiny": last_today["seconds"],
        "seconds_tiny_v0_1_0": last_before["seconds"],
        "loss_tiny": last_today["loss"],
        "loss_tiny_v0_1_0": last_before["loss"],
    }


def child(command: tuple[str, ...], tree: str, path: str, num_steps: int) -> dict[str, float]:
    """Return a version's measurement of its steps. Raise CalledProcessError with the output in a note if it fails."""
    variables = os.environ | {"PYTHONPATH": tree} | dict(WORKER_ENVIRONMENT)
    arguments = [sys.executable, *command, path, str(num_steps)]
    try:
        process = subprocess.run(arguments, check=True, cwd=tree, env=variables, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr[-3000:])
        raise
    return json.loads(process.stdout.splitlines()[-1])


def measure(path: str, num_steps: int) -> dict[str, float]:
    """Return the figures of today's trainer."""
    share = pq.read_table(path)
    model = ModelConfig(
        visual=VisualConfig(channels=(24, 48, 96, 96)),
        hidden=96,
        num_layers=2,
        num_heads=4,
        feed_forward=384,
        max_positions=32,
        dropout=0.0,
        initial_std=0.1,
    )
    objective = ObjectiveConfig(
        masked_words_text=0.3, masked_words_cross=0.3, num_hard_negatives=2, negative_spread=2.0
    )
    job = rank_job(
        share,
        NUM_FRAMES,
        SIZE_PX,
        model=model,
        masking=MaskingConfig(top_k=None),
        objective=objective,
        optim=OptimConfig(num_steps=num_steps + WARM_STEPS, global_batch=64, lr=2e-3, warmup_steps=50),
    )
    torch.manual_seed(0)
    options = NetworkOptions(mask_id=job.text.tokenizer.special.mask)
    network = job.task.network(build_model(model, job.text.tokenizer), options)
    state, batches = make_state(network, network, job.optim), rank_batches(job, share, num_steps + WARM_STEPS)
    return timed(training_steps(state, batches, job.optim, seed=0, rank=0, clock=Clock()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
