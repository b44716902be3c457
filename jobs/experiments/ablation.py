"""The paper's ablations over seeds: a run per row and seed, and a table with intervals and paired differences."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from cluster.connection import connected_ray
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.experiments.cells import Cell, Cells, read_cells, write_cells
from jobs.experiments.child_runs import StoppedError, StopRequest, parent_run, run_child
from jobs.experiments.statistics import difference, resolution, spread
from jobs.launch import driver, lease, preflight
from jobs.run.config import TASK_FILES, PretrainConfig, TaskConfig
from jobs.run.datasets import known_recipes
from jobs.run.fields import config_hash, flat
from jobs.run.recipes import fine_tuning
from jobs.run.run_identity import config_of, identity, with_values
from jobs.tracking import mlflow_runs, voice
from pipeline import storage
from pipeline.corpus.manifest import open_manifest
from pipeline.foreign_text import in_markdown

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
"""Fields that each row of each table sets; the first row of a table is the baseline of the others."""
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
"""R@1 in % on MSR-VTT 7K after fine-tuning, with ResNet-50 / PVT; single runs."""
WITHIN_DATA_WAIT = "seconds/plan"
"""Time that `seconds/data_wait` already includes."""
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
"""Columns of a table → keys of results; a table shows those that its runs have."""
COMPARED = (PRIMARY, "retrieval/test/t2v/r1", "qa/test/accuracy")
"""Scores for which a table shows differences between rows."""
CELLS = "cells.json"
DOWNSTREAM = MappingProxyType({"retrieval": "tiny_retrieval", "qa": "tiny_qa"})
"""Prefix of results → recipe of fine-tuning."""
MakeRun = Callable[..., PretrainConfig]
"""From fields by dotted names, and a `name`, to the run's configuration."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """The table to reproduce, and its seeds."""

    table: Annotated[Literal["II", "III"], tyro.conf.Positional]
    """Table of the paper."""
    name: str
    """Name of the ablation: of its folder in `placement.storage`, and of its MLflow run."""
    num_seeds: int = 5
    rows: tuple[str, ...] = ()
    """Rows of the table to run; empty: all. The same name takes further rows later."""
    equal_runs_of: str | None = None
    """Name of an ablation of the other table. Where a row of it is the same run as a row here, as “MLM, GVTM” of table
    III and SNP of table II are, its results are taken."""
    downstream_seeds: tuple[int, ...] = ()
    """Seeds whose runs are fine-tuned too, for retrieval and question answering on the embedded corpus."""
    downstream_steps: int | None = None
    """Steps of each fine-tuning, with one evaluation at the end; None: as in its recipe."""
    num_at_once: int | None = None
    """Concurrent runs; None: as many as fit on the cluster."""

    def __post_init__(self) -> None:
        for name in ("downstream_steps", "num_at_once"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}; leave it out for the default")
        if self.num_seeds < 2:
            raise ValueError(f"num_seeds must be at least 2, got {self.num_seeds}: one run shows no difference")
        if wrong := [row for row in self.rows if row not in ROWS[self.table]]:
            names = ", ".join(f"“{row}”" for row in ROWS[self.table])
            raise ValueError(f"rows must be of those of table {self.table}, {names}, got “{wrong[0]}”")
        if wrong := sorted(set(self.downstream_seeds) - set(range(self.num_seeds))):
            raise ValueError(f"downstream_seeds must be of the seeds 0 to {self.num_seeds - 1}, got {wrong[0]}")


