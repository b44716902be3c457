"""The reports of a rank while it trains: metrics, progress lines, the ledger of rejected clips."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from cluster import worker_lines
from cluster.world import World
from jobs.run.config import OptimConfig
from jobs.tracking import telemetry
from jobs.tracking.journal import Journal
from jobs.tracking.mlflow_runs import Tracker
from jobs.tracking.status_file import StatusFile
from jobs.training.batches import RankBatches
from jobs.training.job import Job
from jobs.training.optimizer import learning_rate
from jobs.training.requests import Requests
from jobs.training.step import Clock, RunError, non_finite, non_finite_error
from pipeline import storage
from pipeline.corpus.ledger import count_by_reason, read_ledger, refuse_above_share, write_ledger
from pipeline.records import Batch, Rejected


class Reporter:
    """The reports of one rank; most of them come from the first rank only."""

    def __init__(self, job: Job, batches: RankBatches, journal: Journal, tracker: Tracker) -> None:
        self.job, self.batches, self.journal, self.tracker = job, batches, journal, tracker
        self.world, self.ledger = batches.world, f"{job.run_folder}/ledger.parquet"
        self.status, self.num_reported = StatusFile(job.run_folder), 0

    def say(self, line: str) -> None:
        """Print a line about the run, on the first rank only."""
        say(self.world, f"{self.job.name}: {line}")

    def log(self, meter: Meter, metrics: dict[str, Tensor], batch: Batch, step: int, requests: Requests) -> None:
        """Report losses, speed, and the clips rejected so far to MLflow, Prometheus, the journal and the terminal.

        Only this call waits for the device. The ranks exchange their counts and agree when to poll next. RunError on
        all ranks when the loss is not finite or too many clips are rejected.
        """
        with meter.clock("step"):  # `item` waits for the device, which is part of the step
            values = {name: value.item() for name, value in metrics.items()}
        with meter.clock("telemetry"):
            wrong, read = non_finite(values), self.batches
            row = [len(read.rejected), read.num_seen, read.num_retries, bool(wrong)]
            row = torch.tensor([[*row, requests.microseconds_per_step(step)]], device=self.world.device)
            *counts, paces = zip(*self.world.gather(row).tolist(), strict=True)
            num_rejected, num_seen, num_retries, is_wrong = map(sum, counts)
            requests.set_pace(max(paces))
            if is_wrong:
                clip_ids = self.world.gather_objects(batch.clip_ids[batch.weight > 0.5].tolist())
                raise non_finite_error(wrong or ["a metric of another rank"], step, clip_ids, self.job.run_folder)
            self.refuse_too_many_rejected(num_rejected, num_seen)
            self.publish(meter, values, {"rejected": num_rejected, "store_retries": num_retries}, step)

    def publish(self, meter: Meter, values: dict[str, float], counts: dict[str, int], step: int) -> None:
        """Send the values of a step to the journal and to Prometheus; on the first rank also to MLflow, the status file
        and the terminal."""
        speed = meter.read(step)
        values |= speed | counts | {"lr": learning_rate(step, self.job.optim)}
        memory = {"memory_mib": telemetry.memory_mib(), "gpu_memory_mib": telemetry.gpu_memory_mib(self.world.device)}
        self.journal.note("step", step=step, loss=values["loss/total"], **speed, **memory, **counts)
        gauges = speed | memory | counts | {"step": step, "loss": values["loss/total"]}
        telemetry.publish(gauges, self.job.name, self.world.rank)
        if self.world.is_first:
            self.tracker.log(values, step)
            left = {"seconds_left": meter.seconds_left(step), "num_steps": self.job.optim.num_steps}
            is_last = step == self.job.optim.num_steps
            self.status.update(is_last=is_last, num_ranks=self.world.size, **gauges, **left)
            worker_lines.show_progress(f"{self.job.name} · {meter.line(step, values)}")

    def refuse_too_many_rejected(self, num_rejected: int, num_seen: int) -> None:
        """Write the ledger and raise RunError when too large a share of the clips could not be decoded."""
        share = self.job.data.max_rejected_share
        if num_rejected <= share * num_seen or num_rejected < 3:
            return
        rejected = self.write_ledger()
        try:
            refuse_above_share(rejected, num_seen, share, self.ledger)
        except ValueError as error:
            raise RunError(str(error)) from error

    def write_ledger(self) -> list[Rejected]:
        """Write every clip rejected by this and earlier worker groups to the run's ledger; return those of this one."""
        rejected = self.world.gather_objects(self.batches.rejected)
        if self.world.is_first:
            lost = unique(rejected, self.ledger)
            write_ledger(lost, self.ledger)
            if len(lost) > self.num_reported:
                self.num_reported = len(lost)
                last, reasons = lost[-1], ", ".join(f"{why} {count}" for why, count in count_by_reason(lost).items())
                self.say(f"clips that cannot be used: {reasons} (the last is {last.uri}); all are in {self.ledger}")
        return rejected


def say(world: World, line: str) -> None:
    """Print a line on the driver's terminal, on the first rank only."""
    if world.is_first:
        worker_lines.say(line)


def unique(rejected: list[Rejected], path: str | None = None) -> list[Rejected]:
    """Return the clips of the ledger at `path` and `rejected`, each once per stage and reason."""
    before = read_ledger(path) if path and storage.exists(path) else []
    return list({(clip.clip_id, clip.stage, clip.reason): clip for clip in before + rejected}.values())


class Meter:
    """Speed since the start of this worker group, and over the last logged steps.

    Steps run asynchronously on the device, so the time of a step is wall time without that of `BETWEEN_STEPS`.
    """

    BETWEEN_STEPS = ("evaluation", "checkpoint")

    def __init__(self, first_step: int, clock: Clock, optim: OptimConfig) -> None:
        self.first_step, self.clock, self.optim = first_step, clock, optim
        self.start = time.perf_counter()
        self.last_step, self.last_read, self.last_seconds = first_step, self.start, dict(clock.seconds)

    def read(self, step: int) -> dict[str, float]:
        """Return clips per second, share of time spent waiting for data, and seconds per step since the last call."""
        now, seconds, num_steps = time.perf_counter(), dict(self.clock.seconds), max(1, step - self.last_step)
        spent = {name: value - self.last_seconds.get(name, 0.0) for name, value in seconds.items()}
        elapsed = max(1e-9, now - self.last_read - sum(spent.get(name, 0.0) for name in self.BETWEEN_STEPS))
        self.last_step, self.last_read, self.last_seconds = step, now, seconds
        return {
            "clips_per_second": num_steps * self.optim.global_batch / elapsed,
            "data_wait_share": spent.get("data_wait", 0.0) / elapsed,
            "seconds_per_step": elapsed / num_steps,
        }

    def seconds_left(self, step: int) -> float:
        """Return the seconds to the last step, at the pace of this worker group so far."""
        per_step = (time.perf_counter() - self.start) / max(1, step - self.first_step)
        return per_step * (self.optim.num_steps - step)

    def line(self, step: int, values: dict[str, float]) -> str:
        """Return a progress line: step, loss, speed, time left, rejected clips."""
        rejected, left = values.get("rejected", 0), int(self.seconds_left(step))
        return (
            f"step {step}/{self.optim.num_steps} · loss {values['loss/total']:.3f} · "
            f"{values['clips_per_second']:.0f} clips/s · waiting for data {100 * values['data_wait_share']:.0f} % · "
            f"{left // 60}:{left % 60:02d} left" + (f" · {rejected:.0f} rejected" if rejected else "")
        )
