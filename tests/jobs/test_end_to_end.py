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
    root = tmp_path_factory.mktemp("corpus") / "embedded"
    sizes = CorpusConfig(num_train_videos=150, num_train_images=10, num_val=8, num_test=12, num_temporal_groups=3)
    make_corpus(sizes, root)
    annotations = sorted(str(path) for path in (root / "annotations").glob("*.jsonl"))
    options = ["--corpus", "small", "--root", str(root), "--out", str(root / "manifest"), "--annotations", *annotations]
    made = command("prepare.py", *options)
    assert made.returncode == 0, made.stderr
    return root


def pretrain(corpus: Path, storage: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = ["--data.manifest", str(corpus / "manifest" / "manifest.parquet"), "--placement.storage", str(storage)]
    return command("pretrain.py", "tiny", "--name", "small", *paths, *SMALL.split(), *options)


def test_a_run_leaves_results_and_a_report_and_its_name_is_taken(corpus: Path, tmp_path: Path) -> None:
    steps = ["--optim.num-steps", "4", "--selection.evaluate-every", "2"]
    done = pretrain(corpus, tmp_path, *steps)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "small" / "results.json").read_text())
    assert 0 <= results["test/t2v/r1_low"] <= results["test/t2v/r1"] <= results["test/t2v/r1_high"] <= 1
    assert results["ceiling/temporal/single_frame"] == 0.25
    assert "<html" in (tmp_path / "small" / "report.html").read_text()
    assert read_ledger(str(tmp_path / "small" / "ledger.parquet")) == []
    refused = pretrain(corpus, tmp_path, *steps, "--optim.lr", "1.0")
    assert refused.returncode == 2
    assert "optim.lr" in refused.stderr


def test_a_clip_that_breaks_after_prepare_is_in_the_ledger_and_the_run_goes_on(corpus: Path, tmp_path: Path) -> None:
    broken = corpus / "videos" / "train" / "00000.mp4"
    whole = broken.read_bytes()
    try:
        broken.write_bytes(whole[: len(whole) // 2])
        done = pretrain(corpus, tmp_path, "--optim.num-steps", "21", "--selection.evaluate-every", "21")
    finally:
        broken.write_bytes(whole)
    assert done.returncode == 0, done.stderr
    (rejected,) = read_ledger(str(tmp_path / "small" / "ledger.parquet"))
    assert (rejected.stage, rejected.uri) == (Stage.TRAIN, str(broken))
    assert rejected.reason in (Reason.TRUNCATED, Reason.UNREADABLE)
