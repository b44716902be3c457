"""Sweep masking ratios, loss weights and more: `ray job submit -- python jobs/sweep.py SPACE --name NAME [PRESET …]`.

python jobs/sweep.py masking_ratio --name ratio                                    a ready space, on `tiny`
python jobs/sweep.py --name mine --vary optim.lr=1e-4..3e-3:log masking.strategy=mssm,mlm
python jobs/sweep.py loss_weights --name weights -- tiny --optim.num-steps 200     what follows -- is as for pretrain.py

Every trial is a pre-training run of its own, in its own folder and MLflow run below that of the sweep. Trials are
compared by a probe on the validation split, never by the weighted loss. The same command again goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import tyro

from cluster import trials
from cluster.connection import connected_ray
from cluster.domains import Domain
from cluster.run import WORKER_ENVIRONMENT
from cluster.trials import Search, Trial
from jobs.command_line import parsing
from jobs.experiments import space
from jobs.launch import driver, lease, preflight
from jobs.run import run_files
from jobs.run.config import PretrainConfig, in_steps
from jobs.run.fields import config_hash, flat
from jobs.run.run_identity import config_of, identity, with_values
from jobs.tracking import mlflow_runs
from jobs.training.job import make_plan
from jobs.training.step import DivergedError
from jobs.training.trainer import PROBES
from pipeline import storage
from pipeline.corpus.manifest import Manifest, read_manifest

TABLE = "sweep.json"
ASKED = ("data.manifest", "data.validation_split", "data.max_evaluation_clips", "selection.rerank", "selection.metric")
"""Fields that change what the probe asks."""
MASKED = (
    "seed",
    "data.train_split",
    "text.vocabulary",
    "text.vocabulary_size",
    "text.max_tokens",
    "text.significant_words",
    "text.word_families",
)
"""Fields that change which words it hides."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What is varied, and how it is searched."""

    space: Annotated[str | None, tyro.conf.Positional] = None
    """A ready space."""
    name: str
    """Of the sweep: its folder in `placement.storage`, and its MLflow run."""
    vary: tuple[str, ...] = ()
    """FIELD=LOW..HIGH, with :log or :int, or FIELD=VALUE,VALUE; beside the ready space, or in place of it."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    num_trials: int = 12
    """Of a grid: what its points make."""
    points_per_range: int = 3
    """Of a grid."""
    scheduler: Literal["asha", "none", "pbt"] = "asha"
    """`asha` stops what does worse early, `none` nothing."""
    num_rungs: int = 2
    """Times at which `asha` may stop a trial."""
    reduction_factor: int = Search.reduction_factor
    """At each of them one trial in so many goes on, to so many times the steps."""
    metric: str = PROBES[0]
    """Of the validation split, by which trials are compared."""
    num_at_once: int | None = None
    """Trials at a time; None: as many as the cluster has room for when the sweep begins."""
    seed: int = 0
    """Of the search."""

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
        for name, least in {"num_trials": 1, "points_per_range": 2, "num_rungs": 1, "reduction_factor": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.num_at_once is not None and self.num_at_once < 1:
            raise ValueError(f"num_at_once must be at least 1, got {self.num_at_once}; None takes what room there is")
        if self.metric not in PROBES:
            raise ValueError(f"metric must be one of {', '.join(PROBES)}, which every run logs, got {self.metric!r}")

    @property
    def domains(self) -> dict[str, Domain]:
        """What is varied."""
        return space.parse((*(space.SPACES[self.space] if self.space else ()), *self.vary))


Status = Literal["finished", "stopped", "diverged", "failed"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial in the table of a sweep."""

    name: str
    """Of its run."""
    values: Mapping[str, Any]
    score: float | None
    """The best that it reported; None where it diverged or failed."""
    num_steps: int
    status: Status
    error: str = ""


