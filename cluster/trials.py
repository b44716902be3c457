"""Run the trials of a search and stop the worse ones early. Apart from cluster/ray_internals.py, only this file uses
ray.tune.

search ──values──► function on the head (a thin driver, whose workers do the work) ──metrics by step──► ASHA: continue?
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import filelock
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from cluster import ray_internals
from cluster.domains import Domain, Range

STEP = "step"
WAIT_SECONDS = 1.0
"""Pause between two attempts to acquire a trial slot."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search space, the search method, and the length of trials."""

    space: Mapping[str, Domain]
    method: Literal["optuna", "random", "grid"] = "optuna"
    num_trials: int = 12
    """Ignored for a grid, which has one trial per point."""
    points_per_range: int = 3
    """For a grid."""
    metric: str = ""
    """Metric to maximise."""
    num_at_once: int = 1
    seed: int = 0
    num_steps: int = 0
    """Steps of a trial that is not stopped."""
    rungs: tuple[int, ...] = ()
    """Steps at which a trial may be stopped, each `reduction_factor` times the previous."""
    reduction_factor: int = 4
    """At a rung, one in this many trials continues."""

    def grid(self) -> list[dict[str, Any]]:
        """Return every point once, in an order drawn from the seed.

        ASHA compares a trial with earlier ones: in the order of the grid, scores may rise steadily, and none would be
        stopped.
        """
        values = [domain.points(self.points_per_range) for domain in self.space.values()]
        points = [dict(zip(self.space, point, strict=True)) for point in itertools.product(*values)]
        random.Random(self.seed).shuffle(points)
        return points


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The outcome of a trial."""

    trial_id: str
    values: Mapping[str, Any]
    highest: Mapping[str, float] = field(default_factory=dict)
    """The highest reported value of each metric."""
    error: str = ""
    is_open: bool = False
    """The search was stopped before the trial ended."""


class OnTrialEnd(tune.Callback):
    """Call `listener` with the id of each trial that completes or fails."""

    listener: ClassVar[Callable[[str], None]]
    """A class attribute: Tune pickles callbacks with a search, and a resumed search must call the new listener."""

    def notify(self, trial: Any) -> None:
        """Call the listener; log its failure, so that the trial does not fail."""
        try:
            OnTrialEnd.listener(trial.trial_id)
        except Exception as error:
            log.warning("the listener failed at the end of trial %s: %s", trial.trial_id, error)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.notify(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.notify(trial)


def run_trials(
    function: Callable[[str, Mapping[str, Any], Any], None],
    search: Search,
    *,
    name: str,
    path: str,
    filesystem: Any = None,
    files: Collection[str] = (),
    on_end: Callable[[str], None],
) -> list[Trial]:
    """Call `function(trial id, values, watcher)` for each trial; the same call again resumes the search.

    Pass `watcher` to `cluster.run`, to make its reports those of the trial. The search's folder is `name` in the folder
    `path` of `filesystem`, and contains `files`. `on_end` is called with the id of each trial that ends. Ctrl-C ends
    the search and its trials.
    """
    ray_internals.apply_tune_settings()
    working_folder, search_folder = os.getcwd(), f"{path}/{name}"
    OnTrialEnd.listener = on_end

    def trial(values: dict[str, Any]) -> None:
        trial_id = tune.get_context().get_trial_id()
        assert trial_id, "Tune calls this in a trial"
        if os.path.isdir(working_folder):  # relative paths start here, not at the folder that Tune gives a trial
            os.chdir(working_folder)
        with trial_slot(search_folder, search.num_at_once):
            function(trial_id, values, ray_internals.measurement_callback(search.metric))

    trainable = tune.with_resources(trial, ray_internals.HEAD)
    tuner = make_tuner(trainable, search, name=name, path=path, filesystem=filesystem, files=files)
    results = tuner.fit()
    states = ray_internals.trial_states(search_folder, filesystem)
    return [trial_from_result(result, states) for result in results]


def make_tuner(
    trainable: Any, search: Search, *, name: str, path: str, filesystem: Any, files: Collection[str]
) -> tune.Tuner:
    """Return the search restored from its folder, or a new one; arguments as for `run_trials`."""
    if ray_internals.can_resume_search(files):
        log.info("resuming the sweep in %s/%s", path, name)
        return tune.Tuner.restore(
            f"{path}/{name}",
            trainable,
            resume_unfinished=True,
            resume_errored=True,
            param_space=domains(search),
            storage_filesystem=filesystem,
        )
    run_config = tune.RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=tune.FailureConfig(max_failures=2),
        callbacks=[OnTrialEnd()],
        verbose=0,
    )
    return tune.Tuner(trainable, param_space=domains(search), tune_config=tune_config(search), run_config=run_config)


def tune_config(search: Search) -> tune.TuneConfig:
    """Return the configuration with which Tune proposes, schedules and names trials."""
    return tune.TuneConfig(
        metric=search.metric,
        mode="max",
        num_samples=len(search.grid()) if search.method == "grid" else search.num_trials,
        max_concurrent_trials=search.num_at_once if search.method == "optuna" else None,
        search_alg=searcher(search),
        scheduler=scheduler(search),
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


@contextlib.contextmanager
def trial_slot(search_folder: str, num_slots: int) -> Iterator[None]:
    """Wait for one of the search's `num_slots` slots and hold it, since Tune starts all restored trials at once.

    All trials run on the head, so slots are locked files, which the system releases when a trial is killed.
    """
    digest = hashlib.blake2b(search_folder.encode(), digest_size=6).hexdigest()
    folder = Path(tempfile.gettempdir(), f"snps3-{digest}")
    folder.mkdir(exist_ok=True)
    locks = [filelock.FileLock(folder / f"{number}.lock") for number in range(num_slots)]
    while not (held := next((lock for lock in locks if acquire(lock)), None)):
        time.sleep(WAIT_SECONDS)
    try:
        yield
    finally:
        held.release()


def acquire(lock: filelock.BaseFileLock) -> bool:
    """Try to acquire the lock without waiting; return whether this process got it."""
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return False
    return True


def report(metrics: Mapping[str, float]) -> None:
    """Report metrics of the trial that this process runs, in addition to the reports of its ranks."""
    tune.report(dict(metrics))


def trial_from_result(result: Any, states: Mapping[str, ray_internals.TrialState]) -> Trial:
    """Return the trial of a result of Tune. `states`: Tune's state of each trial, by id."""
    trial_id = str((result.metrics or {}).get("trial_id") or os.path.basename(result.path))
    state = states[trial_id]
    return Trial(
        trial_id=trial_id,
        values=dict(result.config or {}),
        highest=state.highest,
        error="" if result.error is None else str(result.error).strip().splitlines()[-1],
        is_open=not state.is_finished,
    )


