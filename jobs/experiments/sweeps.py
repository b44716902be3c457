"""Sweeps with Ray Tune: every trial is a full pre-training run; a probe on the validation split compares trials."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from cluster import trials
from cluster.connection import connected_ray
from cluster.domains import Domain
from cluster.trials import Search, Trial
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.experiments import space
from jobs.experiments.child_runs import StoppedError, parent_run, run_child
from jobs.experiments.sweep_table import Row, place, row_of, run_name, shown, summary
from jobs.launch import driver, lease, preflight
from jobs.run import run_files
from jobs.run.config import OptimConfig, PretrainConfig, SelectionConfig
from jobs.run.fields import as_dict, config_hash, flat, refuse_below
from jobs.run.run_identity import identity, with_values
from jobs.tracking import mlflow_runs, voice
from jobs.tracking.mlflow_runs import Tracker
from jobs.training.job import make_plan
from jobs.training.trainer import PROBES
from pipeline import storage
from pipeline.corpus.manifest import open_manifest
from pipeline.stream.epoch_plan import Plan

TABLE = "sweep.json"
MARKING_SECONDS = 10.0
"""Limit for a stopping sweep to mark its trials in MLflow."""
PROBE_FIELDS = (
    "data.manifest",
    "data.validation_split",
    "data.max_evaluation_clips",
    "selection.rerank",
    "selection.metric",
)
"""Fields that change what every probe measures."""
MASKING_FIELDS = (
    "seed",
    "data.train_split",
    "text.vocabulary",
    "text.vocabulary_size",
    "text.max_tokens",
    "text.significant_words",
    "text.word_families",
)
"""Fields that change which words the masked-word probe masks."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The varied fields, and the search over them."""

    space: Annotated[str | None, tyro.conf.Positional] = None
    """Preset of a space."""
    name: str
    """Name of the sweep: of its folder in `placement.storage`, and of its MLflow run."""
    vary: tuple[str, ...] = ()
    """FIELD=LOW..HIGH, with :log or :int, or FIELD=VALUE,VALUE; in addition to the preset, or instead of it."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    num_trials: int = 12
    """Ignored by a grid, which has one trial per point."""
    points_per_range: int = 3
    """For a grid."""
    scheduler: Literal["asha", "none", "pbt"] = "asha"
    """`asha` stops worse trials early, `none` stops none."""
    num_rungs: int = 2
    """Number of times at which `asha` may stop a trial."""
    reduction_factor: int = Search.reduction_factor
    """At each rung, one trial in this many continues, for this many times the steps."""
    metric: str = PROBES[0]
    """Metric on the validation split that compares trials."""
    num_at_once: int | None = None
    """Concurrent trials; None: as many as fit on the cluster when the sweep starts."""
    seed: int = 0
    """Seed of the search."""

    def __post_init__(self) -> None:
        if self.scheduler == "pbt":
            raise ValueError(
                "population-based training copies checkpoints from trial to trial, and Ray Train 2.60 does not hand "
                "its checkpoints to Tune; take --scheduler asha"
            )
        if self.space is None and not self.vary:
            raise ValueError(f"name a space ({', '.join(space.SPACES)}) or what to --vary")
        if self.space is not None and self.space not in space.SPACES:
            raise ValueError(f"there is no space {self.space!r}; there are {', '.join(space.SPACES)}, or say --vary")
        refuse_below(self, "", num_trials=1, points_per_range=2, num_rungs=1, reduction_factor=2)
        if self.num_at_once is not None and self.num_at_once < 1:
            raise ValueError(f"num_at_once must be at least 1, got {self.num_at_once}; None takes what room there is")
        if self.metric not in PROBES:
            raise ValueError(f"metric must be one of {', '.join(PROBES)}, which every run logs, got {self.metric!r}")

    @property
    def domains(self) -> dict[str, Domain]:
        """The domain of each varied field."""
        return space.parse((*(space.SPACES[self.space] if self.space else ()), *self.vary))


def sweep(config: SweepConfig, base: PretrainConfig) -> list[Row]:
    """Run the trials and return them, the best first.

    Raise ValueError for an invalid sweep, StoppedError if the sweep was stopped before its end.
    """
    domains, placement = config.domains, base.placement
    base = dataclasses.replace(base, selection=selected_by(config.metric, base.selection))
    corners = space.corners(domains, flat(as_dict(base)), functools.partial(with_values, base))
    refuse_unmeasured(config.metric, domains, kind=base.task.kind, words_weight=base.objective.masked_words_cross)
    runs = (base, *(corner.run for corner in corners))
    num_steps, *lengths = (
        steps_of(run.optim, functools.partial(make_plan, run.data, run.optim.global_batch, run.seed)) for run in runs
    )
    refuse_other_rungs(config, [(c.field, length) for c, length in zip(corners, lengths, strict=True)], num_steps)
    rungs = rungs_of(config, num_steps)
    manifest, machine = open_manifest(base.data.manifest), preflight.this_machine()
    refuse_problems(
        (f"{corner.field} cannot be {shown(corner.value)}", preflight.value_problems(corner.run, manifest, machine))
        for corner in corners
    )
    base = dataclasses.replace(base, selection=evaluated_at(rungs, base.selection, base.optim.warmup_steps))
    mlflow_runs.refuse_unreachable(placement.storage)
    folder = storage.absolute(f"{placement.storage}/{config.name}")
    sweep_hash = identity_hash(config, identity(base, manifest.hash))
    refuse_other_sweep(folder, sweep_hash)
    voice.keep_log_in(folder)
    with lease.held(folder) as held, connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True):
        driver.refuse_scattered_metrics(placement.storage)
        search = Search(
            space=domains,
            method=config.search,
            num_trials=config.num_trials,
            points_per_range=config.points_per_range,
            metric=config.metric,
            num_at_once=driver.runs_at_once(config.num_at_once, placement),
            seed=config.seed,
            num_steps=num_steps,
            rungs=rungs,
            reduction_factor=config.reduction_factor,
        )
        run_files.write_json(f"{folder}/{run_files.IDENTITY}", {"hash": sweep_hash})
        params = flat(dataclasses.asdict(config))
        with parent_run(placement, config.name, identity_hash=sweep_hash, params=params) as parent:
            outcomes = run_trials(functools.partial(with_values, base), search, config.name, placement.storage, parent)
            held.check()
            return tabulate(outcomes, config, folder, parent)


def run_trials(
    make: Callable[..., PretrainConfig], search: Search, sweep_name: str, storage_path: str, parent: Tracker
) -> list[Trial]:
    """Run the trials of a search, and return all of them. Raise StoppedError if some did not end.

    `make`: returns the run of a trial from values and a name.
    """
    filesystem, inner = storage.arrow_filesystem(storage_path)
    stop_like_ctrl_c(before=functools.partial(mlflow_runs.end_open, parent.uri, parent.run_id))
    outcomes = trials.run_trials(
        functools.partial(
            run_trial,
            make=make,
            sweep_name=sweep_name,
            parent=parent.run_id,
            server=os.environ.get(mlflow_runs.URI_VARIABLE),
        ),
        search,
        name=sweep_name,
        path=inner,
        filesystem=filesystem,
        files=storage.list_files(storage.absolute(f"{storage_path}/{sweep_name}")),
        on_end=functools.partial(mlflow_runs.end_open, parent.uri, parent.run_id),
    )
    if stopped := [trial.trial_id for trial in outcomes if trial.is_open]:
        for trial_id in stopped:
            mlflow_runs.end_open(parent.uri, parent.run_id, trial_id, has_failed=True)
        raise StoppedError(f"{sweep_name} was stopped")
    return outcomes


def tabulate(done: Iterable[Trial], config: SweepConfig, folder: str, parent: Tracker) -> list[Row]:
    """Return the trials as rows, the best first; write them to the folder of the sweep, and their summary to MLflow."""
    rows = sorted((row_of(trial, config.name, config.metric) for trial in done), key=place)
    run_files.write_json(f"{folder}/{TABLE}", [dataclasses.asdict(row) for row in rows])
    parent.log(summary(rows), 0)
    return rows


def stop_like_ctrl_c(before: Callable[[], None]) -> None:
    """Make SIGTERM, as from `ray job stop`, end the sweep like Ctrl-C, which Tune handles, after a call of `before`.

    `before` marks the trials as KILLED while they run: a trial that ends with its worker would mark itself as FAILED.
    It runs on a separate thread, since the interrupted one may hold locks of MLflow's client, and has
    `MARKING_SECONDS`.
    """

    def stop() -> None:
        marking = threading.Thread(target=before, daemon=True)
        marking.start()
        marking.join(MARKING_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop, daemon=True).start())


def run_trial(
    trial_id: str,
    values: Mapping[str, Any],
    watcher: Any,
    *,
    make: Callable[..., PretrainConfig],
    sweep_name: str,
    parent: str,
    server: str | None,
) -> None:
    """Pre-train with these values and report to Tune. A run that diverges reports scores of 0.

    `server`: MLflow server of the sweep, if its command named one; the environment of a trial is that of its node.
    """
    if server:
        os.environ[mlflow_runs.URI_VARIABLE] = server
    config = make(values, name=run_name(sweep_name, trial_id))
    tags = {mlflow_runs.PARENT: parent, "sweep": sweep_name, "trial": trial_id}
    outcome = run_child(config, watchers=[watcher], tags=tags)
    folder = storage.absolute(f"{config.placement.storage}/{config.name}")
    if outcome.status == "stopped":
        raise RuntimeError(f"{config.name} was asked to stop; a sweep is stopped as a whole, and its trial goes on")
    if outcome.status == "diverged":
        scores: dict[str, float] = dict.fromkeys(PROBES, 0.0) | {"diverged": 1}
    else:
        outcome.unwrap()
        scores = run_files.read_json(f"{folder}/best/{run_files.PROGRESS}")["probes"] | {"finished": 1}
    trials.report(scores | {trials.STEP: run_files.committed_step(folder)})


# --- checks before the start ------------------------------------------------------------------------------------------


def selected_by(metric: str, selection: SelectionConfig) -> SelectionConfig:
    """Return a selection that keeps the weights of the highest `metric`, which compares trials."""
    if selection.metric != metric:
        print(f"trials keep their weights of the highest {metric}, by which they are compared")
    return dataclasses.replace(selection, metric=metric)


def refuse_problems(problems: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Raise ValueError for the first value with a problem that would stop a run at its start, such as a missing
    file."""
    for refusal, lines in problems:
        if lines:
            raise ValueError(f"{refusal}: {lines[0]}")


