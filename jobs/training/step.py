"""The train loop: batches in the order of the plan, one optimizer step each, and what is due in between."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cluster.run import Runtime
from jobs.run import run_files
from jobs.run.config import OptimConfig, PretrainConfig
from jobs.tasks.tasks import Network
from jobs.training import checkpoints
from jobs.training.checkpoints import Progress
from jobs.training.ema import WeightAverage
from jobs.training.optimizer import learning_rate, make_optimizer
from pipeline.records import Batch
from pipeline.stream.transforms import normalise


@dataclass(kw_only=True)
class TrainState:
    """Everything a resumed run needs, and nothing else."""

    network: Network
    """The network with what it is trained on."""
    wrapped: nn.Module
    """The same, with gradients averaged over the ranks."""
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
    """Moving average of the weights, if the run wants one."""
    progress: Progress = field(default_factory=Progress)


def make_state(network: Network, wrapped: nn.Module, config: OptimConfig) -> TrainState:
    """A run before its first step."""
    return TrainState(
        network=network,
        wrapped=wrapped,
        optimizer=make_optimizer(network.named_parameters(), config),
        average=WeightAverage(network, config.average_decay) if config.average_decay else None,
    )


def train_step(state: TrainState, batch: Batch, config: PretrainConfig, rank: int) -> dict[str, Tensor]:
    """One optimizer step. Returns detached scalars; what is random in it depends on (seed, step, rank) alone."""
    torch.manual_seed(hash((config.seed, state.progress.step, rank)) & 0xFFFFFFFF)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.progress.step, config.optim)
    with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=config.optim.precision == "bf16"):
        losses = state.wrapped(batch, normalise(batch.frames))
        weights = state.network.weights
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    total.backward()
    grad_norm = nn.utils.clip_grad_norm_(state.network.parameters(), config.optim.max_grad_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.progress.step += 1
    if state.average:
        state.average.update(state.network, state.progress.step)
    named = {f"loss/{name}": loss.detach() for name, loss in losses.items()}
    return {"loss/total": total.detach(), "grad_norm": grad_norm.detach()} | named


def training_steps(
    state: TrainState, batches: Iterator[Batch], config: PretrainConfig, *, rank: int, clock: Clock
) -> Iterator[tuple[dict[str, Tensor], Batch]]:
    """The metrics and the batch of each step until the run's last one."""
    state.wrapped.train()
    while state.progress.step < config.optim.num_steps:
        with clock("data_wait"):
            batch = next(batches)
        with clock("step"):
            metrics = train_step(state, batch, config, rank)
        yield metrics, batch
        state.wrapped.train()


class RunError(RuntimeError):
    """What stops a run for good: starting again from the last checkpoint would only repeat it."""


class DivergedError(RunError):
    """The loss, or what it is made of, is no number any more."""


def non_finite(metrics: dict[str, float]) -> list[str]:
    """Names of the metrics that are no numbers."""
    return sorted(name for name, value in metrics.items() if not math.isfinite(value))


def non_finite_error(wrong: list[str], step: int, clip_ids: list[int], run_folder: str) -> DivergedError:
    """Says which metrics, at which step, with which clips, and the checkpoint to go back to."""
    last = run_files.committed_checkpoint(run_folder) or "none yet"
    return DivergedError(
        f"{', '.join(wrong)} not finite at step {step}; clips of the batch: {clip_ids}; last good checkpoint: {last}. "
        "Lower optim.lr or look at these clips"
    )


def commit(state: TrainState, runtime: Runtime, probes: Mapping[str, float]) -> None:
    """Have a checkpoint committed; the first rank writes it, all take part. `probes`: measured at this very step."""
    progress = state.progress
    score = progress.score if math.isfinite(progress.score) else -1.0

    def write(folder: str) -> None:
        checkpoints.save(folder, state.network, state.optimizer, progress, state.average)

    runtime.report(score, progress.step, write if runtime.world.is_first else None, probes)


class Clock:
    """Seconds spent, by what they went to."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})
        self.started: list[tuple[str, float]] = []

    def __call__(self, name: str) -> Clock:
        self.name = name
        return self

    def __enter__(self) -> None:
        self.started.append((self.name, time.perf_counter()))

    def __exit__(self, *exception: object) -> None:
        name, start = self.started.pop()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
