"""Call a function with values that a search proposes, and stop early what does worse. The only file with ray.tune.

search ──values──► function on the head (a thin driver, whose own workers do the work) ──metrics by step──► ASHA: go on?
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

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# a trial that began after the last snapshot of a search whose driver is lost is not known to the next
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from cluster.domains import Domain, Range

HEAD = {"node:__internal_head__": 0.001}
"""A trial's driver takes no CPU, and runs where no spot node is taken back."""
STEP = "step"
WAIT_SECONDS = 1.0
"""Between two looks whether it is a trial's turn."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Search:
    """Which values are tried, and how long."""

    space: Mapping[str, Domain]
    method: Literal["optuna", "random", "grid"] = "optuna"
    num_trials: int = 12
    """Of a grid: what its points make."""
    points_per_range: int = 3
    """Of a grid."""
    metric: str = ""
    """That is to be high."""
    num_at_once: int = 1
    seed: int = 0
    num_steps: int = 0
    """Of a trial that is not stopped."""
    rungs: tuple[int, ...] = ()
    """Steps after which a trial may be stopped, each `reduction_factor` times those before."""
    reduction_factor: int = 4
    """Of the trials that came to a rung one in so many goes on."""

    def grid(self) -> list[dict[str, Any]]:
        """Every point once, in an order drawn from the seed: a trial is compared with those that came before it, and
        where each is better than the last, none would be stopped."""
        values = [domain.points(self.points_per_range) for domain in self.space.values()]
        points = [dict(zip(self.space, point, strict=True)) for point in itertools.product(*values)]
        random.Random(self.seed).shuffle(points)
        return points


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of one."""

    trial_id: str
    values: Mapping[str, Any]
    highest: Mapping[str, float] = field(default_factory=dict)
    """Of each metric that it reported, the highest."""
    error: str = ""
    is_open: bool = False
    """The search was stopped before it ended."""


