from __future__ import annotations

import dataclasses
import functools
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from jobs import ROOT
from jobs.command_line import parsing
from jobs.experiments import ablation, statistics
from jobs.experiments.ablation import (
    PRIMARY,
    RECALLS,
    ROWS,
    AblateConfig,
    is_missing,
    missing_cells,
    numbers,
    shortened,
    table,
)
from jobs.experiments.cells import read_cells, write_cells
from jobs.experiments.child_runs import StoppedError, StopRequest
from jobs.experiments.statistics import difference, over_seeds, seeds_needed
from jobs.launch import driver
from jobs.run.config import PretrainConfig
from jobs.run.datasets import known_recipes
from jobs.run.fields import differences
from jobs.run.presets import tiny
from jobs.run.recipes import fine_tuning
from jobs.run.run_files import read_json
from jobs.run.run_identity import identity, with_values
from jobs.training.step import RunError


def wish(**changes: object) -> AblateConfig:
    return AblateConfig(**{"table": "III", "name": "a"} | changes)  # type: ignore[arg-type]


def of(base: PretrainConfig) -> Callable[..., PretrainConfig]:
    return functools.partial(with_values, base)


def tuned_by(recipe: str, run: PretrainConfig, run_folder: str = "RUN") -> PretrainConfig:
    return fine_tuning(known_recipes()[recipe], run, run_folder)


def common_fields(table: str, base: PretrainConfig, manifest_hash: str) -> dict[str, object]:
    tuned = {task: identity(tuned_by(recipe, base), manifest_hash) for task, recipe in ablation.DOWNSTREAM.items()}
    return ablation.common_fields(table, identity(base, manifest_hash), tuned)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_fits_the_preset_and_differs_from_the_others(name: str) -> None:
    made = [with_values(tiny(), values, name="x") for values in ROWS[name].values()]
    assert len(set(map(repr, made))) == len(made)
    assert ablation.PAPER[name].keys() == ROWS[name].keys()


def test_the_mean_recall_is_of_both_directions() -> None:
    found = numbers({key: number / 10 for number, key in enumerate(RECALLS)} | {"name": "x"}, 1.0)
    assert found[PRIMARY] == pytest.approx(0.25)
    assert PRIMARY not in numbers({"test/t2v/r1": 1.0}, 1.0)


def test_the_time_of_a_run_is_counted_once_and_by_its_cpus() -> None:
    seconds = {"seconds/step": 3000.0, "seconds/data_wait": 600.0, "seconds/plan": 500.0}
    found = numbers(seconds | {"num_steps": 60}, 2.0)
    assert (found["seconds_per_step"], found["cpu_hours"]) == (50.0, 2.0)  # the plan is waited for as data is


def test_the_table_shows_what_is_there_and_differences_seed_by_seed() -> None:
    first, *others = ROWS["III"]
    found = {(first, seed): {PRIMARY: 0.5 + seed / 10} for seed in range(3)}
    found |= {(others[0], seed): {PRIMARY: 0.6 + seed / 10} for seed in range(3)}
    text = table(wish(), found)
    assert f"| {first} | 0.6 [0.3516, 0.8484] | 21.7 / 25.0 |" in text
    assert f"- {others[0]}, to {first}: 0.1 [0.1, 0.1] over 3 seeds" in text
    assert f"- {others[1]}, to {first}: not run" in text
    assert "parameters" not in text


def test_as_many_seeds_are_needed_as_the_test_of_the_mean_says() -> None:
    values = np.random.default_rng(0).normal(0.02, 0.05, 5).tolist()
    needed = seeds_needed(values)
    assert needed
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    for count, is_enough in ((needed, True), (needed - 1, False)):
        low, _ = scipy.stats.t.interval(0.95, count - 1, abs(mean), deviation / count**0.5)
        assert (low > 0) == is_enough
    for other in (1.0, 1.0 - 1e-9):  # no difference, and one that no interval of 10,000 seeds would tell
        text = difference({0: other, 1: 2.0, 2: 3.1}, {0: 1.0, 1: 2.1, 2: 3.0})
        assert "more seeds than are of use would settle its sign" in text


