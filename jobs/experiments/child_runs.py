"""Run a resolved config to its end, and return its results, or the error.

A child runs on a thread of this process, which saves another driver process, or in a separate process, which isolates
its memory and its torch threads. A separate process reads its config from a file:
`python -m jobs.experiments.child_runs FOLDER`, with config.json in the folder.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from jobs import WORKPLACE
from jobs.command_line.entry import DONE, FAILED, REFUSED, STOPPED, StoppedError, run_command
from jobs.run import run_files
from jobs.tracking import voice
from pipeline import storage

if TYPE_CHECKING:
    from jobs.run.config import Placement, PretrainConfig
    from jobs.tracking.mlflow_runs import Tracker

Status = Literal["finished", "stopped", "diverged", "failed"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a run."""

    status: Status
    results: Mapping[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    """Why there are no results."""

    def unwrap(self) -> Mapping[str, Any]:
        """Return the results, or raise the error."""
        if self.error:
            raise self.error
        return self.results


class StopRequest:
    """A request to stop all running runs: each writes a checkpoint and ends, and no other starts."""

    def __init__(self) -> None:
        self.run_folders: set[str] = set()
        self.is_made = False

    def make(self, *_: Any) -> None:
        """Request the stop; the signature is that of a signal handler."""
        from jobs.launch import driver

        self.is_made = True
        voice.say("asked to stop: waiting for the checkpoints")
        for folder in list(self.run_folders):
            driver.request_stop(folder)

    def on_signals(self) -> contextlib.AbstractContextManager[None]:
        """Turn SIGTERM (as from `ray job stop`) and Ctrl-C into this request within the context, since no signal
        reaches the threads."""
        from jobs.launch import driver

        return driver.signal_handlers(self.make, signal.SIGTERM, signal.SIGINT)


def run_child(
    config: PretrainConfig,
    *,
    tags: Mapping[str, str] = MappingProxyType({}),
    watchers: Sequence[Any] = (),
    stop: StopRequest | None = None,
    is_isolated: bool = False,
) -> Outcome:
    """Run a config to its end, from its last checkpoint if there is one; of a finished run, only read the results.

    `tags`: of the MLflow run. `watchers`: see `driver.pretrain`. `is_isolated`: run in a separate process, with the
    preflight checks of the command line, and without tags or watchers.
    """
    run_folder, stop = storage.absolute(f"{config.placement.storage}/{config.name}"), stop or StopRequest()
    if is_isolated:
        from jobs.run.fields import as_dict

        return _run_isolated(as_dict(config), run_folder)
    from jobs.launch import driver
    from jobs.training.step import DivergedError

    if stop.is_made:
        return Outcome(status="stopped", error=StoppedError())
    stop.run_folders.add(run_folder)
    try:
        results = driver.pretrain(config, watchers=watchers, tags=tags, is_stopped=lambda: stop.is_made)
    except DivergedError as error:
        return Outcome(status="diverged", error=error)
    except Exception as error:  # any error: the caller's other runs continue
        return Outcome(status="failed", error=error)
    finally:
        stop.run_folders.discard(run_folder)
    return Outcome(status="finished", results=results) if results else Outcome(status="stopped", error=StoppedError())


def _run_isolated(fields: Mapping[str, Any], run_folder: str) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        run_files.write_json(f"{folder}/config.json", fields)
        voice.say(f"{fields['name']}: begins in a process of its own")
        command = [sys.executable, "-m", "jobs.experiments.child_runs", folder]
        stream = voice.terminal_stream()
        status = subprocess.run(command, check=False, cwd=WORKPLACE, stdout=stream, stderr=stream).returncode
    if status == STOPPED:
        return Outcome(status="stopped", error=StoppedError())
    if status:
        error = RuntimeError(f"{fields['name']} ended with exit status {status}; what it printed says why")
        return Outcome(status="failed", error=error)
    return Outcome(status="finished", results=run_files.read_json(f"{run_folder}/results.json"))


@contextlib.contextmanager
def parent_run(
    placement: Placement,
    name: str,
    *,
    identity_hash: str,
    params: Mapping[str, Any],
    has_failed: Callable[[], bool] = lambda: False,
) -> Iterator[Tracker]:
    """Keep the parent MLflow run open within the context; at its end, end the children's runs that are still open.

    The run ends as FINISHED, as KILLED after a StoppedError, or as FAILED after another error or if `has_failed()`.
    """
    from jobs.tracking import mlflow_runs

    def finish(status: str) -> None:
        mlflow_runs.end_open(parent.uri, parent.run_id)
        parent.finish(status)

    parent = mlflow_runs.open_run(
        placement.storage, experiment=placement.experiment, name=name, identity_hash=identity_hash, params=params
    )
    try:
        yield parent
    except BaseException as error:
        finish("KILLED" if isinstance(error, StoppedError) else "FAILED")
        raise
    finish("FAILED" if has_failed() else "FINISHED")


def main() -> int:
    """Run the config in the given folder. Return the exit status: 0 finished, 1 failed, 2 refused, 130 stopped."""
    from jobs.launch import preflight
    from jobs.run.run_identity import config_of

    config = config_of(sys.argv[1])
    if problems := preflight.survey(config).problems:
        voice.say("\n".join(f"error: {problem}" for problem in problems))
        return REFUSED
    outcome = run_child(config)
    if outcome.error:
        voice.say(f"{config.name}: {outcome.status}: {outcome.error}")
    return {"finished": DONE, "stopped": STOPPED}.get(outcome.status, FAILED)


if __name__ == "__main__":
    run_command(main)