def sweep(config: SweepConfig, base: PretrainConfig) -> list[Row]:
    """Its trials, the best first; none if somebody stopped it before its end. ValueError for what cannot be swept."""
    found = config.domains
    base = selected_by(config.metric, base)
    corners = space.corners(found, base)
    refuse_unmeasured(config.metric, found, base)
    num_steps = steps_of(base)
    refuse_other_rungs(config, corners, num_steps)
    rungs = rungs_of(config, num_steps)
    manifest = read_manifest(base.data.manifest)
    refuse_what_cannot_run(corners, manifest)
    base = evaluated_at(rungs, base)
    path = base.placement.storage
    mlflow_runs.refuse_unreachable(path)
    folder = storage.absolute(f"{path}/{config.name}")
    sweep_hash = identity_hash(config, base, manifest.hash)
    refuse_other_sweep(folder, sweep_hash)
    with lease.held(folder) as held, connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True):
        driver.refuse_scattered_metrics(path)
        placement = base.placement
        num_at_once = driver.runs_at_once(config.num_at_once, placement)
        run_files.write_json(f"{folder}/{run_files.IDENTITY}", {"hash": sweep_hash})
        parent = mlflow_runs.open_run(
            path,
            experiment=placement.experiment,
            name=config.name,
            identity_hash=sweep_hash,
            params=flat(dataclasses.asdict(config)),
        )
        search = Search(
            space=found,
            method=config.search,
            num_trials=config.num_trials,
            points_per_range=config.points_per_range,
            metric=config.metric,
            num_at_once=num_at_once,
            seed=config.seed,
            num_steps=num_steps,
            rungs=rungs,
            reduction_factor=config.reduction_factor,
        )
        filesystem, inner = storage.arrow_filesystem(path)
        status = "FAILED"
        stop_like_ctrl_c()
        try:
            done = trials.run_trials(
                functools.partial(
                    one_trial,
                    base=base,
                    sweep_name=config.name,
                    parent=parent.run_id,
                    server=os.environ.get(mlflow_runs.URI_VARIABLE),
                ),
                search,
                name=config.name,
                path=inner,
                filesystem=filesystem,
                files=storage.list_files(folder),
                on_end=functools.partial(mlflow_runs.end_open, parent.uri, parent.run_id),
            )
            if stopped := [one.trial_id for one in done if one.is_open]:
                for trial_id in stopped:
                    mlflow_runs.end_open(parent.uri, parent.run_id, trial_id, has_failed=True)
                status = "KILLED"
                return []
            held.check()
            rows = sorted((row_of(one, config) for one in done), key=place)
            run_files.write_json(f"{folder}/{TABLE}", [dataclasses.asdict(row) for row in rows])
            parent.log(summary(rows), 0)
            status = "FINISHED"
        finally:
            held.check()
            mlflow_runs.end_open(parent.uri, parent.run_id)
            parent.finish(status)
    return rows