def test_fewer_than_three_seeds_have_a_range_and_tell_no_number_of_seeds() -> None:
    first, second, *_ = ROWS["III"]
    tuned = "qa/test/accuracy"
    found = {(row, seed): {PRIMARY: 0.1 * seed} for row in (first, second) for seed in range(3)}
    for number, cell in enumerate([(first, 0), (first, 1), (second, 0), (second, 1)]):
        found[cell][tuned] = 0.5 + number / 10
    text = table(wish(), found, {(second, 3): "diverged"})
    assert "| 0.1 [-0.1484, 0.3484] | 0.55 [0.5, 0.6] (2 seeds, range) |" in text
    assert "Differences of “answers, fine-tuned”, seed by seed:\n" in text
    assert f"- {second}, to {first}: 0.2 [0.2, 0.2] over 2 seeds, range\n" in text
    assert f"- “{second}” with seed 3: diverged" in text
    del found[first, 1][tuned]
    text = table(wish(), found)
    assert "| 0.1 [-0.1484, 0.3484] | 0.5 (1 seed) |" in text
    assert f"- {second}, to {first}: 0.2 over 1 seed\n" in text


def test_a_single_seed_is_counted_in_words_and_its_parameters_in_full() -> None:
    first, *_ = ROWS["III"]
    text = table(wish(), {(first, 0): {PRIMARY: 0.4961666, "num_parameters": 556_121.0}})
    assert f"| {first} | 0.4962 | 556,121 |" in text
    assert "\n1 seed; mean" in text
    assert " 1 run in " in text


def test_a_cell_that_fails_or_is_stopped_leaves_the_others_alone() -> None:
    found: dict[tuple[str, int], dict[str, float]] = {("e", 0): {"x": 2.0}}
    failed: dict[tuple[str, int], str] = {}
    outcomes: dict[str, tuple[dict[str, float], Exception | None]] = {
        "a": ({"x": 1.0}, None),
        "b": ({}, RunError("too many clips")),
        "c": ({}, StoppedError()),
        "d": ({}, KeyError()),
        "e": ({"y": 3.0}, None),
    }
    for name, outcome in outcomes.items():
        ablation.note((name, 0), outcome, found, failed)
    assert found == {("a", 0): {"x": 1.0}, ("e", 0): {"x": 2.0, "y": 3.0}}
    assert failed == {("b", 0): "too many clips", ("d", 0): "KeyError"}


@pytest.mark.parametrize("error", [RunError("no answers"), StoppedError()])
def test_what_was_pre_trained_counts_though_its_fine_tuning_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    base = dataclasses.replace(tiny(), placement=dataclasses.replace(tiny().placement, storage=str(tmp_path)))

    def run(config: PretrainConfig, **_: object) -> dict[str, object]:
        if config.name.endswith("-qa"):
            raise error
        return {"num_steps": 7}

    monkeypatch.setattr(driver, "pretrain", run)
    monkeypatch.setattr(ablation, "config_of", lambda folder: base)
    config, cell = wish(downstream_seeds=(0,)), ("MLM, GVTM", 0)
    found, why = ablation.run_cell(cell, config=config, make=of(base), parent="p", stop=StopRequest())
    assert (found, why) == ({"num_steps": 7.0, "retrieval/num_steps": 7.0}, error)
    assert is_missing(cell, config, {cell: found})  # and the same command tries it again


def test_rows_that_would_be_the_same_run_are_refused() -> None:
    def base(**objective: float) -> PretrainConfig:
        return dataclasses.replace(tiny(), objective=dataclasses.replace(tiny().objective, **objective))  # type: ignore[arg-type]

    for name in ROWS:
        ablation.refuse_equal_rows(name, of(tiny()))
    ablation.refuse_equal_rows("II", of(base(lvwm=0.0)))
    with pytest.raises(ValueError, match=r"“MLM, GVTM” and “MLM, GVTM and LVWM” would be .*: objective\.lvwm is 0"):
        ablation.refuse_equal_rows("III", of(base(lvwm=0.0)))
    with pytest.raises(ValueError, match="without masked words MLM and MSSM are one"):
        ablation.refuse_equal_rows("III", of(base(masked_words_text=0.0, masked_words_cross=0.0)))


def test_rows_that_differ_in_one_thing_are_compared_and_all_with_the_first() -> None:
    neither, masks, words, both = ROWS["III"]
    pairs = [(masks, neither), (words, neither), (both, neither), (both, masks), (both, words)]
    assert ablation.compared("III", list(ROWS["III"])) == pairs
    assert ablation.compared("III", [neither, both]) == [(both, neither)]
    assert ablation.compared("II", list(ROWS["II"])) == [("SNP", "P3E")]


def test_a_table_says_what_so_many_seeds_can_tell() -> None:
    """At the stated multiple of its spread the interval of a difference begins at 0."""
    values = np.array([1.0, 2.0, 4.0, 0.5, 3.0])
    shifted = values - values.mean() + 1.24 * values.std(ddof=1)
    low, _ = over_seeds(shifted.tolist())["interval"]
    assert low == pytest.approx(0, abs=0.01)
    assert "5 seeds tell a difference from 0 if it is 1.24 times" in statistics.resolution(5)
    assert statistics.resolution(2) == ""


