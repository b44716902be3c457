"""The paper's ablations over seeds: `ray job submit -- python jobs/ablate.py III --name NAME [-- PRESET …]`.

II    P3E (a network for text, another for text with video) against SNP (one for both), with MLM and GVTM
III   MLM or MSSM, with GVTM alone or with LVWM

Every row and seed is a run of its own; as many at a time as the cluster has room for. The same command goes on, and
with more seeds keeps those that are done: NAME/cells.json has what came out of each, and is all that is needed to go on
elsewhere. NAME/table.md has means, 95 % intervals over seeds, and differences seed by seed of rows that differ in one
thing, and to the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import scipy.stats
import tyro

from cluster.connection import connected_ray
from cluster.run import WORKER_ENVIRONMENT
from jobs.experiments.seeds import Found, over_seeds, read_cells, write_cells
from jobs.launch import driver, lease, preflight
from jobs.run import recipes
from jobs.run.config import TASK_FILES, PretrainConfig
from jobs.run.fields import config_hash, flat
from jobs.run.run_identity import config_of, identity, with_values
from jobs.tracking import mlflow_runs
from pipeline import storage
from pipeline.corpus.manifest import read_manifest

Values = Mapping[str, Any]
GVTM_ALONE = MappingProxyType({"objective.lvwm": 0.0})
ROWS: Mapping[str, Mapping[str, Values]] = MappingProxyType(
    {
        "II": {
            "P3E": {"model.cross_network": "separate", "masking.strategy": "mlm", **GVTM_ALONE},
            "SNP": {"model.cross_network": "shared", "masking.strategy": "mlm", **GVTM_ALONE},
        },
        "III": {
            "MLM, GVTM": {"masking.strategy": "mlm", **GVTM_ALONE},
            "MSSM, GVTM": {"masking.strategy": "mssm", **GVTM_ALONE},
            "MLM, GVTM and LVWM": {"masking.strategy": "mlm"},
            "MSSM, GVTM and LVWM": {"masking.strategy": "mssm"},
        },
    }
)
"""Of each table its rows, and what is set in them; the first is what the others are compared with."""
PAPER: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "II": {"P3E": "18.3 / 22.7", "SNP": "21.7 / 25.0"},
        "III": {
            "MLM, GVTM": "21.7 / 25.0",
            "MSSM, GVTM": "20.9 / 27.2",
            "MLM, GVTM and LVWM": "21.2 / 25.5",
            "MSSM, GVTM and LVWM": "23.7 / 26.6",
        },
    }
)
"""R@1 on MSR-VTT 7K after fine-tuning, with ResNet-50 and with PVT: single runs."""
WITHIN_DATA_WAIT = "seconds/plan"
"""Counted there too."""
RECALLS = tuple(f"test/{way}/r{k}" for way in ("t2v", "v2t") for k in (1, 5, 10))
PRIMARY = "mean recall"
SHOWN: Mapping[str, str] = MappingProxyType(
    {
        PRIMARY: PRIMARY,
        "text to video R@1": "test/t2v/r1",
        "order in time R@1": "temporal/t2v/group_r1",
        "retrieval, fine-tuned R@1": "retrieval/test/t2v/r1",
        "answers, fine-tuned": "qa/test/accuracy",
        "parameters": "num_parameters",
        "seconds per step": "seconds_per_step",
        "MiB per worker": "memory_mib",
    }
)
"""What a table shows, where runs have it."""
COMPARED = (PRIMARY, "retrieval/test/t2v/r1", "qa/test/accuracy")
"""Of which a table has the differences between rows."""
CELLS = "cells.json"
DOWNSTREAM = MappingProxyType({"retrieval": "tiny_retrieval", "qa": "tiny_qa"})


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Which table, and how often."""

    table: Annotated[Literal["II", "III"], tyro.conf.Positional]
    """Of the paper."""
    name: str
    """Of the ablation: its folder in `placement.storage`, and its MLflow run."""
    num_seeds: int = 5
    downstream_seeds: tuple[int, ...] = ()
    """Seeds whose runs are fine-tuned too, for retrieval and question answering on the embedded corpus."""
    downstream_steps: int | None = None
    """Of each fine-tuning, with one evaluation at the end; None: as in its recipe."""
    num_at_once: int | None = None
    """Runs at a time; None: as many as the cluster has room for."""

    def __post_init__(self) -> None:
        for name in ("downstream_steps", "num_at_once"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}; leave it out for the default")
        if self.num_seeds < 2:
            raise ValueError(f"num_seeds must be at least 2, got {self.num_seeds}: one run shows no difference")
        if wrong := sorted(set(self.downstream_seeds) - set(range(self.num_seeds))):
            raise ValueError(f"downstream_seeds must be of the seeds 0 to {self.num_seeds - 1}, got {wrong[0]}")


