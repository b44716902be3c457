"""The state and the history of a run, read from its folder alone: on any machine, on a disk or in a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from jobs.launch import lease
from jobs.run import run_files
from jobs.run.config import Placement
from jobs.tracking import voice
from jobs.tracking.journal import now, read_journals
from jobs.tracking.status_file import read_status
from jobs.training.requests import STOP_FILE
from pipeline import storage
from pipeline.corpus.ledger import count_by_reason, read_ledger
from pipeline.nearest import did_you_mean
from pipeline.records import Reason

ANSWER_SECONDS = lease.RENEW_SECONDS + 2.0
"""Time within which a live driver renews its lease."""
State = Literal["running", "silent", "finished", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Which run."""

    run: Annotated[str, tyro.conf.Positional]
    """Name of a run in `storage`, or its folder or s3:// URL."""
    storage: str = Placement.storage
    """Folder or s3:// URL that holds run folders."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state and the history of a run."""

    folder: str
    state: State
    driver: str = ""
    """Owner of the lease, in words; empty without a lease."""
    error: str = ""
    """Error that ended the run for good."""
    num_steps: int
    manifest: str = ""
    """Path of the manifest, with the version that the run trains on if it is in parts."""
    at: Mapping[str, Any] = field(default_factory=dict)
    """`status.json`: the last reported step, rate and time left."""
    committed: Mapping[str, Any] = field(default_factory=dict)
    """Progress in the last committed checkpoint."""
    checkpoint: str | None = None
    rejected: Mapping[Reason, int] = field(default_factory=dict)
    """Clips by reason."""
    events: Sequence[Mapping[str, Any]] = ()
    """Events of the journal: starts of worker groups (first rank only), lost ranks, hangs, preemptions."""


def folder_of(config: RunConfig) -> str:
    """Return the folder of the run. ValueError, with the nearest name, if there is no such run."""
    is_path = "/" in config.run
    folder = storage.absolute(config.run.rstrip("/") if is_path else storage.join(config.storage, config.run))
    if storage.exists(f"{folder}/{run_files.IDENTITY}"):
        return folder
    parent, name = folder.rpartition("/")[::2]
    paths = storage.list_files(parent) if storage.exists(parent) else []
    names = sorted({path.split("/")[0] for path in paths if path.count("/") == 1 and path.endswith(run_files.IDENTITY)})
    hint = did_you_mean(name, names) or f"it has {', '.join(names[:20]) or 'none'}"
    raise ValueError(f"{parent} has no run {name!r}; {hint} (--storage names another folder)")


def read_run(
    folder: str, *, wait: Callable[[float], None] = time.sleep, answer_seconds: float = ANSWER_SECONDS
) -> Status:
    """Return the status of the run in `folder`. If it has a driver, wait for that to renew its lease."""
    failure, ledger_path = f"{folder}/{run_files.FAILURE}", f"{folder}/ledger.parquet"
    error = run_files.read_json(failure)["error"] if storage.exists(failure) else ""
    state, driver = "stopped", ""
    if storage.exists(f"{folder}/results.json"):
        state = "finished"
    elif content := lease.read(f"{folder}/{lease.LEASE}"):
        driver = str(lease.owner_of(content) or "unknown")
        state = "running" if is_renewed(f"{folder}/{lease.LEASE}", content, wait, answer_seconds) else "silent"
    elif error:
        state = "failed"
    config = run_files.read_json(f"{folder}/{run_files.CONFIG}")
    return Status(
        folder=folder,
        state=state,
        driver=driver,
        error=error,
        num_steps=config["optim"]["num_steps"],
        manifest=config["data"]["manifest"],
        at=read_status(folder),
        committed=run_files.committed_progress(folder) or {},
        checkpoint=run_files.committed_checkpoint(folder),
        rejected=count_by_reason(read_ledger(ledger_path)) if storage.exists(ledger_path) else {},
        events=[event for event in read_journals(folder) if is_shown(event)],
    )