def test_cells_are_kept_and_those_of_other_settings_are_refused(tmp_path: Path) -> None:
    path, fields = f"{tmp_path}/cells.json", {"table": "III", "optim.lr": 0.1}
    assert read_cells(path, fields) == {}
    found = {(row, seed): {PRIMARY: 0.1 * seed} for row in ROWS["III"] for seed in (1, 0)}
    write_cells(path, fields, found)
    assert read_cells(path, fields) == found
    with pytest.raises(ValueError, match=r"other settings; take another name. optim.lr: was 0.1, is 0.2"):
        read_cells(path, fields | {"optim.lr": 0.2})


def test_what_is_not_yet_run_or_not_yet_fine_tuned_is_missing() -> None:
    first, second = ("MLM, GVTM", 0), ("MLM, GVTM", 1)
    tuned = {"num_steps": 9.0, "retrieval/num_steps": 9.0, "qa/num_steps": 9.0}
    found = {first: tuned, second: {"num_steps": 9.0}}
    for downstream_seeds, missing in (((), []), ((0,), []), ((4, 1), [second])):
        config = wish(downstream_seeds=downstream_seeds)
        assert [cell for cell in found if is_missing(cell, config, found)] == missing
    assert is_missing(("MSSM, GVTM", 0), wish(), found)


def test_chosen_rows_alone_are_run_and_shown_beside_those_that_were_run_before() -> None:
    neither, masks, words, both = ROWS["III"]
    config = wish(rows=(neither, both), num_seeds=2)
    assert missing_cells(config, {}) == [(neither, 0), (both, 0), (neither, 1), (both, 1)]
    found = {(row, seed): {PRIMARY: 0.5 + seed / 10} for row in (neither, both, masks) for seed in (0, 1)}
    assert missing_cells(config, found) == []
    text = table(config, {cell: results for cell, results in found.items() if cell[0] != masks})
    assert f"- {both}, to {neither}: 0" in text
    assert f"| {masks} |" not in text
    assert f"- {both}, to {masks}: 0" in table(config, found)
    assert f"| {words} |" not in table(config, found)
    assert "Differences" not in table(wish(rows=(neither,)), {(neither, 0): {PRIMARY: 0.5}})
    with pytest.raises(ValueError, match="rows must be of those of table II, “P3E”, “SNP”, got “MLM, GVTM”"):
        wish(table="II", rows=("SNP", neither))


def test_the_results_of_equal_runs_of_the_other_table_are_taken(tmp_path: Path) -> None:
    fields = {"table": "III", "optim.lr": 0.1}
    found = {(row, seed): {PRIMARY: 0.1 * seed} for row in ROWS["III"] for seed in range(8)}
    (tmp_path / "t3").mkdir()
    write_cells(f"{tmp_path}/t3/cells.json", fields, found)
    config, folder = wish(table="II", equal_runs_of="t3"), str(tmp_path)
    taken = ablation.equal_cells(config, of(tiny()), folder, fields | {"table": "II"})
    assert taken == {("SNP", seed): found["MLM, GVTM", seed] for seed in range(5)}
    assert missing_cells(config, taken) == [("P3E", seed) for seed in range(5)]
    with pytest.raises(ValueError, match=r"other settings; take another name. optim.lr: was 0.1, is 0.2"):
        ablation.equal_cells(config, of(tiny()), folder, {"table": "II", "optim.lr": 0.2})
    with pytest.raises(FileNotFoundError, match="t4"):
        ablation.equal_cells(wish(equal_runs_of="t4"), of(tiny()), folder, fields)
    assert ablation.equal_cells(wish(), of(tiny()), folder, fields) == {}


