"""The main job in small, through a real Ray: corpus, prepare, pre-train on two ranks, stop, go on, report."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from jobs.config import DataConfig, OptimConfig, Placement, PretrainConfig, SelectionConfig
from jobs.prepare import PrepareConfig, prepare
from jobs.presets import tiny
from jobs.pretrain import pretrain
from pipeline.ledger import read_ledger
from pipeline.records import Reason, Stage
from pipeline.synthetic.clips import CorpusConfig
from pipeline.synthetic.corpus import make_corpus

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "default"
    ),  # MLflow, SQLAlchemy and Ray Train run in this process and warn of themselves
]


@pytest.fixture(scope="module")
def manifest_path(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    root = tmp_path_factory.mktemp("corpus") / "embedded"
    sizes = CorpusConfig(num_train_videos=150, num_train_images=10, num_val=8, num_test=12, num_temporal_groups=3)
    make_corpus(sizes, root)
    annotations = tuple(str(path) for path in sorted((root / "annotations").glob("*.jsonl")))
    made = prepare(PrepareConfig(corpus="small", root=str(root), annotations=annotations, out=str(root / "manifest")))
    return made.manifest_path


def small_run(manifest_path: str, storage: Path, **changes: object) -> PretrainConfig:
    config = dataclasses.replace(
        tiny(),
        name="small",
        data=DataConfig(manifest=manifest_path, num_frames=2, frame_size_px=32, temporal_split="temporal"),
        optim=OptimConfig(num_steps=4, global_batch=8, warmup_steps=1),
        selection=SelectionConfig(evaluate_every=2),
        placement=Placement(storage=str(storage), log_every=1, max_failures=0),
    )
    return dataclasses.replace(config, **changes)


def test_a_run_leaves_results_and_a_report_and_is_not_run_twice(manifest_path: str, tmp_path: Path) -> None:
    config = small_run(manifest_path, tmp_path)
    results = pretrain(config)
    folder = tmp_path / "small"
    assert 0 <= results["test/t2v/r1_low"] <= results["test/t2v/r1"] <= results["test/t2v/r1_high"] <= 1
    assert results == json.loads((folder / "results.json").read_text())
    assert results["ceiling/temporal/single_frame"] == 0.25
    assert "<html" in (folder / "report.html").read_text()
    assert json.loads((folder / "config.json").read_text())["optim"]["num_steps"] == 4
    assert read_ledger(str(folder / "ledger.parquet")) == []
    assert pretrain(config) == results
    longer = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=1.0))
    with pytest.raises(ValueError, match=r"(?s)name 'small' is taken.*optim\.lr: was 0\.001, is 1\.0"):
        pretrain(longer)


def test_a_clip_that_breaks_after_prepare_is_in_the_ledger_and_the_run_goes_on(
    manifest_path: str, tmp_path: Path
) -> None:
    root = Path(manifest_path).parent.parent
    broken = root / "videos" / "train" / "00000.mp4"
    whole = broken.read_bytes()
    try:
        broken.write_bytes(whole[: len(whole) // 2])
        config = small_run(manifest_path, tmp_path, optim=OptimConfig(num_steps=21, global_batch=8, warmup_steps=1))
        pretrain(dataclasses.replace(config, selection=SelectionConfig(evaluate_every=21)))
        (rejected,) = read_ledger(str(tmp_path / "small" / "ledger.parquet"))
    finally:
        broken.write_bytes(whole)
    assert (rejected.stage, rejected.uri) == (Stage.TRAIN, str(broken))
    assert rejected.reason in (Reason.TRUNCATED, Reason.UNREADABLE)
    shutil.rmtree(tmp_path / "small")