def ablate(config: AblateConfig, base: PretrainConfig) -> tuple[str, dict[tuple[str, int], str]]:
    """The table in Markdown, which is also in the folder of the ablation, and why each cell failed that did. ValueError
    for what cannot be run."""
    refuse_no_captions(config, base)
    refuse_equal_rows(config, base)
    path, placement = base.placement.storage, base.placement
    folder, fields = storage.absolute(f"{path}/{config.name}"), identity_of(config, base)
    found = read_cells(f"{folder}/{CELLS}", fields)
    refuse_other_fine_tuning(config, base, found)
    mlflow_runs.refuse_unreachable(path)
    with lease.held(folder) as held, connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True):
        found = read_cells(f"{folder}/{CELLS}", fields)  # again: the driver before may have added some meanwhile
        driver.refuse_scattered_metrics(path)
        num_at_once = driver.runs_at_once(config.num_at_once, placement)
        parent = mlflow_runs.open_run(
            path,
            experiment=placement.experiment,
            name=config.name,
            identity_hash=config_hash(fields),
            params=flat(dataclasses.asdict(config)),
        )
        runs = Runs()
        run = functools.partial(one_cell, config=config, base=base, parent=parent.run_id, runs=runs)
        wanted = [(row, seed) for seed in range(config.num_seeds) for row in ROWS[config.table]]
        failed: dict[tuple[str, int], str] = {}
        status = "FAILED"
        try:
            with stopped_by_signals(runs), contextlib.ExitStack() as last:
                pool = ThreadPoolExecutor(num_at_once)
                last.callback(pool.shutdown, cancel_futures=True)  # where nothing can be noted, no cell begins
                begun = {pool.submit(run, cell): cell for cell in wanted if is_missing(cell, config, found)}
                for future in as_completed(begun):  # as they come: an ablation takes hours
                    note(begun[future], future.result(), found, failed)
                    held.check()
                    write_cells(f"{folder}/{CELLS}", fields, found)
                    storage.write_bytes_atomic(f"{folder}/table.md", table(config, found, failed).encode())
            if runs.is_stopped:
                raise StoppedError
            parent.log(means(config, found), 0)
            status = "FAILED" if failed else "FINISHED"
        except StoppedError:
            status = "KILLED"
            raise
        finally:
            held.check()
            mlflow_runs.end_open(parent.uri, parent.run_id)
            parent.finish(status)
    return table(config, found, failed), failed


def refuse_no_captions(config: AblateConfig, base: PretrainConfig) -> None:
    """ValueError if the runs are not pre-training, or their fine-tuning has nothing to ask."""
    if base.task.kind != "captions":
        raise ValueError(f"runs of task.kind={base.task.kind} have no {PRIMARY}; ablations are of pre-training")
    for recipe in DOWNSTREAM.values() if config.downstream_seeds else ():
        task = recipes.RECIPES[recipe](base, "").task
        for name in TASK_FILES:
            if path := getattr(task, name):
                storage.check_readable(storage.absolute(path))


