"""What a run logs while its tracking server is gone arrives when it is back, in this run or in the next one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from jobs.tracking import mlflow_runs, patient_tracker
from jobs.tracking.patient_tracker import PatientTracker, save_unsent, saved_points, send_saved

CURVE = [(step, 1.0 / step) for step in range(1, 6)]


@contextmanager
def server_gone() -> Iterator[None]:
    """Every request with metrics fails, as MLflow's own client says it."""

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("API request failed: connection refused")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", refuse)
        yield


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PatientTracker:
    monkeypatch.setattr(patient_tracker, "PAUSE_SECONDS", 0.02)
    run = mlflow_runs.open_run(str(tmp_path), experiment="e", name="n", identity_hash="h", params={})
    return PatientTracker(run.uri, run.run_id)


def test_points_wait_for_a_server_that_comes_back(
    tracker: PatientTracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with server_gone():
        for step, value in CURVE[:3]:
            tracker.log({"loss/total": value, "lr": float("nan")}, step)
        assert [point[3] for point in tracker.unsent(0.1)] == [1, 2, 3]
    for step, value in CURVE[3:]:
        tracker.log({"loss/total": value}, step)
    save_unsent(tracker, str(tmp_path))
    assert tracker.history("loss/total") == CURVE
    assert saved_points(str(tmp_path)) == []
    assert "training goes on" in caplog.records[0].getMessage()


def test_points_that_never_arrived_are_sent_by_the_next_driver(tracker: PatientTracker, tmp_path: Path) -> None:
    again = PatientTracker(tracker.uri, tracker.run_id)  # of the next worker group
    with server_gone():
        for rank, curve in ((tracker, CURVE[:2]), (again, CURVE[2:])):
            for step, value in curve:
                rank.log({"loss/total": value}, step)
            save_unsent(rank, str(tmp_path), wait_seconds=0.1)
            rank.waiting.clear()  # the process ends
    driver = mlflow_runs.Tracker(tracker.uri, tracker.run_id)
    send_saved(driver, str(tmp_path))
    assert driver.history("loss/total") == CURVE
    assert saved_points(str(tmp_path)) == []


def test_a_server_that_is_gone_for_good_ends_the_run_with_what_to_do() -> None:
    with pytest.raises(mlflow_runs.SilentServerError, match=r"runs/x is trained .* give the same command again"):
        mlflow_runs.refuse_silent("http://me:secret@127.0.0.1:9", "runs/x")
    mlflow_runs.refuse_silent("sqlite:///there", "runs/x")
