"""The loop of every rank: restore, train, evaluate. Ray starts `pretrain_rank` again after it loses a worker."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cluster.run import Runtime
from jobs.run import run_files
from jobs.tasks.retrieval import MASKED_WORDS
from jobs.tracking import voice
from jobs.tracking.journal import Journal, newest_lines
from jobs.tracking.patient_tracker import PatientTracker, save_unsent
from jobs.tracking.status_file import read_status
from jobs.training import checkpoints
from jobs.training.batches import RankBatches
from jobs.training.ema import averaged
from jobs.training.job import Job
from jobs.training.network import make_network
from jobs.training.optimizer import pretrained_parts
from jobs.training.precision import evaluation_autocast, set_float32_precision
from jobs.training.reporting import Meter, Reporter
from jobs.training.requests import Requests, StopRequest
from jobs.training.step import (
    Clock,
    DivergedError,
    RunError,
    TrainState,
    choose_losses,
    make_state,
    save_checkpoint,
    training_steps,
)
from jobs.training.watchdog import Watchdog
from pipeline import storage
from pipeline.records import Batch

PROBES = ("validation/t2v/mean_recall", f"validation/{MASKED_WORDS}")
"""Metrics that are comparable between runs whatever their loss weights and masking ratios."""
OnStep = Callable[[int, dict[str, Tensor], Batch], None]
"""Called on each rank after each step, with the number of steps done, and the metrics and the batch of that step."""


def pretrain_rank(job: Job, runtime: Runtime, on_step: OnStep | None = None) -> None:
    """Pre-train from the last committed checkpoint to the end, then evaluate the best weights on the test splits.

    `on_step` observes the steps, for measurements.
    """
    storage.set_retry_seconds(job.placement.storage_patience_seconds)
    journal = Journal(job.run_folder, f"rank-{runtime.world.rank}")

    def report_hang(stalled_seconds: float) -> None:
        journal.note("hang", seconds=stalled_seconds, limit_seconds=job.placement.hang_seconds)
        journal.flush()

    watchdog = Watchdog(job.placement.hang_seconds, report_hang)
    trainer = Trainer(job, runtime, journal, watchdog.alive, on_step)
    try:
        with trainer.tracker.system_metrics() if runtime.world.is_first else contextlib.nullcontext():
            state, validation = trainer.prepare()
            if not state.progress.is_finished:
                trainer.train(state, validation)
            trainer.finish(state)
    except RunError as error:  # raised on all ranks, so none waits for another
        journal.note("failed", error=str(error))
        if runtime.world.is_first:
            failure = {"error": str(error), "has_diverged": isinstance(error, DivergedError)}
            run_files.write_json(f"{job.run_folder}/{run_files.FAILURE}", failure)
    finally:
        watchdog.stop()
        journal.flush()
        save_unsent(trainer.tracker, job.run_folder)


@dataclass(frozen=True)
class LostWork:
    """Work of an earlier worker group after the committed step, which is lost."""

    num_redone_steps: int
    uncommitted_step: int | None
    """Step of a checkpoint whose upload was interrupted."""

    @classmethod
    def after(cls, committed_step: int, status: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> LostWork:
        """Derive the loss from the run's `status.json` and the newest `lines` of its first rank's journal."""
        reported = max([int(status.get("step", 0)), *(line.get("step", 0) for line in lines)])
        saved = max((line["step"] for line in lines if line["event"] == "checkpoint"), default=0)
        return cls(max(0, reported - committed_step), saved if saved > committed_step else None)

    def in_words(self, committed_step: int) -> str:
        """Return which steps are repeated, and which interrupted upload is the reason."""
        first, last = committed_step + 1, committed_step + self.num_redone_steps
        upload = f"; the checkpoint of step {self.uncommitted_step} was not uploaded to its end"
        redone = f"; steps {first} to {last} had been done and are done again"
        return upload * (self.uncommitted_step is not None) + redone * (self.num_redone_steps > 0)


class Trainer:
    """The train loop of one rank."""

    def __init__(
        self, job: Job, runtime: Runtime, journal: Journal, alive: Callable[[], None], on_step: OnStep | None
    ) -> None:
        self.job, self.runtime, self.world, self.journal = job, runtime, runtime.world, journal
        self.alive, self.on_step = alive, on_step
        self.tracker = PatientTracker(job.tracking_uri, job.tracking_run_id)
        self.clock = Clock()
        self.batches = RankBatches(job, runtime, self.clock, alive)
        self.reporter = Reporter(job, self.batches, self.journal, self.tracker)

    def prepare(self) -> tuple[TrainState, list[Batch]]:
        """Return the restored or new state, and the validation batches, on the CPU."""
        state = self.restore()
        self.runtime.open(["validation", *[name for name, _, _ in self.batches.segments(state.progress.step)[:1]]])
        validation = [batch.to("cpu") for batch in self.batches.evaluation("validation")]
        num_parameters = sum(parameter.numel() for parameter in state.network.parameters())
        self.reporter.say(f"{num_parameters / 1e6:.2f} M parameters, {voice.counted(self.world.size, 'rank')}")
        return state, validation

    def restore(self) -> TrainState:
        """Return the state of the last committed checkpoint, or a new one from the seed."""
        optim = self.job.optim
        lost = LostWork(0, None)
        torch.manual_seed(self.job.seed)
        set_float32_precision(optim.precision)
        with self.runtime.restored() as folder:
            network, reports = make_network(self.job, self.world, is_new=folder is None)
            for report in reports:
                self.reporter.say(report)
            state = make_state(network, network, optim, pretrained_parts(self.job.model))
            if folder:
                state.progress = checkpoints.load(folder, network, state.optimizer, state.average)
                self.clock.seconds = dict(state.progress.seconds or {})
                step, folder = state.progress.step, self.job.run_folder
                lost = LostWork.after(step, read_status(folder), newest_lines(folder, "rank-0"))
                self.reporter.say(f"continuing at step {step} of {optim.num_steps}{lost.in_words(step)}")
        choose_losses(state, optim)
        state.wrapped = self.wrapped(network)
        facts = {"num_ranks": self.world.size, "device": str(self.world.device), "host": socket.gethostname()}
        self.journal.note("start", step=state.progress.step, **facts, **asdict(lost))
        return state

    def wrapped(self, network: nn.Module) -> nn.Module:
        """Return the network with gradients averaged over the ranks, compiled if so configured."""
        wrapped = self.world.wrap(network)
        if self.job.placement.compiled:
            wrapped.compile()
        return wrapped

    def train(self, state: TrainState, validation: list[Batch]) -> None:
        """Train until the last step, early stopping or a stop request, which leaves the run unfinished."""
        job, progress, clock = self.job, state.progress, self.clock
        meter = Meter(progress.step, clock, job.optim)
        requests = Requests(job.run_folder, self.runtime, progress.step)
        batches = self.batches.training(progress.step)
        steps = training_steps(
            state, batches, job.optim, seed=job.seed, rank=self.world.rank, clock=clock, wrap=self.wrapped
        )
        for metrics, batch in steps:
            self.alive()
            step, request = progress.step, StopRequest.NONE
            if self.on_step:
                self.on_step(step, metrics, batch)
            is_last = step == job.optim.num_steps
            is_due = is_last or job.selection.is_due(step)
            is_logged = is_due or step % job.placement.log_every == 0 or step == meter.first_step + 1
            if not is_due and (is_logged or step >= requests.due_step):
                with clock("look"):
                    request = requests.poll(step, may_wait=is_logged)
            if is_logged or request != StopRequest.NONE:
                self.reporter.log(meter, metrics, batch, step, requests)
            if is_due:
                with clock("evaluation"), self.in_precision(), averaged(state.network, state.average):
                    is_last |= self.validate(state, validation)
                progress.is_finished = is_last
            if is_due or request != StopRequest.NONE:
                self.save(state, request, probes=(progress.probes or {}) if is_due else {})
            if is_last or request == StopRequest.STOP:
                return

    def validate(self, state: TrainState, validation: list[Batch]) -> bool:
        """Evaluate the validation split and save the best weights. Return whether to stop early."""
        progress, selection, say = state.progress, self.job.selection, self.reporter.say
        batches = (batch.to(self.world.device) for batch in validation)  # lazily: one at a time on the device
        metrics = self.job.task.measure(self.batches.dataset("validation", state.network, batches))
        progress.score = metrics[selection.metric]
        progress.probes = {name: metrics[name] for name in (*PROBES, selection.metric) if name in metrics}
        if progress.score > progress.best_score:
            progress.best_score, progress.best_step, progress.num_stale = progress.score, progress.step, 0
            if self.world.is_first:
                checkpoints.save_best(self.job.run_folder, state.network, progress)
        else:
            progress.num_stale += 1
        if self.world.is_first:
            self.tracker.log(metrics, progress.step)
        say(
            f"step {progress.step}: {self.job.task.summary(metrics)}, "
            f"{selection.metric} {progress.score:.3f}, best {progress.best_score:.3f} at step {progress.best_step}"
        )
        return selection.patience is not None and progress.num_stale >= selection.patience

    def in_precision(self) -> torch.autocast:
        """Return the autocast context of an evaluation."""
        return evaluation_autocast(self.job.optim.precision, self.world.device)

    def save(self, state: TrainState, request: StopRequest, probes: dict[str, float]) -> None:
        """Commit a checkpoint and report the request behind it. `probes`: metrics of this step."""
        if request == StopRequest.CHECKPOINT:
            self.reporter.say("a node of this run is about to be taken away: writing a checkpoint")
            self.journal.note("preempted")
        with self.clock("checkpoint"):
            state.progress.seconds = self.clock.seconds
            save_checkpoint(state, self.runtime, probes, self.job.config_json)
            self.reporter.write_ledger()
            self.journal.note("checkpoint", step=state.progress.step)
            self.journal.flush()
        if request == StopRequest.STOP:
            self.reporter.say(f"stopped on request at step {state.progress.step}; the same command goes on from here")

    def finish(self, state: TrainState) -> None:
        """Evaluate the best weights on the test splits, if training is finished."""
        folder = self.job.run_folder
        if state.progress.is_finished:
            best = storage.read_bytes(f"{folder}/best/{run_files.WEIGHTS}")
            checkpoints.load_weights(best, state.network)
            for name in ("test", "temporal"):
                if name in self.job.sources:
                    with self.clock("evaluation"), self.in_precision():
                        self.job.task.save_scores(self.batches.dataset(name, state.network), f"{folder}/evaluation")
            if self.world.is_first:
                run_files.write_json(f"{folder}/{run_files.SECONDS}", self.clock.seconds)
        self.reporter.write_ledger()