def refuse_equal_rows(config: AblateConfig, base: PretrainConfig) -> None:
    """ValueError if rows that a table tells apart would train the same losses."""
    objective = base.objective
    if config.table == "III" and objective.masked_words_text == objective.masked_words_cross == 0:
        raise ValueError("without masked words MLM and MSSM are one: objective.masked_words_text and _cross are both 0")
    made = {row: with_values(base, values, name="row") for row, values in ROWS[config.table].items()}
    for one, other in itertools.combinations(made, 2):
        if made[one] == made[other]:
            raise ValueError(f"“{one}” and “{other}” would be the same run: objective.lvwm is {objective.lvwm:g}")


def note(
    cell: tuple[str, int],
    outcome: tuple[Mapping[str, float], Exception | None],
    found: dict[tuple[str, int], dict[str, float]],
    failed: dict[tuple[str, int], str],
) -> None:
    """What became of a cell: what it found as far as it came, and why it ended before, if it was not asked to. The
    others go on."""
    results, error = outcome
    if results:
        found[cell] = {**found.get(cell, {}), **results}
    if error and not isinstance(error, StoppedError):
        failed[cell] = str(error) or type(error).__name__


class StoppedError(Exception):
    """A run was asked to stop, and left a checkpoint."""


class Runs:
    """The runs that are under way. Asked to stop, each writes a checkpoint and ends, and no other begins."""

    def __init__(self) -> None:
        self.folders: set[str] = set()
        self.is_stopped = False

    def results(self, config: PretrainConfig, tags: Mapping[str, str]) -> dict[str, float]:
        """Those of a run to its end. StoppedError if it, or all, were asked to stop."""
        folder = storage.absolute(f"{config.placement.storage}/{config.name}")
        self.folders.add(folder)
        found = {} if self.is_stopped else driver.pretrain(config, tags=tags, is_stopped=lambda: self.is_stopped)
        self.folders.discard(folder)
        if not found:
            raise StoppedError
        return numbers(found, preflight.num_cpus(config.placement))

    def stop(self, *_: Any) -> None:
        """Asks them, as a signal does."""
        self.is_stopped = True
        print("asked to stop: waiting for the checkpoints", file=sys.stderr, flush=True)
        for folder in list(self.folders):
            driver.ask_to_stop(folder)


def stopped_by_signals(runs: Runs) -> contextlib.AbstractContextManager[None]:
    """Within it, SIGTERM (as from `ray job stop`) and Ctrl-C stop the runs, whose threads no signal reaches."""
    return driver.answering_signals(runs.stop, signal.SIGTERM, signal.SIGINT)


def refuse_other_fine_tuning(config: AblateConfig, base: PretrainConfig, found: Found) -> None:
    """ValueError if kept cells were fine-tuned for other steps than those to come will be."""
    for task, recipe in DOWNSTREAM.items():
        wanted = config.downstream_steps or recipes.RECIPES[recipe](base, "").optim.num_steps
        for (row, seed), results in found.items():
            steps = results.get(f"{task}/num_steps", wanted)
            if config.downstream_seeds and steps != wanted:
                raise ValueError(
                    f"“{row}” with seed {seed} was fine-tuned for {steps:g} steps ({task}), and others would be for "
                    f"{wanted}; take the same --downstream-steps as before, or another --name"
                )


def identity_of(config: AblateConfig, base: PretrainConfig) -> dict[str, Any]:
    """What all runs of an ablation have in common: cells of another are not to be mixed with them."""
    fields = identity(base, manifest_hash := read_manifest(base.data.manifest).hash)
    for task, recipe in DOWNSTREAM.items():
        tuned = identity(recipes.RECIPES[recipe](base, "RUN"), manifest_hash)
        of_the_corpus = {f"task.{name}" for name in TASK_FILES}  # which lies elsewhere on another machine
        fields |= {f"{task}.{name}": value for name, value in tuned.items() if name not in of_the_corpus}
    return {"table": config.table} | {name: value for name, value in fields.items() if name.split(".")[-1] != "seed"}


