"""Sweeps by the command that a person types, on a cluster that stays when they are over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import made_once
from mlflow import MlflowClient

from jobs.benchmarks.support.local_cluster import LocalCluster, running_cluster
from jobs.experiments import sweeps
from jobs.tracking.journal import read_journals

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.ray
SIZES = "--data.num-frames 2 --data.frame-size-px 32 --optim.global-batch 8 --optim.warmup-steps 1"
ALL_LOSSES_AT_ONCE = (
    "--model.visual.encoder small_cnn --objective.dual-share 0 --objective.gvtm-level2 1 --objective.lvwm 1 "
    "--objective.masked-words-text 0.3 --objective.masked-words-cross 0.3 --optim.hold-share 0"
)
"""So that words are learned by heart in a few steps."""
PLACE = "--placement.log-every 1 --placement.num-workers 1 --placement.cpus-per-worker 0.5"


@pytest.fixture(scope="module")
def manifest(shared_folder: Path) -> str:
    """Return the manifest of `small_manifest`, made by a process of its own: this one may have no Ray."""
    script = "import sys; from jobs.benchmarks.kills import small_corpus; small_corpus(sys.argv[1])"
    folder = made_once(
        shared_folder / "small_corpus",
        lambda folder: subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, check=True),
    )
    return str(folder / "corpus" / "manifest" / "manifest.parquet")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster on which sweeps leave nothing when they are over."""
    with running_cluster() as nodes:
        nodes.fill(num_train=1, num_data=1)
        yield nodes
        assert leftovers(nodes) == []


def leftovers(cluster: LocalCluster) -> list[str]:
    """Asked for by a process of its own: this one may be connected to the Ray of other tests."""
    script = (
        f"import json; from jobs.benchmarks.kills import leftovers; print(json.dumps(leftovers({cluster.address!r})))"
    )
    command = [sys.executable, "-c", script, cluster.address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class Sweep:
    """A command, and what it leaves."""

    def __init__(
        self,
        folder: Path,
        manifest: str,
        cluster: LocalCluster,
        own: str,
        num_steps: int,
        *,
        evaluate_every: int = 4,
        train_split: str = "train",
        server: str | None = None,
    ) -> None:
        self.folder, self.server = folder, server
        self.environment = os.environ | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
        self.environment |= {"MLFLOW_TRACKING_URI": server} if server else {}
        steps = f"--optim.num-steps {num_steps} --selection.evaluate-every {evaluate_every} --data.temporal-split None"
        paths = f"--data.manifest {os.path.relpath(manifest, ROOT)} --placement.storage {os.path.relpath(folder, ROOT)}"
        base = f"tiny {paths} {steps} {SIZES} {ALL_LOSSES_AT_ONCE} {PLACE} --data.train-split {train_split}"
        self.words = [sys.executable, "jobs/sweep.py", "--name", "s", *own.split(), "--", *base.split()]
        self.log = folder / "sweep.log"

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self.words, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT)

    def run(self) -> int:
        return self.start().wait(500)

    def rows(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "s" / "sweep.json").read_text())

    def statuses(self) -> Counter[str]:
        """Of the MLflow runs, the sweep's own first among them."""
        client = MlflowClient(tracking_uri=self.server or f"sqlite:///{self.folder}/mlflow.db")
        (experiment,) = [one for one in client.search_experiments() if one.name == "snps3"]
        found = client.search_runs([experiment.experiment_id])
        (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
        below = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert len(below) == len(found) - 1 == len({run.data.tags["trial"] for run in below})  # one run per trial
        return Counter(run.info.status for run in below) | {f"sweep {parent.info.status}": 1}


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_goes_on_marks_what_diverges_and_stops_the_worse_early(
    manifest: str, tmp_path: Path, cluster: LocalCluster, tracking_server: str
) -> None:
    """The nodes do not know of the tracking server: the command does."""
    # in the order of the seed: the first trial diverges; the third learns by heart the few clips that it is asked
    # about, and the others nothing. What the second had at the rung is not known any more when the driver is lost
    own = "--vary optim.lr=2e-9,0.004,1e-9,1e30 --search grid --seed 13 --num-rungs 1 --reduction-factor 2"
    own += " --metric validation/masked_word_accuracy"
    sweep = Sweep(tmp_path, manifest, cluster, own, 16, evaluate_every=8, train_split="val", server=tracking_server)
    process = sweep.start()
    deadline = time.monotonic() + 480
    while len(finished := list(tmp_path.glob("s-*/results.json"))) < 1 or len(list(tmp_path.glob("s-*/"))) < 3:
        assert process.poll() is None, sweep.log.read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    (diverged,) = tmp_path.glob("s-*/failure.json")
    assert "not finite at step" in diverged.read_text()
    starts = [line for line in read_journals(str(diverged.parent)) if line["event"] == "start"]
    assert len(starts) == 1  # starting again would only repeat it
    before = {path: path.stat().st_mtime_ns for path in (*finished, diverged)}
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sweep.run() == 0, sweep.log.read_text()[-3000:]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    rows = sweep.rows()
    assert len(rows) == len({row["name"] for row in rows}) == 4
    best, worst = rows[0], rows[-1]
    assert (best["status"], best["num_steps"], best["values"]) == ("finished", 16, {"optim.lr": 0.004})
    assert 0 < best["score"] <= 1
    assert (worst["status"], worst["score"], worst["values"]) == ("diverged", None, {"optim.lr": 1e30})
    statuses = {row["values"]["optim.lr"]: row["status"] for row in rows[:-1]}
    assert statuses == {0.004: "finished", 2e-9: "finished", 1e-9: "stopped"}
    assert sweep.run() == 0  # nothing is left to do
    assert sweep.rows() == rows
    assert sweep.statuses() == {"sweep FINISHED": 1, "FINISHED": 2, "KILLED": 1, "FAILED": 1}
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_ends_its_trials(manifest: str, tmp_path: Path, cluster: LocalCluster) -> None:
    """SIGTERM becomes the SIGINT of Ctrl-C."""
    sweep = Sweep(tmp_path, manifest, cluster, "masking_ratio --num-trials 3 --scheduler none", 4000)
    process = sweep.start()
    deadline = time.monotonic() + 480
    while not list(tmp_path.glob("s-*/best/progress.json")):
        assert process.poll() is None, sweep.log.read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130, sweep.log.read_text()[-3000:]
    said = sweep.log.read_text().splitlines()
    assert any("the same command resumes from here" in line for line in said)
    evaluations = [line for line in said if ": step " in line]
    assert evaluations
    assert len(evaluations) == len(set(evaluations))
    statuses = sweep.statuses()
    assert statuses["sweep KILLED"] == 1
    assert set(statuses) <= {"sweep KILLED", "KILLED"}, statuses


def test_trials_are_marked_before_a_stopped_sweep_interrupts_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that ends with its worker finds its run KILLED, and leaves it so."""
    order: list[str] = []
    is_interrupted = threading.Event()
    terminate = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, lambda *_: (order.append("interrupted"), is_interrupted.set()))
    try:
        sweeps.stop_like_ctrl_c(before=lambda: order.append("marked"))
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_interrupted.wait(30)
        assert order == ["marked", "interrupted"]
        order.clear()
        is_interrupted.clear()
        monkeypatch.setattr(sweeps, "MARKING_SECONDS", 0.1)
        sweeps.stop_like_ctrl_c(before=lambda: time.sleep(60))
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_interrupted.wait(30), "a server that does not answer must not keep the sweep from its end"
    finally:
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGINT, interrupt)
