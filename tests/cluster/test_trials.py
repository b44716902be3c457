from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import TrialScheduler

from cluster import trials
from cluster.domains import Choice, Range
from cluster.ray_internals import measurement_callback
from cluster.trials import STEP, Search, run_trials, scheduler, trial_slot

METRIC = "score"


def asha(num_steps: int, num_rungs: int, factor: int) -> Any:
    """As a sweep makes it."""
    rungs = tuple(num_steps // factor**num_rungs * factor**number for number in range(num_rungs))
    return scheduler(Search(space={}, metric=METRIC, num_steps=num_steps, rungs=rungs, reduction_factor=factor))


@pytest.mark.parametrize("seed", range(5))
def test_the_best_third_of_those_that_came_to_a_rung_goes_on(seed: int) -> None:
    """Or the best, of the first two; evaluations between the rungs decide nothing."""
    made, rng = asha(90, 2, 3), np.random.default_rng(seed)
    at: dict[int, list[float]] = {10: [], 30: []}
    for number in range(40):
        trial = SimpleNamespace(trial_id=str(number), last_result=None)
        made.on_trial_add(None, trial)
        for step in (5, 10, 20, 30, 40, 90):
            score = float(rng.integers(20))
            told = made.on_trial_result(None, trial, {STEP: step, METRIC: score})
            if step not in at:
                assert told == TrialScheduler.CONTINUE
                continue
            at[step].append(score)
            best = sorted(at[step], reverse=True)[: max(1, len(at[step]) // 3)]
            assert (told == TrialScheduler.CONTINUE) == (score >= best[-1])
            if told == TrialScheduler.STOP:
                break
    assert len(at[10]) == 40 > len(at[30]) > 2


def test_a_bad_trial_is_stopped_at_a_rung_and_never_at_its_last_step() -> None:
    made = asha(90, 2, 3)
    one, two, late = (SimpleNamespace(trial_id=name, last_result={}) for name in ("one", "two", "late"))
    for trial in (one, two, late):
        made.on_trial_add(None, trial)

    def told(trial: Any, step: int, score: float) -> str:
        return made.on_trial_result(None, trial, {STEP: step, METRIC: score})

    assert [told(one, step, 0.9) for step in (10, 30, 90)] == [TrialScheduler.CONTINUE] * 3
    assert told(two, 10, 0.1) == TrialScheduler.STOP
    assert told(late, 90, 0.1) == TrialScheduler.CONTINUE  # goes on after a lost driver, past all rungs


def test_a_trial_that_goes_on_is_not_compared_where_it_had_been_before() -> None:
    """Its score of today would stand for the one it had then, and stop whoever comes to that rung."""
    made = asha(90, 2, 3)
    old = SimpleNamespace(trial_id="old", last_result={STEP: 30, METRIC: 0.5})
    new, other = (SimpleNamespace(trial_id=name, last_result=None) for name in ("new", "other"))
    for trial in (old, new, other):
        made.on_trial_add(None, trial)

    def told(trial: Any, step: int, score: float) -> str:
        return made.on_trial_result(None, trial, {STEP: step, METRIC: score})

    assert [told(old, step, 0.9) for step in (70, 90)] == [TrialScheduler.CONTINUE] * 2
    assert [told(new, step, 0.6) for step in (10, 30)] == [TrialScheduler.CONTINUE] * 2
    assert told(other, 10, 0.3) == TrialScheduler.STOP  # new ones are compared with each other


def test_a_checkpoint_before_the_first_evaluation_is_not_told_to_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(TuneReportCallback, "__init__", lambda self: None)
    monkeypatch.setattr(TuneReportCallback, "after_report", lambda self, run, metrics, _: told.append(metrics[0]))
    watcher: Any = measurement_callback(METRIC)
    watcher.after_report(None, [{STEP: 3}], None)
    watcher.after_report(None, [{STEP: 8, METRIC: 0.5}], None)
    assert told == [{STEP: 8, METRIC: 0.5}]


def take_turns(where: str, log: str) -> None:
    """Two at a time, a line each as it begins and ends; the first waits for the second, however long that starts."""

    def tell(word: str) -> None:
        with open(log, "a") as file:
            file.write(f"{word}\n")

    with trial_slot(where, 2):
        tell("begun")
        deadline = time.monotonic() + 60
        while Path(log).read_text().count("begun") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        tell("ended")


def test_no_more_trials_take_their_turn_than_were_asked_for_and_a_killed_one_gives_it_back(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gone = context.Process(target=hold_for_ever, args=(str(tmp_path), str(tmp_path / "held")))
    gone.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.05)
    gone.kill()
    gone.join()
    log = tmp_path / "log"
    every = [context.Process(target=take_turns, args=(str(tmp_path), str(log))) for _ in range(4)]
    for one in every:
        one.start()
    for one in every:
        one.join()
    at_once = most = 0
    for line in log.read_text().splitlines():
        at_once += 1 if line == "begun" else -1
        most = max(most, at_once)
    assert (at_once, most) == (0, 2)


def hold_for_ever(where: str, mark: str) -> None:
    with trial_slot(where, 2):
        Path(mark).touch()
        time.sleep(600)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:::optuna", "ignore:::ray")
def test_optuna_goes_on_with_failed_trials_one_at_a_time_from_the_folder_of_the_command(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first command fails in every trial, as where a server is away."""
    monkeypatch.chdir(tmp_path)
    search = Search(space={"x": Range(low=0.0, high=1.0)}, num_trials=2, metric=METRIC, seed=1)
    ended: list[str] = []

    def function(trial_id: str, values: Mapping[str, Any], watcher: Any) -> None:
        with open("log", "a") as log:
            log.write(f"begun {os.getcwd()}\n")
        if not os.path.exists("server"):
            raise ConnectionError("away")
        time.sleep(0.5)
        trials.report({METRIC: values["x"], STEP: 1})
        with open("log", "a") as log:
            log.write("ended\n")

    def run() -> list[trials.Trial]:
        files = os.listdir("s") if os.path.exists("s") else []
        return run_trials(function, search, name="s", path=str(tmp_path), files=files, on_end=ended.append)

    first = run()
    assert len(first) == 2
    assert all("away" in one.error for one in first)
    (tmp_path / "log").unlink()
    (tmp_path / "server").touch()
    again = run()
    assert {one.trial_id: one.values for one in again} == {one.trial_id: one.values for one in first}
    assert [one.error for one in again] == [""] * 2
    assert {one.highest[METRIC] for one in again} == {one.values["x"] for one in again}
    assert (tmp_path / "log").read_text().splitlines() == [f"begun {tmp_path}", "ended"] * 2
    assert sorted(set(ended)) == sorted(one.trial_id for one in first)


@pytest.mark.ray
def test_a_grid_that_was_lost_before_its_first_snapshot_begins_anew_in_the_drawn_order(
    tmp_path: Path, local_ray: None
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "tuner.pkl").write_bytes(b"")

    def function(trial_id: str, values: Mapping[str, Any], watcher: Any) -> None:
        trials.report({METRIC: values["x"], STEP: 1})

    space = {"x": Range(low=0.0, high=1.0), "y": Choice(values=("a", None))}
    search = Search(space=space, method="grid", points_per_range=2, metric=METRIC, seed=3)
    done = run_trials(function, search, name="s", path=str(tmp_path), files=["tuner.pkl"], on_end=lambda _: None)
    in_order = sorted(done, key=lambda one: one.trial_id)  # which Tune counts up
    assert [one.values for one in in_order] == search.grid()
    assert sorted((one["x"], str(one["y"])) for one in search.grid()) == [
        (x, y) for x in (0.0, 1.0) for y in ("None", "a")
    ]
    assert search.grid() != dataclasses.replace(search, seed=4).grid()
