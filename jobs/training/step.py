"""Optimizer steps: the state of a run, one step, and the loop over batches in the order of the plan."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cluster.run import Runtime
from jobs.run import run_files
from jobs.run.config import OptimConfig
from jobs.tasks.network import Network
from jobs.training import checkpoints
from jobs.training.checkpoints import Progress
from jobs.training.ema import WeightAverage
from jobs.training.optimizer import make_optimizer, set_rates
from pipeline.records import Batch
from pipeline.stream.transforms import normalise


@dataclass(kw_only=True)
class TrainState:
    """Everything a resumed run needs, and nothing else."""

    network: Network
    wrapped: nn.Module
    """`network`, with gradients averaged over the ranks (DDP)."""
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
    """Moving average of the weights, with `optim.average_decay`."""
    progress: Progress = field(default_factory=Progress)


def make_state(
    network: Network, wrapped: nn.Module, config: OptimConfig, pretrained: tuple[str, ...] = ()
) -> TrainState:
    """Return the state before the first step. `pretrained`: names of the parts with separate learning rates."""
    return TrainState(
        network=network,
        wrapped=wrapped,
        optimizer=make_optimizer(network.named_parameters(), config, pretrained),
        average=WeightAverage(network, config.average_decay) if config.average_decay else None,
    )


def train_step(state: TrainState, batch: Batch, optim: OptimConfig, *, seed: int, rank: int) -> dict[str, Tensor]:
    """Do one optimizer step and return detached scalars, without waiting for the device. Its random numbers depend only
    on (seed, step, rank)."""
    torch.manual_seed(hash((seed, state.progress.step, rank)) & 0xFFFFFFFF)
    set_rates(state.optimizer, state.progress.step, optim)
    with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=optim.precision == "bf16"):
        losses = state.wrapped(batch, normalise(batch.frames))
        weights = state.network.weights
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    total.backward()
    grad_norm = nn.utils.clip_grad_norm_(state.network.parameters(), optim.max_grad_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.progress.step += 1
    if state.average:
        state.average.update(state.network, state.progress.step)
    named = {f"loss/{name}": loss.detach() for name, loss in losses.items()}
    return {"loss/total": total.detach(), "grad_norm": grad_norm.detach()} | named


def training_steps(
    state: TrainState,
    batches: Iterator[Batch],
    optim: OptimConfig,
    *,
    seed: int,
    rank: int,
    clock: Clock,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> Iterator[tuple[dict[str, Tensor], Batch]]:
    """Yield the metrics and the batch of each step until the run's last one.

    `wrap` returns the network with gradients averaged over the ranks; the default fits a single rank. It is called
    again when the set of losses changes, because DDP waits for the gradients of the losses it was built with.
    """
    state.wrapped.train()
    while state.progress.step < optim.num_steps:
        if choose_losses(state, optim):
            state.wrapped = wrap(state.network).train()
        with clock("data_wait"):
            batch = next(batches)
        with clock("step"):
            metrics = train_step(state, batch, optim, seed=seed, rank=rank)
        yield metrics, batch
        state.wrapped.train()


def choose_losses(state: TrainState, optim: OptimConfig) -> bool:
    """Choose the losses of the next step and return whether the set changed. Most tasks keep one set for all steps."""
    choose = getattr(state.network, "choose_losses", None)
    return bool(choose and choose(state.progress.step, optim.num_steps))


class RunError(RuntimeError):
    """An error that ends a run: a restart from the last checkpoint would only repeat it."""


class DivergedError(RunError):
    """The loss, or a part of it, is not finite."""


def non_finite(metrics: dict[str, float]) -> list[str]:
    """Return the names of the metrics that are not finite."""
    return sorted(name for name, value in metrics.items() if not math.isfinite(value))


def non_finite_error(wrong: list[str], step: int, clip_ids: list[int], run_folder: str) -> DivergedError:
    """Return an error that names the metrics, the step, the clips of its batch, and the last good checkpoint."""
    last = run_files.committed_checkpoint(run_folder) or "none yet"
    return DivergedError(
        f"{', '.join(wrong)} not finite at step {step}; clips of the batch: {clip_ids}; last good checkpoint: {last}. "
        "Lower optim.lr or look at these clips"
    )


def save_checkpoint(state: TrainState, runtime: Runtime, probes: Mapping[str, float], config_json: bytes = b"") -> None:
    """Commit a checkpoint: the first rank writes it, and all ranks must call this. `probes`: metrics of this step."""
    progress = state.progress
    score = progress.score if math.isfinite(progress.score) else -1.0

    def write(folder: str) -> None:
        checkpoints.save(folder, state.network, state.optimizer, progress, state.average, config_json=config_json)

    runtime.report(score, progress.step, write if runtime.world.is_first else None, probes)


class Clock:
    """Seconds spent per named part; calling it with a name returns a context manager that adds to that part."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
