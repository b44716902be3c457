"""Two ranks: which collectives a step makes, and that no rank waits for another's poll."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batches import MASK, part, random_batch, tiny_network
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.run import Runtime
from cluster.world import World, make_world
from jobs.run.config import OptimConfig, Placement, SelectionConfig
from jobs.training import requests
from jobs.training.requests import STOP_FILE, Requests, StopRequest
from jobs.training.step import Clock, TrainState, make_state, training_steps
from jobs.training.trainer import Trainer
from pipeline.stream.transforms import normalise
from snps3_model.config import ObjectiveConfig
from snps3_model.objective import Pretraining

NUM_STEPS, LOG_EVERY = 8, 4
LOGGED = {1, 4}
"""Steps whose log comes before the next step; the last one evaluates."""


class Collectives(TorchDispatchMode):
    """Counts collectives of either pass, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


class QuietRuntime(Runtime):
    def is_preempted(self) -> bool:
        return False


def new_state(world: World, dual_share: float = 0.0) -> TrainState:
    objective = ObjectiveConfig(num_hard_negatives=2, dual_share=dual_share)
    model = tiny_network(objective).model
    network = Pretraining(model, objective, world.gather, world.rank, mask_id=MASK).float()
    return make_state(network, world.wrap(network), OptimConfig(num_steps=NUM_STEPS, global_batch=8))


def bare_step(world: World) -> Counter[str]:
    """The collectives of the losses and of DDP."""
    state, batch = new_state(world), random_batch(4, seed=world.rank)
    for _ in range(3):  # DDP forms its buckets anew before the second
        with Collectives() as seen:
            torch.stack(list(state.wrapped(batch, normalise(batch.frames)).values())).sum().backward()
    return seen.counts


def loop(world: World, folder: str, poll_seconds: float) -> dict[int, Counter[str]]:
    """The collectives of each step of the train loop, and of what the loop does after the step before."""
    seen, by_step = Collectives(), {}

    def on_step(step: int, metrics: object, batch: object) -> None:
        by_step[step] = seen.counts.copy()
        seen.counts.clear()

    def log(meter: Any, metrics: Any, batch: Any, step: int, requests: Requests) -> None:
        requests.set_pace(world.highest(requests.microseconds_per_step(step))())

    state = new_state(world)
    rank = SimpleNamespace(
        job=SimpleNamespace(
            run_folder=folder,
            seed=0,
            optim=OptimConfig(num_steps=NUM_STEPS, global_batch=8),
            selection=SelectionConfig(evaluate_every=1000),
            placement=Placement(log_every=LOG_EVERY),
        ),
        clock=Clock(),
        runtime=QuietRuntime(world, lambda folder, name: None),
        world=world,
        batches=SimpleNamespace(training=lambda step: (random_batch(4, seed=world.rank) for _ in range(NUM_STEPS))),
        alive=lambda: None,
        on_step=on_step,
        wrapped=world.wrap,
        reporter=SimpleNamespace(log=log),
        in_precision=mock.MagicMock(),
        validate=lambda state, validation: True,
        save=lambda *arguments, **options: None,
    )
    with seen, mock.patch.object(requests, "POLL_SECONDS", poll_seconds):
        Trainer.train(rank, state, [])  # type: ignore[arg-type]
    return by_step


def trained_in_two_phases(world: World, dual_share: float = 0.4) -> tuple[dict[str, Any], Counter[str]]:
    """The weights after five steps, of which two have one loss, and the collectives of the last one."""
    optim = OptimConfig(num_steps=5, global_batch=8, warmup_steps=0, eps=1e-3)  # or rounding of gradients of 0 counts
    network = new_state(world, dual_share).network
    state = make_state(network, world.wrap(network), optim)
    count = 8 // world.size
    rows = range(world.rank * count, (world.rank + 1) * count)
    batches = (part(random_batch(8, seed=step), rows) for step in range(5))
    steps = training_steps(state, batches, optim, seed=0, rank=0, clock=Clock(), wrap=world.wrap)
    for _ in range(4):  # DDP forms its buckets anew before its second step
        next(steps)
    with Collectives() as seen:
        next(steps)
    return state.network.state_dict(), seen.counts


def polls(world: World, folder: str) -> list[StopRequest]:
    """What a rank is told that polls before the other one, and what both are told at their next poll."""
    poller, is_polled = Requests(folder, QuietRuntime(world, lambda folder, name: None), 0), Path(folder, "polled")
    Path(folder, STOP_FILE).touch()
    while not world.is_first and not is_polled.exists():
        time.sleep(0.01)
    answers = [poller.poll(1, may_wait=False)]
    if world.is_first:
        is_polled.touch()
    return [*answers, poller.poll(2, may_wait=False)]


def on_each_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = make_world("cpu")
    loops = {name: loop(world, folder, seconds) for name, seconds in (("rare", 3600.0), ("often", 0.0))}
    torch.save(
        {"bare": bare_step(world), **loops, "polls": polls(world, folder), "phases": trained_in_two_phases(world)},
        f"{folder}/{rank}.pt",
    )
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["jobs.training.trainer"])  # the slow imports, once for both
    mp.start_processes(on_each_rank, args=(str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_a_step_makes_the_collectives_of_its_losses_and_of_ddp_and_no_others(of_ranks: list[dict[str, Any]]) -> None:
    for rank in of_ranks:
        by_step, bare = rank["rare"], rank["bare"]
        assert bare["c10d::allgather_"] > 5
        quiet = [step for step in range(3, NUM_STEPS + 1) if step - 1 not in LOGGED]
        assert [by_step[step] for step in quiet] == [bare] * len(quiet)
        assert by_step[5] - bare == {"c10d::allreduce_": 2}  # a poll and the pace


def test_a_poll_between_logs_is_one_exchange_that_no_rank_waits_for(of_ranks: list[dict[str, Any]]) -> None:
    for rank in of_ranks:
        assert [rank["often"][step] - rank["bare"] for step in (4, 6, 7)] == [{"c10d::allreduce_": 1}] * 3
        assert rank["polls"] == [StopRequest.NONE, StopRequest.STOP]


def test_two_ranks_change_from_one_loss_to_all_as_one_process_does(of_ranks: list[dict[str, Any]]) -> None:
    alone, _ = trained_in_two_phases(World(0, 1, torch.device("cpu")))
    for rank in of_ranks:
        weights, collectives = rank["phases"]
        assert collectives == rank["bare"], "DDP of the first phase must not go on averaging"
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, alone[name], rtol=2e-3, atol=2e-5, msg=name)
    never, _ = trained_in_two_phases(World(0, 1, torch.device("cpu")), dual_share=0.0)
    assert max(float((never[name] - alone[name]).abs().max()) for name in never) > 2e-4