def is_missing(cell: tuple[str, int], config: AblateConfig, found: Found) -> bool:
    """True if the run is to be made, or fine-tuned."""
    wanted = [f"{task}/num_steps" for task in DOWNSTREAM if cell[1] in config.downstream_seeds]
    return cell not in found or any(key not in found[cell] for key in wanted)


def one_cell(
    cell: tuple[str, int], *, config: AblateConfig, base: PretrainConfig, parent: str, runs: Runs
) -> tuple[dict[str, float], Exception | None]:
    """The results of a row with a seed, fine-tuned too if the seed is one of those, and what ended them early."""
    row, seed = cell
    name = f"{config.name}-{row.lower().replace(',', '').replace(' ', '-')}-{seed}"
    tags = {mlflow_runs.PARENT: parent, "row": row}
    found: dict[str, float] = {}
    try:
        made = with_values(base, {**ROWS[config.table][row], "seed": seed}, name=name)
        found |= runs.results(made, tags)
        run_folder = storage.absolute(f"{base.placement.storage}/{name}")
        for task, recipe in DOWNSTREAM.items() if seed in config.downstream_seeds else ():
            tuned = recipes.RECIPES[recipe](config_of(run_folder), run_folder)
            tuned = shortened(dataclasses.replace(tuned, name=f"{name}-{task}"), config.downstream_steps)
            found |= {f"{task}/{key}": value for key, value in runs.results(tuned, tags).items()}
    except Exception as error:  # of whatever kind: hours of other cells are not lost by it
        return found, error
    return found, None


def shortened(tuned: PretrainConfig, num_steps: int | None) -> PretrainConfig:
    """A fine-tuning of so many steps; None leaves it as it is."""
    if num_steps is None:
        return tuned
    optim = dataclasses.replace(tuned.optim, num_steps=num_steps, warmup_steps=num_steps // 10)
    selection = dataclasses.replace(tuned.selection, evaluate_every=num_steps)
    return dataclasses.replace(tuned, optim=optim, selection=selection)


def numbers(results: Mapping[str, Any], num_cpus: float) -> dict[str, float]:
    """Those of a run's results, with the mean recall of both directions, the time of a step, and that of the run on its
    `num_cpus`."""
    found = {key: float(value) for key, value in results.items() if isinstance(value, int | float)}
    if all(key in found for key in RECALLS):
        found[PRIMARY] = float(np.mean([found[key] for key in RECALLS]))
    if "seconds/step" in found:
        found["seconds_per_step"] = found["seconds/step"] / found["num_steps"]
        parts = [value for key, value in found.items() if key.startswith("seconds/") and key != WITHIN_DATA_WAIT]
        found["cpu_hours"] = num_cpus * sum(parts) / 3600
    return found


def of_row(found: Found, row: str, key: str) -> dict[int, float]:
    """A score of a row, by seed."""
    return {seed: results[key] for (name, seed), results in found.items() if name == row and key in results}


def means(config: AblateConfig, found: Found) -> dict[str, float]:
    """The mean recall of each row, by a name that MLflow takes."""
    rows = {row.replace(",", ""): list(of_row(found, row, PRIMARY).values()) for row in ROWS[config.table]}
    return {f"{row}/{PRIMARY}": float(np.mean(values)) for row, values in rows.items() if values}


def table(config: AblateConfig, found: Found, failed: Mapping[tuple[str, int], str] = MappingProxyType({})) -> str:
    """Rows with means and intervals, then differences to the first row, seed by seed, and what `failed`."""
    rows = list(ROWS[config.table])
    keys = {title: key for title, key in SHOWN.items() if any(key in results for results in found.values())}
    hours = sum(value for results in found.values() for key, value in results.items() if key.endswith("cpu_hours"))
    count = len({seed for _, seed in found})
    lines = [
        f"# Table {config.table}: {config.name}",
        "",
        f"{count} seeds; mean and 95 % interval over seeds, of fewer than three their range. Mean recall: of R@1, "
        f"5 and 10, both directions. {len(found)} runs in {hours:.2f} CPU hours, fine-tuning included: the CPUs that "
        "each run reserves, for as long as its first rank counts, without starts and reports.",
        "",
        f"| | {' | '.join(keys)} | the paper: R@1 in %, MSR-VTT 7K, fine-tuned, single runs of R50 / PVT |",
        "|---" * (len(keys) + 2) + "|",
    ]
    for row in rows:
        cells = [spread(list(of_row(found, row, key).values()), count) for key in keys.values()]
        lines.append(f"| {row} | {' | '.join(cells)} | {PAPER[config.table][row]} |")
    for title, key in keys.items():
        if key not in COMPARED:
            continue
        scores = {row: of_row(found, row, key) for row in rows}
        pairs = compared(config.table)
        num_pairs = max(len(scores[one].keys() & scores[other].keys()) for one, other in pairs)
        lines += ["", f"Differences of “{title}”, seed by seed:{resolution(num_pairs)}", ""]
        lines += [f"- {one}, to {other}: {difference(scores[one], scores[other])}" for one, other in pairs]
    if failed:
        lines += ["", "What failed, and is tried again by the same command:", ""]
        lines += [f"- “{row}” with seed {seed}: {error}" for (row, seed), error in sorted(failed.items())]
    return "\n".join([*lines, ""])


def compared(name: str) -> list[tuple[str, str]]:
    """Pairs of rows of a table, the second of which the first is compared with: those that differ in one thing, and
    every row with the first."""
    rows = ROWS[name]
    pairs = [(one, other) for other, one in itertools.combinations(rows, 2)]
    first = next(iter(rows))
    return [(one, other) for one, other in pairs if other == first or num_changed(rows[one], rows[other]) == 1]


def num_changed(one: Values, other: Values) -> int:
    """Fields that are not set alike."""
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def spread(values: Sequence[float], num_seeds: int) -> str:
    """A mean and its interval, and of how many seeds if it is not of `num_seeds`."""
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.4g}{' (1 seed)' if num_seeds != 1 else ''}"
    found = over_seeds(values)
    low, high = found["interval"]
    count = f" ({len(values)} seeds{', range' if len(values) < 3 else ''})" if len(values) != num_seeds else ""
    if min(values) == max(values) and float(values[0]).is_integer():  # parameters
        return f"{values[0]:,.0f}{count}"
    return f"{found['mean']:.4g} [{low:.4g}, {high:.4g}]{count}"


