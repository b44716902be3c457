from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from cluster import trials
from cluster.trials import STEP, Measurements, Search, scheduler

METRIC = "score"


def asha(num_steps: int, num_rungs: int, factor: int) -> Any:
    """As a sweep makes it."""
    first = num_steps // factor**num_rungs
    search = Search(space={}, num_steps=num_steps, first_rung_steps=first, num_rungs=num_rungs, reduction_factor=factor)
    made: Any = scheduler(search)
    made.set_search_properties(METRIC, "max")
    return made


@pytest.mark.parametrize(
    ("num_steps", "num_rungs", "factor", "rungs"),
    [(90, 2, 3, [10, 30]), (100, 2, 3, [11, 33]), (16, 1, 2, [8]), (3, 1, 3, [1]), (480, 3, 3, [17, 51, 153])],
)
def test_a_trial_may_be_stopped_as_often_as_was_said(
    num_steps: int, num_rungs: int, factor: int, rungs: list[int]
) -> None:
    made = asha(num_steps, num_rungs, factor)
    assert sorted(milestone for milestone, _ in made._brackets[0]._rungs) == rungs


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

    assert told(old, 70, 0.9) == TrialScheduler.CONTINUE
    made.on_trial_complete(None, old, {STEP: 90, METRIC: 0.95})
    assert all(not recorded for _, recorded in made._brackets[0]._rungs)
    assert [told(new, step, 0.6) for step in (10, 30)] == [TrialScheduler.CONTINUE] * 2
    assert told(other, 10, 0.3) == TrialScheduler.STOP  # new ones are compared with each other


def test_a_checkpoint_before_the_first_evaluation_is_not_told_to_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(trials.TuneReportCallback, "__init__", lambda self: None)
    monkeypatch.setattr(
        trials.TuneReportCallback, "after_report", lambda self, run, metrics, _: told.append(metrics[0])
    )
    watcher = Measurements(METRIC)
    watcher.after_report(None, [{STEP: 3}], None)
    watcher.after_report(None, [{STEP: 8, METRIC: 0.5}], None)
    assert told == [{STEP: 8, METRIC: 0.5}]
