from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs.tracking import mlflow_runs


def test_what_a_registered_model_needs_is_on_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cpu")
    assert set(mlflow_runs.model_requirements()) >= {"torch==2.13.0", "transformers==2.13.0"}


def test_a_dataset_stands_beside_its_run_once(tmp_path: Path) -> None:
    tracker = mlflow_runs.open_run(str(tmp_path), experiment="e", name="n", identity_hash="h", params={})
    for _ in range(2):
        tracker.log_dataset("embedded", "0123456789abcdef0123456789abcdef", "corpora/embedded/manifest.parquet")
    (found,) = MlflowClient(tracking_uri=tracker.uri).get_run(tracker.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("embedded", "0123456789abcdef0123456789abcdef")
    assert "manifest.parquet" in found.dataset.source


@pytest.mark.parametrize(
    ("code", "hash_alone", "is_dirty"), [("0a1b", "0a1b", "false"), ("0a1b-dirty", "0a1b", "true")]
)
def test_runs_can_be_searched_by_commit_and_by_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, hash_alone: str, is_dirty: str
) -> None:
    monkeypatch.setattr(mlflow_runs, "git_commit", lambda: code)
    tracker = mlflow_runs.open_run(str(tmp_path), experiment="e", name="n", identity_hash="h", params={})
    tags = MlflowClient(tracking_uri=tracker.uri).get_run(tracker.run_id).data.tags
    assert (tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]) == (hash_alone, is_dirty)


@pytest.mark.parametrize("given", ["file:/a/mlruns", "file:///a/mlruns", "/a/mlruns"])
def test_a_folder_is_refused_with_the_command_that_moves_it(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    with pytest.raises(ValueError, match="mlflow migrate-filestore --source /a/mlruns --target sqlite:///"):
        mlflow_runs.tracking_uri("runs")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:a@b@host:5000/x", "http://host:5000/x"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_its_password_and_otherwise_as_it_is(uri: str, shown: str) -> None:
    assert mlflow_runs.without_password(uri) == shown


def test_runs_of_a_sweep_that_are_still_open_are_ended_by_trial(tmp_path: Path) -> None:
    def opened(name: str, **tags: str) -> mlflow_runs.Tracker:
        return mlflow_runs.open_run(str(tmp_path), experiment="e", name=name, identity_hash="h", params={}, tags=tags)

    parent = opened("sweep")
    below = {mlflow_runs.PARENT: parent.run_id}
    one, two, other = opened("one", trial="1", **below), opened("two", trial="2", **below), opened("other")
    done = opened("done", trial="3", **below)
    done.finish("FINISHED")
    client = MlflowClient(tracking_uri=parent.uri)

    def statuses() -> list[str]:
        return [client.get_run(tracker.run_id).info.status for tracker in (one, two, other, done)]

    mlflow_runs.end_open(parent.uri, parent.run_id, "1")
    assert statuses() == ["KILLED", "RUNNING", "RUNNING", "FINISHED"]
    mlflow_runs.end_open(parent.uri, parent.run_id)
    assert statuses() == ["KILLED", "KILLED", "RUNNING", "FINISHED"]
    one.finish("FAILED")  # its driver ends late, and knows only that it did not come to its end
    assert statuses()[0] == "KILLED"
    late = opened("late", trial="4", **below)
    late.finish("FAILED")
    mlflow_runs.end_open(parent.uri, parent.run_id, "4", has_failed=True)
    assert client.get_run(late.run_id).info.status == "KILLED"


def test_a_run_whose_begin_was_cut_short_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = mlflow_runs.open_run(str(tmp_path), experiment="e", name="sweep", identity_hash="h", params={})

    def opened() -> mlflow_runs.Tracker:
        params, below = {"optim.lr": 0.1}, {mlflow_runs.PARENT: parent.run_id}
        return mlflow_runs.open_run(
            str(tmp_path), experiment="e", name="n", identity_hash="h", params=params, tags=below
        )

    def lost(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", lost)
        with pytest.raises(ConnectionError):
            opened()
    client = MlflowClient(tracking_uri=parent.uri)
    mlflow_runs.end_open(parent.uri, parent.run_id)
    (run,) = (run for run in client.search_runs(["1"]) if run.info.run_id != parent.run_id)
    assert run.info.status == "KILLED"
    assert opened().run_id == opened().run_id == run.info.run_id
    assert client.get_run(run.info.run_id).data.params == {"optim.lr": "0.1"}
