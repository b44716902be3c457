from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient

from jobs import tracking


def test_a_dataset_stands_beside_its_run_once(tmp_path: Path) -> None:
    tracker = tracking.open_run(str(tmp_path), experiment="e", name="n", identity_hash="h", params={})
    for _ in range(2):
        tracker.log_dataset("embedded", "0123456789abcdef0123456789abcdef", "corpora/embedded/manifest.parquet")
    (found,) = MlflowClient(tracking_uri=tracker.uri).get_run(tracker.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("embedded", "0123456789abcdef0123456789abcdef")
    assert "manifest.parquet" in found.dataset.source


def test_runs_of_a_sweep_that_are_still_open_are_ended_by_trial(tmp_path: Path) -> None:
    def opened(name: str, **tags: str) -> tracking.Tracker:
        return tracking.open_run(str(tmp_path), experiment="e", name=name, identity_hash="h", params={}, tags=tags)

    parent = opened("sweep")
    below = {tracking.PARENT: parent.run_id}
    one, two, other = opened("one", trial="1", **below), opened("two", trial="2", **below), opened("other")
    done = opened("done", trial="3", **below)
    done.finish("FINISHED")
    client = MlflowClient(tracking_uri=parent.uri)

    def statuses() -> list[str]:
        return [client.get_run(tracker.run_id).info.status for tracker in (one, two, other, done)]

    tracking.end_open(parent.uri, parent.run_id, "1")
    assert statuses() == ["KILLED", "RUNNING", "RUNNING", "FINISHED"]
    tracking.end_open(parent.uri, parent.run_id)
    assert statuses() == ["KILLED", "KILLED", "RUNNING", "FINISHED"]
