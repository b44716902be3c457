"""The main job in small, by the commands that a person types: prepare, pre-train on two ranks, results, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.corpus.ledger import read_ledger
from pipeline.records import Reason, Stage
from pipeline.synthetic.clips import CorpusConfig
from pipeline.synthetic.corpus import make_corpus

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = (
    "--data.num-frames 2 --data.frame-size-px 32 --optim.global-batch 8 --optim.warmup-steps 1 --placement.log-every 1"
)


def command(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / script), *options],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of which one training clip was cut afterwards."""
    root = tmp_path_factory.mktemp("corpus") / "embedded"
    sizes = CorpusConfig(num_train_videos=40, num_train_images=8, num_val=8, num_test=12, num_temporal_groups=3)
    make_corpus(sizes, root)
    annotations = sorted(str(path) for path in (root / "annotations").glob("*.jsonl"))
    options = ["--corpus", "small", "--root", str(root), "--out", str(root / "manifest"), "--annotations", *annotations]
    prepared = command("prepare.py", *options)
    assert prepared.returncode == 0, prepared.stderr
    whole = broken_clip(root).read_bytes()
    broken_clip(root).write_bytes(whole[: len(whole) // 2])
    return root


def broken_clip(corpus: Path) -> Path:
    return corpus / "videos" / "train" / "00000.mp4"


def pretrain(corpus: Path, storage: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = ["--data.manifest", str(corpus / "manifest" / "manifest.parquet"), "--placement.storage", str(storage)]
    # an epoch has 5 steps of videos and 1 of images
    steps = "--optim.num-steps 7 --selection.evaluate-every 4 --placement.num-workers 2".split()
    return command("pretrain.py", "tiny", "--name", "small", *paths, *steps, *SMALL.split(), *options)


@pytest.fixture(scope="module")
def storage(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished run `small`."""
    folder = tmp_path_factory.mktemp("runs")
    done = pretrain(corpus, folder)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    return folder


def test_a_run_leaves_results_and_a_report_and_its_name_is_taken(corpus: Path, storage: Path) -> None:
    results = json.loads((storage / "small" / "results.json").read_text())
    assert results["num_steps"] == 7
    assert 0 <= results["test/t2v/r1_low"] <= results["test/t2v/r1"] <= results["test/t2v/r1_high"] <= 1
    assert results["ceiling/temporal/single_frame"] == 0.25
    assert "<html" in (storage / "small" / "report.html").read_text()
    refused = pretrain(corpus, storage, "--optim.lr", "1.0")
    assert refused.returncode == 2
    assert "optim.lr" in refused.stderr


def test_a_run_says_little_and_its_log_has_the_rest(corpus: Path, storage: Path) -> None:
    said = (storage / "said.txt").read_text()
    (log,) = (storage / "small").glob("pretrain-*.log")
    assert f"log: {log}" in said.splitlines()
    assert len(said.splitlines()) <= 60
    assert str(broken_clip(corpus)) in said
    assert "small · step 1/7 · loss" in said
    for noise in ("mlflow.store", "Starting execution of Dataset"):
        assert noise in log.read_text()
        assert noise not in said


def test_a_clip_that_breaks_after_prepare_is_in_the_ledger_and_the_run_goes_on(corpus: Path, storage: Path) -> None:
    (rejected,) = read_ledger(str(storage / "small" / "ledger.parquet"))
    assert (rejected.stage, rejected.uri) == (Stage.TRAIN, str(broken_clip(corpus)))
    assert rejected.reason in (Reason.TRUNCATED, Reason.UNREADABLE)