def ablate(config: AblateConfig, base: PretrainConfig) -> tuple[str, dict[Cell, str]]:
    """Run the missing cells. Return the table in Markdown, which is also in the ablation's folder, and the error of
    each failed cell.

    Raise ValueError for a table that cannot be run, StoppedError after a stop request.
    """
    make, placement, recipes = functools.partial(with_values, base), base.placement, known_recipes()
    tuned = {task: fine_tuning(recipes[recipe], base, "RUN") for task, recipe in DOWNSTREAM.items()}
    refuse_no_captions(base.task.kind, [run.task for run in tuned.values()] if config.downstream_seeds else ())
    refuse_equal_rows(config.table, make)
    folder = storage.absolute(f"{placement.storage}/{config.name}")
    manifest_hash = open_manifest(base.data.manifest).hash
    fields = common_fields(
        config.table,
        identity(base, manifest_hash),
        {task: identity(run, manifest_hash) for task, run in tuned.items()},
    )
    equal, saved = equal_cells(config, make, placement.storage, fields), read_cells(f"{folder}/{CELLS}", fields)
    refuse_other_fine_tuning(config, {task: run.optim.num_steps for task, run in tuned.items()}, {**equal, **saved})
    mlflow_runs.refuse_unreachable(placement.storage)
    voice.keep_log_in(folder)
    with lease.held(folder) as held, connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True):
        saved = read_cells(f"{folder}/{CELLS}", fields)  # again: the previous holder of the lease may have added some
        cells = {**equal, **saved}
        driver.refuse_scattered_metrics(placement.storage)
        num_at_once = driver.runs_at_once(config.num_at_once, placement)
        failed: dict[Cell, str] = {}
        if cells != saved:
            write_results(folder, fields, config, cells, failed)
        with parent_run(
            placement,
            config.name,
            identity_hash=config_hash(fields),
            params=flat(dataclasses.asdict(config)),
            has_failed=lambda: bool(failed),
        ) as parent:
            stop = StopRequest()
            run = functools.partial(run_cell, config=config, make=make, parent=parent.run_id, stop=stop)
            with stop.on_signals(), contextlib.ExitStack() as last:
                pool = ThreadPoolExecutor(num_at_once)
                last.callback(pool.shutdown, cancel_futures=True)  # no new cell after a failed write of results
                begun = {pool.submit(run, cell): cell for cell in missing_cells(config, cells)}
                for future in as_completed(begun):  # write each result at once: an ablation takes hours
                    note(begun[future], future.result(), cells, failed)
                    held.check()
                    write_results(folder, fields, config, cells, failed)
            if stop.is_made:
                raise StoppedError(f"{config.name} was stopped")
            parent.log(means(cells), 0)
    return table(config, cells, failed), failed


def write_results(
    folder: str, fields: Mapping[str, Any], config: AblateConfig, cells: Cells, failed: Mapping[Cell, str]
) -> None:
    """Write the cells, and the table of them."""
    write_cells(f"{folder}/{CELLS}", fields, cells)
    storage.write_bytes_atomic(f"{folder}/table.md", table(config, cells, failed).encode())


def refuse_no_captions(kind: str, tasks: Iterable[TaskConfig]) -> None:
    """Raise ValueError unless the runs are pre-training, FileNotFoundError if a fine-tuning lacks its questions."""
    if kind != "captions":
        raise ValueError(f"runs of task.kind={kind} have no {PRIMARY}; ablations are of pre-training")
    for path in (getattr(task, name) for task in tasks for name in TASK_FILES):
        if path:
            storage.check_readable(storage.absolute(path))


def runs_by_row(name: str, make: MakeRun) -> dict[str, PretrainConfig]:
    """Return the run of each row of the table `name`, all with the same seed and run name, so that equal runs compare
    equal."""
    return {row: make(values, name="row") for row, values in ROWS[name].items()}


def refuse_equal_rows(name: str, make: MakeRun) -> None:
    """Raise ValueError if different rows of the table `name` would train the same losses."""
    objective = make({}, name="row").objective
    if name == "III" and objective.masked_words_text == objective.masked_words_cross == 0:
        raise ValueError("without masked words MLM and MSSM are one: objective.masked_words_text and _cross are both 0")
    runs = runs_by_row(name, make)
    for row, other in itertools.combinations(runs, 2):
        if runs[row] == runs[other]:
            raise ValueError(f"“{row}” and “{other}” would be the same run: objective.lvwm is {objective.lvwm:g}")


def refuse_other_fine_tuning(config: AblateConfig, num_steps: Mapping[str, int], cells: Cells) -> None:
    """Raise ValueError if kept cells were fine-tuned for other numbers of steps than new ones would be. `num_steps`: by
    recipe."""
    for task in DOWNSTREAM if config.downstream_seeds else ():
        expected = config.downstream_steps or num_steps[task]
        for (row, seed), results in cells.items():
            if (steps := results.get(f"{task}/num_steps", expected)) != expected:
                raise ValueError(
                    f"“{row}” with seed {seed} was fine-tuned for {steps:g} steps ({task}), and others would be for "
                    f"{expected}; take the same --downstream-steps as before, or another --name"
                )


