"""The network of a rank, and the weights that a new run begins with."""

from __future__ import annotations

from cluster.world import World
from jobs.tasks.network import Network, NetworkOptions, build_model
from jobs.training.job import Job
from pipeline import storage
from snps3_model.loading import initialise
from snps3_model.visual_weights import load_visual_weights


def make_network(job: Job, world: World, *, is_new: bool) -> tuple[Network, list[str]]:
    """Return the network of the job's task on this rank's device. A new run loads the initial weights that its model
    config names; each weight file adds a line to the report."""
    model, reports = build_model(job.model, job.text.tokenizer), []
    if is_new:
        earlier = job.model.initial_weights
        content = storage.read_bytes(earlier) if earlier else None
        reports = [str(report) for report in initialise(model, job.model, content)]
        if path := job.model.visual.pretrained:
            reports.append(str(load_visual_weights(model.visual, path, storage)))
    options = NetworkOptions(
        gather=world.gather,
        rank=world.rank,
        mask_id=job.text.tokenizer.special.mask,
        rows_at_once=job.placement.rows_at_once,
    )
    return job.task.network(model, options).to(world.device), reports