def steps_of(optim: OptimConfig, plan: Callable[[], Plan]) -> int:
    """Return the steps of a run; with `num_epochs`, the `plan` of corpus and batch gives the steps of its epochs."""
    return optim.num_steps if optim.num_epochs is None else min(optim.num_steps, plan().first_step(optim.num_epochs))


def refuse_other_rungs(config: SweepConfig, lengths: Iterable[tuple[str, int]], num_steps: int) -> None:
    """Raise ValueError if trials would reach the rungs after different shares of their steps.

    `lengths`: field and steps of a run at each corner; `num_steps`: steps of the base.
    """
    for name, length in lengths if config.scheduler == "asha" else ():
        if name == "selection.evaluate_every" or length != num_steps:
            raise ValueError(f"{name} cannot be varied: --scheduler asha compares trials after equal steps; take none")


def rungs_of(config: SweepConfig, num_steps: int) -> tuple[int, ...]:
    """Return the steps after which a trial of `num_steps` may be stopped. Raise ValueError for too few steps."""
    if config.scheduler == "none":
        return ()
    steps = num_steps // config.reduction_factor**config.num_rungs
    if steps < 1:
        raise ValueError(
            f"--scheduler asha looks first after {num_steps} / "
            f"{config.reduction_factor}^{config.num_rungs} steps, less than one; take more steps or fewer --num-rungs"
        )
    return tuple(steps * config.reduction_factor**number for number in range(config.num_rungs))