class Measurements(TuneReportCallback):
    """Tells the search what ranks report, once they have measured: Tune ends a search at a report without its metric,
    and a checkpoint before the first evaluation (a node is to be taken away) is one."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.metric = metric

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if self.metric in metrics[0]:
            super().after_report(run_context, metrics, checkpoint)


class Ends(tune.Callback):
    """Tells of trials that have ended, however they did."""

    listener: ClassVar[Callable[[str], None]]
    """Of this process: Tune saves callbacks with a search, and one that goes on is to tell who is there now."""

    def tell(self, trial: Any) -> None:
        """Of one. Nobody's failure to listen is the trial's."""
        try:
            Ends.listener(trial.trial_id)
        except Exception as error:
            log.warning("of the end of trial %s could not be told: %s", trial.trial_id, error)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.tell(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.tell(trial)


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
    """`function(trial id, values, watcher)` for each trial; the same call again goes on where the sweep was.

    `watcher` is for a run of `cluster.run`, whose reports are then those of the trial. `path`: folder of the sweep
    in `filesystem`; `files`: what lies in it below `name`. `on_end` is told the id of each trial that ended. Ctrl-C
    ends the search and its trials.
    """
    working_folder, where = os.getcwd(), f"{path}/{name}"
    Ends.listener = on_end

    def trial(values: dict[str, Any]) -> None:
        trial_id = tune.get_context().get_trial_id()
        assert trial_id, "Tune calls this in a trial"
        if os.path.isdir(working_folder):  # relative paths lead there, and not from the folder that Tune gives a trial
            os.chdir(working_folder)
        with turn(where, search.num_at_once):
            function(trial_id, values, Measurements(search.metric))

    trainable = tune.with_resources(trial, HEAD)
    if can_go_on(files):
        log.info("going on with the sweep in %s", where)
        tuner = tune.Tuner.restore(
            where,
            trainable,
            resume_unfinished=True,
            resume_errored=True,
            param_space=domains(search),
            storage_filesystem=filesystem,
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=domains(search),
            tune_config=tune.TuneConfig(
                metric=search.metric,
                mode="max",
                num_samples=len(search.grid()) if search.method == "grid" else search.num_trials,
                max_concurrent_trials=search.num_at_once if search.method == "optuna" else None,
                search_alg=searcher(search),
                scheduler=scheduler(search),
                trial_dirname_creator=lambda one: one.trial_id,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[Ends()],
                verbose=0,
            ),
        )
    results = tuner.fit()
    kept = {one.trial_id: one for one in tune.ExperimentAnalysis(where, storage_filesystem=filesystem).trials or ()}
    return [made(result, kept) for result in results]


def can_go_on(files: Collection[str]) -> bool:
    """True if a search with these files in its folder can go on. Tune takes one that was lost before its first snapshot
    for one that is done."""
    return "tuner.pkl" in files and any(name.startswith("experiment_state-") for name in files)


@contextlib.contextmanager
def turn(where: str, num_at_once: int) -> Iterator[None]:
    """Within it, this is one of so many trials of the search `where`: Tune starts those that it restores all at once.
    All are on one machine, so files are locked, which a trial that is killed gives back."""
    folder = Path(tempfile.gettempdir(), f"snps3-{hashlib.blake2b(where.encode(), digest_size=6).hexdigest()}")
    folder.mkdir(exist_ok=True)
    locks = [filelock.FileLock(folder / f"{number}.lock") for number in range(num_at_once)]
    while not (held := next((lock for lock in locks if is_taken(lock)), None)):
        time.sleep(WAIT_SECONDS)
    try:
        yield
    finally:
        held.release()


def is_taken(lock: filelock.BaseFileLock) -> bool:
    """True if this process has it now."""
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return False
    return True


def report(metrics: Mapping[str, float]) -> None:
    """Metrics of the trial that this process runs, beside those that its ranks report."""
    tune.report(dict(metrics))


def made(result: Any, kept: Mapping[str, Any]) -> Trial:
    """A trial from what Tune tells of it. `kept`: Tune's own trials by id, which know more: files of reports begin anew
    where a sweep goes on in another Ray."""
    last = result.metrics or {}
    trial_id = str(last.get("trial_id") or os.path.basename(result.path))
    found = kept[trial_id]
    return Trial(
        trial_id=trial_id,
        values=dict(result.config or {}),
        highest={name: float(told["max"]) for name, told in found.metric_analysis.items()},
        error="" if result.error is None else str(result.error).strip().splitlines()[-1],
        is_open=not found.is_finished(),
    )


def domains(search: Search) -> dict[str, Any]:
    """The space as Tune has it."""
    if search.method == "grid":
        return {
            name: tune.choice(list(domain.points(search.points_per_range))) for name, domain in search.space.items()
        }
    return {name: as_tune(domain) for name, domain in search.space.items()}


def as_tune(domain: Domain) -> Any:
    """One part of it."""
    if not isinstance(domain, Range):
        return tune.choice(list(domain.values))
    if domain.is_integer:
        low, high = round(domain.low), round(domain.high) + 1  # Tune leaves out the upper end
        return tune.lograndint(low, high) if domain.is_log else tune.randint(low, high)
    return (tune.loguniform if domain.is_log else tune.uniform)(domain.low, domain.high)


def searcher(search: Search) -> Searcher | SearchAlgorithm:
    """Who proposes values."""
    if search.method == "optuna":
        return OptunaSearch(metric=search.metric, mode="max", seed=search.seed)
    points = search.grid() if search.method == "grid" else None
    return BasicVariantGenerator(points_to_evaluate=points, random_state=search.seed, max_concurrent=search.num_at_once)


class Asha(FIFOScheduler):
    """Asynchronous successive halving (Li et al., 2020): at a rung those of the best 1 / `reduction_factor` go on.

    What is not among them when it comes there ends, and does not wait for others that are worse: that would start a
    run twice. Tune's own compares with a percentile between two scores, so that of few trials more than that share go
    on. A trial that has taken its last step is left alone: its end would be cut off, and nothing saved. One that goes
    on after a lost driver is not compared at rungs that it had passed: its score there is not known any more.
    """

    def __init__(self, search: Search) -> None:
        super().__init__()
        self.search = search
        self.scores: dict[int, list[float]] = {rung: [] for rung in search.rungs}
        """Of the trials that came to each rung."""
        self.passed: dict[str, int] = {}
        """Rungs that each trial has passed."""

    def num_passed(self, result: Mapping[str, Any] | None) -> int:
        """Rungs that a trial has passed by then."""
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
    """Who stops trials."""
    return Asha(search) if search.rungs else FIFOScheduler()