def stop_like_ctrl_c() -> None:
    """SIGTERM, as of `ray job stop`, ends the sweep as Ctrl-C does, which Tune takes."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def one_trial(
    trial_id: str,
    values: Mapping[str, Any],
    watcher: Any,
    *,
    base: PretrainConfig,
    sweep_name: str,
    parent: str,
    server: str | None,
) -> None:
    """Pre-trains with these values. A run that diverges ends, and is no result. `server`: that of the sweep's own
    MLflow run, if its command named one: a trial has the environment of its node."""
    if server:
        os.environ[mlflow_runs.URI_VARIABLE] = server
    config = with_values(base, values, name=run_name(sweep_name, trial_id))
    tags = {mlflow_runs.PARENT: parent, "sweep": sweep_name, "trial": trial_id}
    folder = storage.absolute(f"{base.placement.storage}/{config.name}")
    try:
        results = driver.pretrain(config, watchers=[watcher], tags=tags)
    except DivergedError:  # told by the run itself
        trials.report(dict.fromkeys(PROBES, 0.0) | {trials.STEP: run_files.committed_step(folder), "diverged": 1})
        return
    if not results:
        raise RuntimeError(f"{config.name} was asked to stop; a sweep is stopped as a whole, and its trial goes on")
    best = run_files.read_json(f"{folder}/best/{run_files.PROGRESS}")
    trials.report(best["probes"] | {trials.STEP: run_files.committed_step(folder), "finished": 1})


def run_name(sweep_name: str, trial_id: str) -> str:
    """Of the run of a trial."""
    return f"{sweep_name}-{trial_id}"


def selected_by(metric: str, base: PretrainConfig) -> PretrainConfig:
    """`base`, which keeps the weights that the probe finds best: those that its trials are compared by."""
    if base.selection.metric != metric:
        print(f"trials keep their weights of the highest {metric}, by which they are compared")
    return dataclasses.replace(base, selection=dataclasses.replace(base.selection, metric=metric))


def refuse_what_cannot_run(corners: Sequence[tuple[str, Any, PretrainConfig]], manifest: Manifest) -> None:
    """ValueError for a value of which a run would say before its start that it cannot be: a file that is not there."""
    machine = preflight.this_machine()
    for name, corner, made in corners:
        if found := preflight.value_problems(made, manifest, machine):
            raise ValueError(f"{name} cannot be {shown(corner)}: {found[0]}")


def steps_of(config: PretrainConfig) -> int:
    """Of a run, whose epochs have as many as its corpus and its batch make."""
    if config.optim.num_epochs is None:
        return config.optim.num_steps
    plan = make_plan(config.data, config.optim.global_batch, config.seed)
    return in_steps(config.optim, plan.first_step).num_steps


def refuse_other_rungs(config: SweepConfig, corners: Sequence[tuple[str, Any, PretrainConfig]], num_steps: int) -> None:
    """ValueError if trials would come to the times at which they may be stopped with other shares of their steps."""
    for name, _, made in corners if config.scheduler == "asha" else ():
        if name == "selection.evaluate_every" or steps_of(made) != num_steps:
            raise ValueError(f"{name} cannot be varied: --scheduler asha compares trials after equal steps; take none")


def rungs_of(config: SweepConfig, num_steps: int) -> tuple[int, ...]:
    """Steps after which a trial of `num_steps` may be stopped. ValueError if there are too few for the rungs."""
    if config.scheduler == "none":
        return ()
    steps = num_steps // config.reduction_factor**config.num_rungs
    if steps < 1:
        raise ValueError(
            f"--scheduler asha looks first after {num_steps} / "
            f"{config.reduction_factor}^{config.num_rungs} steps, less than one; take more steps or fewer --num-rungs"
        )
    return tuple(steps * config.reduction_factor**number for number in range(config.num_rungs))


def evaluated_at(rungs: tuple[int, ...], base: PretrainConfig) -> PretrainConfig:
    """`base`, evaluated also where trials may be stopped, since nothing can be told of them else."""
    if early := [step for step in rungs if step <= base.optim.warmup_steps]:
        print(f"at step {early[-1]} the learning rate still rises (optim.warmup_steps), and scores may be chance")
    if not (more := [step for step in rungs if not base.selection.is_due(step)]):
        return base
    print(f"trials are evaluated after steps {', '.join(map(str, more))} too: they may be stopped there")
    also = tuple(sorted({*base.selection.evaluate_also, *more}))
    return dataclasses.replace(base, selection=dataclasses.replace(base.selection, evaluate_also=also))


def refuse_unmeasured(metric: str, varied: Mapping[str, Domain], base: PretrainConfig) -> None:
    """ValueError if some trial would not measure what trials are compared by, or not the same way."""
    if base.task.kind != "captions":
        raise ValueError(f"runs of task.kind={base.task.kind} do not measure {metric}; sweeps are of pre-training")
    fixed = ASKED + (MASKED if metric == PROBES[1] else ())
    if other := [name for name in varied if name in fixed]:
        raise ValueError(
            f"{other[0]} cannot be varied: {metric}, by which trials are compared, would ask each something else; "
            "set it for all after --"
        )
    weight = "objective.masked_words_cross"
    weights = varied[weight].corners if weight in varied else [base.objective.masked_words_cross]
    if metric == PROBES[1] and 0 in weights:
        raise ValueError(
            f"a run with {weight}=0 fills in no words and does not measure {metric}; take another --metric"
        )


def identity_hash(config: SweepConfig, base: PretrainConfig, manifest_hash: str) -> str:
    """What makes two sweeps the same: all but where they run. Tune keeps how many trials it runs at a time."""
    own = {f"sweep.{name}": value for name, value in dataclasses.asdict(config).items()}
    return config_hash(own | identity(base, manifest_hash))


def refuse_other_sweep(folder: str, wanted: str) -> None:
    """ValueError if the folder holds another sweep than that of the hash `wanted`."""
    path = f"{folder}/{run_files.IDENTITY}"
    if storage.exists(path) and run_files.read_json(path)["hash"] != wanted:
        raise ValueError(f"{folder} holds another sweep; take another --name, or the same options to go on with it")


def row_of(trial: Trial, config: SweepConfig) -> Row:
    """A trial as the table has it."""
    status = "diverged" if trial.highest.get("diverged") else "failed" if trial.error else "stopped"
    if status == "stopped" and trial.highest.get("finished"):
        status = "finished"
    return Row(
        name=run_name(config.name, trial.trial_id),
        values=trial.values,
        score=trial.highest.get(config.metric) if status in ("stopped", "finished") else None,
        num_steps=int(trial.highest.get(trials.STEP, 0)),
        status=status,
        error=trial.error,
    )


def place(row: Row) -> tuple[float, str]:
    """By which trials are ordered: the best first, those without a score last."""
    return (1.0 if row.score is None else -row.score), row.name


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """The sweep in numbers."""
    counts = {f"num_{status}": float(sum(row.status == status for row in rows)) for status in get_args(Status)}
    best = [row.score for row in rows if row.score is not None]
    return counts | {"num_steps": float(sum(row.num_steps for row in rows))} | ({"best": best[0]} if best else {})


def describe(rows: Sequence[Row], config: SweepConfig, base: Sequence[str], selection: Mapping[str, Any]) -> str:
    """The table, and how the best is run once more. `base`: the preset and the fields of all trials, as words;
    `selection`: fields that the sweep set in all of them, since each time that a run is evaluated may be its best."""
    lines = [f"{config.metric}, trials by their best:"]
    for row in rows:
        score = "     -" if row.score is None else f"{row.score:6.3f}"
        values = " ".join(f"{name}={shown(value)}" for name, value in row.values.items())
        lines.append(f"{score}  {row.status:9s} {row.num_steps:6d} steps  {row.name}  {values}  {row.error}".rstrip())
    if rows and rows[0].score is not None:
        preset, *fields = base
        words = [preset, "--name", f"{config.name}-best", *fields]
        values = {**selection, **rows[0].values}
        words += [word for name, value in values.items() for word in parsing.option(name, value)]
        lines.append(f"the best once more: python jobs/pretrain.py {shlex.join(words)}")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value of the table."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def changed_selection(base: PretrainConfig, best: Row) -> dict[str, Any]:
    """How the best trial was evaluated where the sweep changed it: an evaluation more may have been its best."""
    if best.score is None:
        return {}
    made = config_of(storage.absolute(f"{base.placement.storage}/{best.name}")).selection
    return {
        f"selection.{name}": getattr(made, name)
        for name in ("metric", "evaluate_also")
        if getattr(made, name) != getattr(base.selection, name)
    }