def evaluated_at(rungs: tuple[int, ...], selection: SelectionConfig, warmup_steps: int) -> SelectionConfig:
    """Return a selection that evaluates also at the rungs, where trials are compared."""
    if early := [step for step in rungs if step <= warmup_steps]:
        print(f"at step {early[-1]} the learning rate still rises (optim.warmup_steps), and scores may be chance")
    if not (more := [step for step in rungs if not selection.is_due(step)]):
        return selection
    print(f"trials are evaluated after steps {', '.join(map(str, more))} too: they may be stopped there")
    return dataclasses.replace(selection, evaluate_also=tuple(sorted({*selection.evaluate_also, *more})))


def refuse_unmeasured(metric: str, varied: Mapping[str, Domain], *, kind: str, words_weight: float) -> None:
    """Raise ValueError if some trial would not measure `metric`, or would measure it differently.

    `kind`: of the task; `words_weight`: weight of the loss `masked_words_cross`, if it is not varied.
    """
    if kind != "captions":
        raise ValueError(f"runs of task.kind={kind} do not measure {metric}; sweeps are of pre-training")
    fixed = PROBE_FIELDS + (MASKING_FIELDS if metric == PROBES[1] else ())
    if other := [name for name in varied if name in fixed]:
        raise ValueError(
            f"{other[0]} cannot be varied: {metric}, by which trials are compared, would ask each something else; "
            "set it for all after --"
        )
    weight = "objective.masked_words_cross"
    if metric == PROBES[1] and 0 in (varied[weight].corners if weight in varied else [words_weight]):
        raise ValueError(
            f"a run with {weight}=0 fills in no words and does not measure {metric}; take another --metric"
        )


def identity_hash(config: SweepConfig, fields: Mapping[str, Any]) -> str:
    """Return the hash of a sweep's options and of the base, without placement: sweeps of equal hash are the same. It
    includes `num_at_once`, which Tune keeps in a resumed search.

    `fields`: identity of the base.
    """
    return config_hash({f"sweep.{name}": value for name, value in dataclasses.asdict(config).items()} | dict(fields))


def refuse_other_sweep(folder: str, sweep_hash: str) -> None:
    """Raise ValueError if the folder holds a sweep with another hash."""
    path = f"{folder}/{run_files.IDENTITY}"
    if storage.exists(path) and run_files.read_json(path)["hash"] != sweep_hash:
        raise ValueError(f"{folder} holds another sweep; take another --name, or the same options to go on with it")