def common_fields(name: str, pretrained: Mapping[str, Any], tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields that all runs of the table `name` share, from the identities of pre-training and fine-tuning.

    They keep cells of different ablations apart.
    """
    fields, of_the_corpus = dict(pretrained), {f"task.{file}" for file in TASK_FILES}  # paths differ between machines
    for task, run in tuned.items():
        fields |= {f"{task}.{field}": value for field, value in run.items() if field not in of_the_corpus}
    return {"table": name} | {field: value for field, value in fields.items() if field.split(".")[-1] != "seed"}


def equal_cells(
    config: AblateConfig, make: MakeRun, folder: str, fields: Mapping[str, Any]
) -> dict[Cell, dict[str, float]]:
    """Return the cells of `equal_runs_of` below `folder` whose runs equal rows of this table, under the names here.

    Raise FileNotFoundError if there are none, ValueError if they are of other settings than `fields`.
    """
    if config.equal_runs_of is None:
        return {}
    path = storage.absolute(f"{folder}/{config.equal_runs_of}/{CELLS}")
    storage.check_readable(path)
    (other,) = ROWS.keys() - {config.table}
    found = read_cells(path, {**fields, "table": other})
    runs, here = runs_by_row(other, make), runs_by_row(config.table, make)
    return {
        (row, seed): results
        for (name, seed), results in found.items()
        for row, run in here.items()
        if run == runs[name] and seed < config.num_seeds
    }


def missing_cells(config: AblateConfig, cells: Cells) -> list[Cell]:
    """Return the cells that still need a run or a fine-tuning, ordered by seed."""
    rows = config.rows or ROWS[config.table]
    every = [(row, seed) for seed in range(config.num_seeds) for row in rows]
    return [cell for cell in every if is_missing(cell, config, cells)]


def is_missing(cell: Cell, config: AblateConfig, cells: Cells) -> bool:
    """Return whether the cell still needs its run, or its fine-tuning."""
    keys = [f"{task}/num_steps" for task in DOWNSTREAM if cell[1] in config.downstream_seeds]
    return cell not in cells or any(key not in cells[cell] for key in keys)


def run_cell(
    cell: Cell, *, config: AblateConfig, make: MakeRun, parent: str, stop: StopRequest
) -> tuple[dict[str, float], Exception | None]:
    """Run a row with a seed, and its fine-tuning if the seed is in `downstream_seeds`; return the results so far, and
    the error that ended it early, if any.

    `parent`: id of the ablation's MLflow run.
    """
    row, seed = cell
    name = f"{config.name}-{row.lower().replace(',', '').replace(' ', '-')}-{seed}"
    run = functools.partial(run_child, tags={mlflow_runs.PARENT: parent, "row": row}, stop=stop)
    results: dict[str, float] = {}
    try:
        pretraining = make({**ROWS[config.table][row], "seed": seed}, name=name)
        results |= numbers(run(pretraining).unwrap(), preflight.num_cpus(pretraining.placement))
        run_folder = storage.absolute(f"{pretraining.placement.storage}/{name}")
        for task, recipe in DOWNSTREAM.items() if seed in config.downstream_seeds else ():
            tuned = fine_tuning(known_recipes()[recipe], config_of(run_folder), run_folder)
            tuned = with_values(tuned, shortened(config.downstream_steps), name=f"{name}-{task}")
            scores = numbers(run(tuned).unwrap(), preflight.num_cpus(tuned.placement))
            results |= {f"{task}/{key}": value for key, value in scores.items()}
    except Exception as error:  # any error: it must not cost the hours of other cells
        return results, error
    return results, None


def shortened(num_steps: int | None) -> dict[str, int]:
    """Return the fields of a fine-tuning of `num_steps`, with one evaluation at its end; none for None."""
    if num_steps is None:
        return {}
    return {
        "optim.num_steps": num_steps,
        "optim.warmup_steps": num_steps // 10,
        "selection.evaluate_every": num_steps,
    }


def note(
    cell: Cell,
    outcome: tuple[Mapping[str, float], Exception | None],
    cells: dict[Cell, dict[str, float]],
    failed: dict[Cell, str],
) -> None:
    """Record the results of a cell, also of an incomplete one, and its error unless that is a stop request."""
    results, error = outcome
    if results:
        cells[cell] = {**cells.get(cell, {}), **results}
    if error and not isinstance(error, StoppedError):
        failed[cell] = str(error) or type(error).__name__


def numbers(results: Mapping[str, Any], num_cpus: float) -> dict[str, float]:
    """Return the numeric results of a run, plus the mean recall of both directions, the seconds per step, and the CPU
    hours on `num_cpus`."""
    values = {key: float(value) for key, value in results.items() if isinstance(value, int | float)}
    if all(key in values for key in RECALLS):
        values[PRIMARY] = float(np.mean([values[key] for key in RECALLS]))
    if "seconds/step" in values:
        values["seconds_per_step"] = values["seconds/step"] / values["num_steps"]
        parts = [value for key, value in values.items() if key.startswith("seconds/") and key != WITHIN_DATA_WAIT]
        values["cpu_hours"] = num_cpus * sum(parts) / 3600
    return values


# --- the table --------------------------------------------------------------------------------------------------------


def of_row(cells: Cells, row: str, key: str) -> dict[int, float]:
    """Return the values of the score `key` of a row, by seed."""
    return {seed: results[key] for (name, seed), results in cells.items() if name == row and key in results}


def means(cells: Cells) -> dict[str, float]:
    """Return the mean recall of each row, under names that MLflow accepts."""
    rows = {row.replace(",", ""): list(of_row(cells, row, PRIMARY).values()) for row in {row for row, _ in cells}}
    return {f"{row}/{PRIMARY}": float(np.mean(values)) for row, values in rows.items() if values}


def table(config: AblateConfig, cells: Cells, failed: Mapping[Cell, str] = MappingProxyType({})) -> str:
    """Return the table in Markdown: rows with means and intervals, paired differences by seed, and the `failed`
    cells."""
    known = {row for row, _ in cells} | {row for row, _ in failed} | set(config.rows or ROWS[config.table])
    rows, num_seeds = [row for row in ROWS[config.table] if row in known], len({seed for _, seed in cells})
    keys = {title: key for title, key in SHOWN.items() if any(key in results for results in cells.values())}
    hours = sum(value for results in cells.values() for key, value in results.items() if key.endswith("cpu_hours"))
    lines = [
        f"# Table {config.table}: {config.name}",
        "",
        f"{voice.counted(num_seeds, 'seed')}; mean and 95 % interval over seeds, of fewer than three their range. Mean "
        f"recall: of R@1, 5 and 10, both directions. {voice.counted(len(cells), 'run')} in {hours:.2f} CPU hours, "
        "fine-tuning included: the CPUs that each run reserves, for as long as its first rank counts, without starts "
        "and reports.",
        "",
        f"| | {' | '.join(keys)} | the paper: R@1 in %, MSR-VTT 7K, fine-tuned, single runs of R50 / PVT |",
        "|---" * (len(keys) + 2) + "|",
    ]
    for row in rows:
        values = [spread(list(of_row(cells, row, key).values()), num_seeds) for key in keys.values()]
        lines.append(f"| {row} | {' | '.join(values)} | {PAPER[config.table][row]} |")
    for title, key in keys.items():
        if key not in COMPARED or len(rows) < 2:
            continue
        scores, pairs = {row: of_row(cells, row, key) for row in rows}, compared(config.table, rows)
        num_pairs = max(len(scores[row].keys() & scores[other].keys()) for row, other in pairs)
        lines += ["", f"Differences of “{title}”, seed by seed:{resolution(num_pairs)}", ""]
        lines += [f"- {row}, to {other}: {difference(scores[row], scores[other])}" for row, other in pairs]
    if failed:
        lines += ["", "What failed, and is tried again by the same command:", ""]
        lines += [f"- “{row}” with seed {seed}: {in_markdown(error)}" for (row, seed), error in sorted(failed.items())]
    return "\n".join([*lines, ""])


def compared(name: str, rows: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs (row, baseline) of these rows of the table `name`: those that differ in one field, and every row
    with the first."""
    values = ROWS[name]
    pairs = [(row, other) for other, row in itertools.combinations(rows, 2)]
    return [(row, other) for row, other in pairs if other == rows[0] or num_changed(values[row], values[other]) == 1]


def num_changed(values: Values, others: Values) -> int:
    """Return the number of fields in which two rows differ."""
    return sum(values.get(name) != others.get(name) for name in values.keys() | others.keys())
