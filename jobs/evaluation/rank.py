"""The work of each rank of an evaluation: score its share of a split with the best weights of a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cluster.run import Runtime
from jobs.run import run_files
from jobs.training import checkpoints
from jobs.training.batches import RankBatches
from jobs.training.job import Job
from jobs.training.network import make_network
from jobs.training.precision import evaluation_autocast, set_float32_precision
from jobs.training.reporting import say, unique
from jobs.training.step import Clock
from pipeline import storage
from pipeline.corpus.ledger import write_ledger
from snps3_model.loading import load_earlier_run

REJECTED = "rejected.parquet"
"""Ledger beside a card, of the clips that could not be decoded."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The input of each rank, from the driver."""

    job: Job
    is_own_task: bool
    """Whether the run was trained for the scored task, so that its weights include the head."""
    out: str


def evaluate_rank(request: Request, runtime: Runtime) -> None:
    """Score this rank's share; the first rank writes the results of all ranks."""
    job, world, out = request.job, runtime.world, request.out
    batches = RankBatches(job, runtime, Clock())
    network, _ = make_network(job, world, is_new=False)
    path = run_files.best_weights(job.run_folder)
    weights = storage.read_bytes(path)
    if request.is_own_task:
        checkpoints.load_weights(weights, network, path)
    else:
        report = load_earlier_run(network.model, checkpoints.read_weights(weights, path), path)
        say(world, str(report))
    set_float32_precision(job.optim.precision)
    with evaluation_autocast(job.optim.precision, world.device):
        measured = job.task.score(batches.dataset("test", network), out)
    rejected = world.gather_objects(batches.rejected)
    if world.is_first:
        run_files.write_json(f"{out}/measured.json", dataclasses.asdict(measured))
        write_ledger(unique(rejected), f"{out}/{REJECTED}")
