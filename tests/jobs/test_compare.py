"""Runs beside each other, from a file and from a real server."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest

from cluster.head import free_ports
from jobs import pretrain
from jobs.command_line import parsing
from jobs.command_line.entry import exit_status
from jobs.launch import driver
from jobs.reports.comparison import CURVES, CompareConfig, compare, costs, differences, scores
from jobs.tracking import logged_runs, mlflow_runs
from jobs.tracking.logged_runs import LoggedRun
from snps3_model.config import ObjectiveConfig


def fill(storage: str) -> None:
    for number, name in enumerate(("one", "two", "<three>")):
        tracker = mlflow_runs.open_run(
            storage,
            experiment="snps3",
            name=name,
            identity_hash=str(number),
            params={"seed": number, "optim.lr": 0.1, "masking.strategy": "mssm" if number else "mlm"},
        )
        for step in range(3):
            tracker.log({"loss/total": 3.0 - step - number / 10, "validation/t2v/mean_recall": step / 10}, step)
        tracker.log({"test/t2v/r1": 0.1 * number, "test/t2v/r1_low": 0.0, "test/t2v/r1_high": 0.5}, 3)
        tracker.log({"test/t2v/median_rank": 10.0 + number, "seconds/step": 7.0}, 3)
        tracker.finish("FINISHED")


def logged(name: str, params: dict[str, str], **metrics: float) -> LoggedRun:
    found = {key.replace("__", "/"): value for key, value in metrics.items()}
    return LoggedRun(name=name, run_id=name, status="FINISHED", params=params, metrics=found, curves={})


def test_only_what_differs_is_listed() -> None:
    runs = [logged("a", {"lr": "1", "seed": "0"}), logged("b", {"lr": "2", "seed": "0", "new": "x"})]
    found = {line["name"]: [one["text"] for one in line["cells"]] for line in differences(runs)}
    assert found == {"lr": ["1", "2"], "new": ["–", "x"]}
    assert differences(runs[:1] * 2) == []


def test_the_best_of_a_line_is_the_highest_and_of_ranks_the_lowest() -> None:
    runs = [logged("a", {}, test__r1=0.2, test__median_rank=3.0), logged("b", {}, test__r1=0.3, test__median_rank=4.0)]
    best = {line["name"]: [one["is_best"] for one in line["cells"]] for line in scores(runs)}
    assert best == {"test/r1": [False, True], "test/median_rank": [True, False]}
    lines = costs([logged("a", {}, seconds__step=1200.0, memory_mib=310.4), logged("b", {})])
    assert [(line["name"], line["cells"][0]["text"]) for line in lines] == [
        ("seconds/step", "1,200"),
        ("memory_mib", "310"),
    ]


def test_runs_of_a_file_are_compared(tmp_path: Path) -> None:
    fill(str(tmp_path))
    out = str(tmp_path / "page.html")
    page = Path(compare(CompareConfig(runs=("one", "two", "<three>"), storage=str(tmp_path), out=out))).read_text()
    assert "&lt;three&gt;" in page
    assert "<three>" not in page
    assert "masking.strategy" in page
    assert "optim.lr" not in page
    assert "0.000 – 0.500" in page
    assert page.count("<svg") == 2
    assert "<script" not in page
    with pytest.raises(ValueError, match=r"has no run 'twoo'; did you mean two\?"):
        compare(CompareConfig(runs=("one", "twoo"), storage=str(tmp_path)))
    with pytest.raises(ValueError, match=r"has no experiment 'other'; it has .*snps3"):
        compare(CompareConfig(runs=("one", "two"), storage=str(tmp_path), experiment="other"))


def test_a_filter_takes_more_runs_than_fit_beside_each_other_the_best_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(str(tmp_path))
    monkeypatch.setattr("jobs.reports.figures.MAX_LINES", 2)
    out = str(tmp_path / "page.html")
    every = CompareConfig(filter="metrics.`test/t2v/r1` >= 0", storage=str(tmp_path), out=out)
    page = Path(compare(every)).read_text()
    everyone, beside = page.split("<h2>Configuration</h2>")
    rows = [everyone.index(f'<th scope="row">{name}<') for name in ("&lt;three&gt;", "two", "one")]
    assert rows == sorted(rows)
    assert '<th scope="col">two</th>' in beside
    assert '<th scope="col">one</th>' not in beside
    assert "3 runs, the best first" in everyone
    with pytest.raises(ValueError, match=r"1 runs pass --filter .* and two or more can be compared"):
        compare(dataclasses.replace(every, filter="metrics.`test/t2v/r1` > 0.15"))
    with pytest.raises(ValueError, match=r"--filter 'r1 is high' is none that MLflow reads .*; write, say"):
        compare(dataclasses.replace(every, filter="r1 is high"))
    with pytest.raises(ValueError, match="give either names of runs or --filter"):
        CompareConfig(runs=("one", "two"), filter="x")


def test_the_best_checkpoint_is_found_among_logged_models_with_its_data_set(tmp_path: Path) -> None:
    fill(str(tmp_path))
    for number, name in enumerate(("one", "two", "<three>")):
        tracker = logged_runs.run_of(str(tmp_path), "snps3", name)
        tracker.log_dataset("embedded", "0123", "manifest.parquet")
        scores = {"test/t2v/r1": (0.2, 0.9, 0.4)[number], "test/t2v/nothing": float("nan")}
        model_id = tracker.log_checkpoint(name, f"weights-{number}", scores, 3)
        assert tracker.log_checkpoint(name, f"weights-{number}", scores, 3) == model_id
    best = logged_runs.run_of(str(tmp_path), "snps3", "two")
    assert logged_runs.best_checkpoint(str(tmp_path), "snps3", "test/t2v/r1") == (best.run_id, "weights-1")
    (output,) = best.client.get_run(best.run_id).outputs.model_outputs
    model = best.client.get_logged_model(output.model_id)
    assert (str(model.status), model.params["seed"]) == ("READY", "1")
    assert [(one.key, one.value, one.dataset_name) for one in model.metrics or ()] == [("test/t2v/r1", 0.9, "embedded")]
    with pytest.raises(ValueError, match="no checkpoint of the experiment 'snps3' has the score 'test/t2v/r2'"):
        logged_runs.best_checkpoint(str(tmp_path), "snps3", "test/t2v/r2")


def test_every_loss_of_the_objective_has_its_curve() -> None:
    objective = dataclasses.replace(ObjectiveConfig(), itm=1.0, clip_order=1.0)
    assert {f"loss/{name}" for name in objective.weights} <= set(CURVES)


def test_a_folder_without_runs_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*nowhere/mlflow\.db"):
        compare(CompareConfig(runs=("one", "two"), storage=f"{tmp_path}/nowhere"))
    assert not list(tmp_path.iterdir())


def test_one_run_and_too_many_are_refused() -> None:
    for count in (1, 19):
        with pytest.raises(ValueError, match=f"got {count}"):
            CompareConfig(runs=("x",) * count)


def test_a_run_named_twice_and_a_name_that_cannot_be_looked_for_are_refused(tmp_path: Path) -> None:
    fill(str(tmp_path))
    (again,) = logged_runs.read_runs(str(tmp_path), "snps3", ["one"], ())
    for second in ("one", again.run_id):
        with pytest.raises(ValueError, match=rf"the run 'one' \({again.run_id}\) is named twice"):
            compare(CompareConfig(runs=("one", "two", second), storage=str(tmp_path)))
    with pytest.raises(ValueError, match=r"it's.* take the run's id"):
        CompareConfig(runs=("it's", "two"))


@pytest.mark.slow
def test_runs_of_a_server_are_compared(tracking_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server)
    fill("s3://anywhere/runs")
    out = str(tmp_path / "page.html")
    page = Path(compare(CompareConfig(runs=("one", "two"), storage="s3://anywhere/runs", out=out))).read_text()
    assert page.count("<svg") == 2


def test_a_server_that_does_not_answer_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    with pytest.raises(ValueError, match=f"http://127.0.0.1:{port} of MLFLOW_TRACKING_URI does not answer") as refused:
        mlflow_runs.refuse_unreachable("runs")
    assert "secret" not in str(refused.value)


def test_a_run_is_refused_before_it_starts_if_its_server_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(parsing, "preflight_status", lambda command: None)
    monkeypatch.setattr(driver, "with_version", lambda *_: pytest.fail("was started"))
    assert exit_status(lambda: pretrain.main(["tiny"])) == 2
    assert f"http://127.0.0.1:{port} of MLFLOW_TRACKING_URI does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(("spans", "grows", "is_refused"), [(True, False, True), (False, True, True), (False,) * 3])
def test_a_run_on_several_machines_wants_a_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spans: bool, grows: bool, is_refused: bool
) -> None:
    monkeypatch.setattr(driver, "spans_machines", lambda: spans)
    monkeypatch.setattr(driver, "grows", lambda: grows)
    with pytest.raises(ValueError, match="is a file on one of them") if is_refused else contextlib.nullcontext():
        driver.refuse_scattered_metrics(str(tmp_path))


def test_a_file_of_one_machine_is_refused_for_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is a file on one of them"):
        mlflow_runs.refuse_local(str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    mlflow_runs.refuse_local(str(tmp_path))