def is_renewed(path: str, content: bytes, wait: Callable[[float], None], seconds: float) -> bool:
    """Return whether the lease at `path` changes within `seconds`, without comparing clocks of machines."""
    for _ in range(max(1, round(seconds))):
        wait(1.0)
        if (lease.read(path) or content) != content:
            return True
    return False


def is_shown(event: Mapping[str, Any]) -> bool:
    """Return whether the status shows an event of the journal. Of starts, it shows those of the first rank."""
    return event["event"] in ("lost", "hang", "preempted") or (event["event"] == "start" and event["who"] == "rank-0")


def describe(status: Status) -> str:
    """Return the status as text for the terminal."""
    at, committed = status.at, status.committed
    driver = f", {status.driver}" if status.driver else ""
    rows = [("run", status.folder), ("state", f"{STATES[status.state]}{driver}"), ("error", status.error)]
    rows.append(("manifest", status.manifest))
    if at:
        rows.append(("step", f"{at['step']} of {status.num_steps}, reported at {at['time']} (it is {now()} here)"))
    if at and status.state == "running":
        left, wait = int(at["seconds_left"]), 100 * at["data_wait_share"]
        rate = f"{at['clips_per_second']:.0f} clips/s, {at['seconds_per_step']:.2f} s per step"
        ranks = voice.counted(at["num_ranks"], "rank")
        rows.append(("rate", f"{rate}, waiting for data {wait:.0f} %, {ranks}, loss {at['loss']:.3f}"))
        rows.append(("left", f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"))
    best = f", best score {committed['best_score']:.3f} at step {committed['best_step']}" if committed else ""
    rows.append(("saved", f"step {committed['step']}, {status.checkpoint}{best}" if committed else "nothing yet"))
    reasons = ", ".join(f"{reason} {count}" for reason, count in status.rejected.items())
    rows.append(("rejected", f"{reasons}; {status.folder}/ledger.parquet" if reasons else "none"))
    rows += [("", ""), *((event["time"][:19] + "Z", in_words(event)) for event in status.events)]
    return "\n".join(f"{name:9} {value}".rstrip() for name, value in rows if value or not name)


STATES: Mapping[State, str] = {
    "running": "running",
    "silent": "its driver does not renew its lease: killed, or cut off; the same command goes on",
    "finished": "finished",
    "failed": "failed for good",
    "stopped": "stopped; the same command goes on",
}


def in_words(event: Mapping[str, Any]) -> str:
    """Return an event of the journal in words."""
    if event["event"] == "start":
        num_redone = event.get("num_redone_steps", 0)
        upload = event.get("uncommitted_step")
        again = f"; the checkpoint of step {upload} was not uploaded to its end" if upload else ""
        again += f"; {num_redone} steps after it had been done and are done again" if num_redone else ""
        return f"{voice.counted(event['num_ranks'], 'rank')} began after step {event['step']}{again}"
    if event["event"] == "lost":
        lines = [line.strip() for line in event["cause"].splitlines() if line.strip()]
        return f"rank {event['rank']} was lost: {lines[-1] if lines else 'unknown'}"
    if event["event"] == "hang":
        return f"{event['who']} stood still for {event['seconds']:.0f} s and was ended"
    return "a node was about to be taken away: a checkpoint was written"


def request_stop(folder: str) -> str:
    """Ask the run's driver to write a checkpoint and stop, and return a message. ValueError without a driver."""
    name = folder.rpartition("/")[2]
    if storage.exists(f"{folder}/results.json"):
        raise ValueError(f"{name} is finished: there is nothing to stop")
    content = lease.read(f"{folder}/{lease.LEASE}")
    if content is None:
        raise ValueError(f"{name} has no driver: it is stopped already, at step {run_files.committed_step(folder)}")
    storage.write_bytes_atomic(f"{folder}/{STOP_FILE}", b"")
    return (
        f"{name} was asked to stop: {lease.owner_of(content) or 'its driver'} writes a checkpoint within a few steps "
        "and ends; the same command goes on from it"
    )