def domains(search: Search) -> dict[str, Any]:
    """Return the search space in Tune's terms."""
    if search.method == "grid":
        return {
            name: tune.choice(list(domain.points(search.points_per_range))) for name, domain in search.space.items()
        }
    return {name: as_tune(domain) for name, domain in search.space.items()}


def as_tune(domain: Domain) -> Any:
    """Return one domain in Tune's terms."""
    if not isinstance(domain, Range):
        return tune.choice(list(domain.values))
    if domain.is_integer:
        low, high = round(domain.low), round(domain.high) + 1  # Tune excludes the upper end
        return tune.lograndint(low, high) if domain.is_log else tune.randint(low, high)
    return (tune.loguniform if domain.is_log else tune.uniform)(domain.low, domain.high)


def searcher(search: Search) -> Searcher | SearchAlgorithm:
    """Return the search algorithm."""
    if search.method == "optuna":
        return OptunaSearch(metric=search.metric, mode="max", seed=search.seed)
    points = search.grid() if search.method == "grid" else None
    return BasicVariantGenerator(points_to_evaluate=points, random_state=search.seed, max_concurrent=search.num_at_once)


class Asha(FIFOScheduler):
    """Asynchronous successive halving (Li et al., 2020): at a rung the best 1 / `reduction_factor` of trials continue.

    Any other trial stops at the rung at once instead of pausing until worse ones arrive: that would start a run twice.
    Tune's own scheduler compares with an interpolated percentile, so that more than that share of few trials continue.
    A trial that has taken its last step is not stopped, since its end would be cut off and nothing saved. A trial
    resumed after a lost driver is not compared at rungs that it had passed: its score there is no longer known.
    """

    def __init__(self, search: Search) -> None:
        super().__init__()
        self.search = search
        self.scores: dict[int, list[float]] = {rung: [] for rung in search.rungs}
        """By rung, the scores of the trials that reached it."""
        self.passed: dict[str, int] = {}
        """By trial, the number of rungs it has passed."""

    def num_passed(self, result: Mapping[str, Any] | None) -> int:
        """Return how many rungs a trial has passed at this result."""
        return sum(rung <= (result or {}).get(STEP, 0) for rung in self.search.rungs)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self.passed[trial.trial_id] = self.num_passed(trial.last_result)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        before, now = self.passed[trial.trial_id], self.num_passed(result)
        self.passed[trial.trial_id] = now
        if now <= before or result.get(STEP, 0) >= self.search.num_steps:
            return TrialScheduler.CONTINUE
        score, scores = result[self.search.metric], self.scores[self.search.rungs[now - 1]]
        scores.append(score)
        is_among_best = sum(other > score for other in scores) < max(1, len(scores) // self.search.reduction_factor)
        return TrialScheduler.CONTINUE if is_among_best else TrialScheduler.STOP


def scheduler(search: Search) -> TrialScheduler:
    """Return the trial scheduler."""
    return Asha(search) if search.rungs else FIFOScheduler()