def test_an_ablation_of_one_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="one run shows no difference"):
        wish(num_seeds=1)
    with pytest.raises(ValueError, match="downstream_seeds must be of the seeds 0 to 4, got 5"):
        wish(downstream_seeds=(0, 5))
    for name in ("downstream_steps", "num_at_once"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            wish(**{name: 0})


def test_an_ablation_without_captions_or_questions_is_refused_before_it_begins() -> None:
    with pytest.raises(ValueError, match=r"task\.kind=multiple_choice have no mean recall"):
        ablation.refuse_no_captions("multiple_choice", ())
    elsewhere = dataclasses.replace(tiny(), data=dataclasses.replace(tiny().data, manifest="/no/corpus/m/m.parquet"))
    ablation.refuse_no_captions("captions", ())
    with pytest.raises(FileNotFoundError, match="/no/corpus/questions"):
        ablation.refuse_no_captions("captions", [tuned_by("tiny_qa", elsewhere).task])


def test_fine_tuning_asks_what_lies_beside_the_manifest_and_may_be_shortened() -> None:
    data = dataclasses.replace(tiny().data, manifest="s3://bucket/corpus/manifest/manifest.parquet")
    run = dataclasses.replace(tiny(), data=data)
    tuned = tuned_by("tiny_qa", run)
    assert tuned.task.test == "s3://bucket/corpus/questions/test.jsonl"
    assert tuned_by("tiny_qa", tiny()).task.train == "corpora/embedded/questions/train.jsonl"
    assert tuned_by("tiny_multiple_choice", run).task.train == "s3://bucket/corpus/multiple_choice/train.jsonl"
    assert with_values(tuned, shortened(None), name=tuned.name) == tuned
    short = with_values(tuned, shortened(60), name=tuned.name)
    assert (short.optim.num_steps, short.optim.warmup_steps, short.selection.evaluate_every) == (60, 6, 60)
    assert short.selection.metric == tuned.selection.metric


def test_cells_of_longer_and_shorter_fine_tuning_are_not_mixed() -> None:
    found = {("MLM, GVTM", 0): {"retrieval/num_steps": 120.0, "qa/num_steps": 120.0}}
    steps_of = {task: tuned_by(recipe, tiny()).optim.num_steps for task, recipe in ablation.DOWNSTREAM.items()}
    ablation.refuse_other_fine_tuning(wish(downstream_seeds=(0, 1), downstream_steps=120), steps_of, found)
    ablation.refuse_other_fine_tuning(wish(downstream_steps=60), steps_of, found)  # none will be fine-tuned
    for steps, wanted in ((60, 60), (None, 240)):
        with pytest.raises(
            ValueError, match=f"was fine-tuned for 120 steps .retrieval., and others would be for {wanted}"
        ):
            ablation.refuse_other_fine_tuning(wish(downstream_seeds=(0, 1), downstream_steps=steps), steps_of, found)


def test_a_signal_stops_the_runs_under_way_and_none_begins_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = dataclasses.replace(tiny(), placement=dataclasses.replace(tiny().placement, storage=str(tmp_path)))
    begun: list[str] = []

    def stopped_run(config: PretrainConfig, is_stopped: Callable[[], bool], **_: object) -> dict[str, object]:
        begun.append(config.name)
        assert not is_stopped()
        signal.raise_signal(signal.SIGTERM)
        assert is_stopped()  # a run that is just starting removes the request, and asks
        return {} if (tmp_path / config.name / "stop").exists() else {"num_steps": 1}

    monkeypatch.setattr(driver, "pretrain", stopped_run)
    stop, before = StopRequest(), signal.getsignal(signal.SIGTERM)
    with stop.on_signals():
        for seed in range(2):
            found, why = ablation.run_cell(("MLM, GVTM", seed), config=wish(), make=of(base), parent="p", stop=stop)
            assert found == {}
            assert isinstance(why, StoppedError)
    assert begun == ["a-mlm-gvtm-0"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_cells_of_another_machine_are_those_of_the_same_manifest_wherever_it_lies() -> None:
    def fields(manifest: str, num_steps: int = 480) -> dict[str, object]:
        base = tiny()
        data, optim = base.data, dataclasses.replace(base.optim, num_steps=num_steps)
        base = dataclasses.replace(base, data=dataclasses.replace(data, manifest=manifest), optim=optim)
        return common_fields("III", base, "same")

    here = fields("corpora/embedded/manifest/manifest.parquet")
    assert here == fields("s3://bucket/embedded/manifest/manifest.parquet")
    assert here != fields("corpora/embedded/manifest/manifest.parquet", num_steps=20)


@pytest.mark.parametrize("name", ["table-ii", "table-iii"])
def test_the_cells_in_the_docs_are_those_of_the_command_beside_them(name: str) -> None:
    """And go on by it: a field that is added later has to be added to them."""
    saved = read_json(str(ROOT / "docs" / "results" / f"{name}.json"))["fields"]
    told = (ROOT / "docs" / "reference" / "results.md").read_text()
    told = told.replace("\\\n", " ")
    (run,) = re.findall(r'^RUN="(.+)"$', told, re.MULTILINE)
    (command,) = re.findall(rf"^snps3 ablate (.+ --name {name} .+)$", told, re.MULTILINE)
    own, base = parsing.split(command.replace("$RUN", run).split())
    fields = common_fields(own[0], parsing.parse(base).config, saved["data.manifest_hash"])
    assert differences(saved, fields) == []