def resolution(num_seeds: int) -> str:
    """What so many seeds can tell; nothing of fewer than three, which have no interval."""
    if num_seeds < 3:
        return ""
    smallest = scipy.stats.t.ppf(0.975, num_seeds - 1) / math.sqrt(num_seeds)
    return (
        f" {num_seeds} seeds tell a difference from 0 if it is {smallest:.2f} times its own spread over seeds or more"
    )


def difference(row: Mapping[int, float], first: Mapping[int, float]) -> str:
    """The paired difference, and how many seeds would settle its sign, which fewer than three do not tell."""
    values = [row[seed] - first[seed] for seed in sorted(row.keys() & first.keys())]
    if not values:
        return "not run"
    text = f"{spread(values, len(values))} over {len(values)} seed{'s' if len(values) > 1 else ''}"
    if len(values) == 1:
        return text
    if len(values) < 3:
        return f"{text}, range"
    needed = seeds_needed(values)
    enough = f"about {needed} seeds" if needed else "more seeds than are of use"
    return f"{text}; {enough} would settle its sign, with even odds, if it is as large as that"


def seeds_needed(values: Sequence[float], most: int = 10_000) -> int | None:
    """Seeds after which the 95 % interval of a mean like this one would leave out 0; None for more than `most`."""
    mean, deviation = abs(float(np.mean(values))), float(np.std(values, ddof=1))
    counts = np.arange(2, most + 1)
    settled = scipy.stats.t.ppf(0.975, counts - 1) * deviation / np.sqrt(counts) < mean
    return int(counts[settled.argmax()]) if settled.any() else None
