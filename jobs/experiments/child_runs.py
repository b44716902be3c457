"""The one way from a resolved config to a finished run: its results, or why it has none.

A child runs on a thread of this process, so that its driver costs nothing more, or in a process of its own, so that
neither its memory nor its threads of torch meet those of others. Such a process gets its config as a file:
`python -m jobs.experiments.child_runs FOLDER`, with config.json in it.
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
    """What came of a run."""

    status: Status
    results: Mapping[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    """Why there are no results."""

    def unwrap(self) -> Mapping[str, Any]:
        """Return the results. Raise what kept the run from its end."""
        if self.error:
            raise self.error
        return self.results


class StopRequest:
    """A request to stop all runs under way: each writes a checkpoint and ends, and no other begins."""

    def __init__(self) -> None:
        self.run_folders: set[str] = set()
        self.is_made = False

    def make(self, *_: Any) -> None:
        """Ask the runs, as a handler of signals does."""
        from jobs.launch import driver

        self.is_made = True
        voice.say("asked to stop: waiting for the checkpoints")
        for folder in list(self.run_folders):
            driver.request_stop(folder)

    def on_signals(self) -> contextlib.AbstractContextManager[None]:
        """Within it, SIGTERM (as from `ray job stop`) and Ctrl-C are this request: no signal reaches the threads."""
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
    """Run a config to its end, from its last checkpoint if there is one; a finished run is read, not run again.

    `tags`: of the MLflow run. `watchers`: see `driver.pretrain`. `is_isolated`: in a process of its own, where the
    problems that the command line would refuse are refused too; neither tags nor watchers reach it.
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
    except Exception as error:  # of whatever kind: the caller's other runs go on
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
    """Within it, the MLflow run that the children are below of is open; no child's stays open after it.

    It ends as FINISHED, as KILLED by a StoppedError, as FAILED by any other, or where `has_failed` says so at the end.
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
    """Run the config in the folder that is named. Exit status: 0 finished, 1 failed, 2 refused, 130 stopped."""
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
