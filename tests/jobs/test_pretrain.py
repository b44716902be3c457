"""The main job through a real Ray, with a network so small that a run takes seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.train
import torch
from safetensors.torch import load_file
from torch import Tensor

from cluster import run as cluster_run
from jobs.benchmarks.support.one_process import in_one_process
from jobs.corpus.preparation import PrepareConfig, PrepareResult, prepare
from jobs.launch.driver import pretrain
from jobs.launch.preflight import survey
from jobs.run import run_files
from jobs.run.config import DataConfig, OptimConfig, Placement, PretrainConfig, SelectionConfig, TextConfig
from jobs.run.presets import tiny
from jobs.run.run_identity import with_decoder
from jobs.tracking import mlflow_runs
from jobs.training.job import make_sources, with_absolute_weights
from pipeline import storage
from pipeline.corpus.ledger import TooManyRejectedError, read_ledger
from pipeline.corpus.manifest import read_manifest
from pipeline.decode.codec import encode_video
from pipeline.records import Reason
from pipeline.stream.config import AugmentationConfig
from pipeline.stream.loader import decode_share
from snps3_model.config import ObjectiveConfig, VisualConfig

pytestmark = pytest.mark.ray
REAL_CLIPS = (
    ("video1.mp4", "train", 0.0, 5.0, "a scene of the first half"),
    ("video1.mp4", "train", 5.0, 10.0, "another scene of the second half"),
    ("video9770.mp4", "train", 0.0, 3.7, "a person is connecting something to system"),
    ("video9770.mp4", "train", 5.0, 7.0, "the system is connected by a person"),
    ("video9771.mp4", "val", 2.3, 3.2, "a little girl does gymnastics"),
    ("dog.jpg", "train", None, None, "a dog looks at the camera"),
)
CUT_CLIP = ("cut.mp4", "train", 0.0, 3.7, "a person is connecting something to system")


def small_run(name: str, manifest: str, folder: str, *, num_steps: int, global_batch: int) -> PretrainConfig:
    """A run on two ranks that validates and tests on the split `val`, and shows clips anew in each epoch."""
    shown_anew = AugmentationConfig(crop_px=24, short_side_px=(26, 40), flip_probability=0.5, num_operations=2)
    return dataclasses.replace(
        tiny(),
        name=name,
        data=DataConfig(manifest=manifest, test_split="val", num_frames=2, frame_size_px=32, augmentation=shown_anew),
        text=TextConfig(vocabulary_size=120),
        model=dataclasses.replace(
            tiny().model, visual=VisualConfig(channels=(8, 16)), hidden=16, num_layers=1, num_heads=2, feed_forward=32
        ),
        objective=ObjectiveConfig(num_hard_negatives=1, negative_spread=2.0),
        # some gradients are little but rounding, which Adam would blow up to whole steps with its own eps
        optim=OptimConfig(num_steps=num_steps, global_batch=global_batch, warmup_steps=1, eps=1e-3),
        selection=SelectionConfig(evaluate_every=num_steps),
        placement=Placement(storage=folder, log_every=1),
    )


def last_weights(config: PretrainConfig) -> dict[str, Tensor]:
    """The weights of the run's last checkpoint."""
    folder = Path(config.placement.storage) / config.name
    checkpoint = run_files.committed_checkpoint(str(folder))
    assert checkpoint
    return load_file(folder / checkpoint / run_files.WEIGHTS)


def prepare_real_clips(real_files: Path, folder: Path, *, cut: bool) -> PrepareResult:
    """The real clips and the image; with a copy of one of them that ends in its middle, if `cut`."""
    videos, lines = folder / "videos", [*REAL_CLIPS]
    videos.mkdir(parents=True)
    for name in {clip[0] for clip in REAL_CLIPS}:
        shutil.copyfile(real_files / "videos" / name, videos / name)
    if cut:
        whole = (videos / "video9770.mp4").read_bytes()
        (videos / CUT_CLIP[0]).write_bytes(whole[: len(whole) // 2])
        lines.append(CUT_CLIP)
    keys = ("clip_name", "split", "start", "end", "caption")
    written = [{key: value for key, value in zip(keys, line, strict=True) if value is not None} for line in lines]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    captions = (str(folder / "captions.jsonl"),)
    return prepare(
        PrepareConfig(
            corpus="real", root=str(videos), annotations=captions, out=str(folder / "out"), max_rejected_share=0.25
        )
    )


def training_frames(config: PretrainConfig) -> list[dict]:
    """What the workers are handed in every step of the run, but for where the files lie."""
    data = with_decoder(config.data, None)
    source = make_sources(data, config.placement, config.optim.global_batch, config.seed)["train"]
    tables = [decode_share(source, step, 0, 1) for step in range(config.optim.num_steps)]
    return pa.concat_tables(tables).drop_columns("uri").to_pylist()


def test_ranks_are_given_weights_by_paths_that_lead_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit").mkdir()

    def given(*, visual: VisualConfig | None = None, **model: Any) -> list[str | None]:
        changed = dataclasses.replace(tiny().model, visual=visual or tiny().model.visual, **model)
        made = with_absolute_weights(changed)
        return [made.initial_weights, made.pretrained_text, made.visual.pretrained, made.visual.backbone]

    assert given() == [None] * 4
    assert given(initial_weights="a/b/w.safetensors") == [f"{tmp_path}/a/b/w.safetensors", None, None, None]
    assert given(initial_weights="s3://b/w.safetensors")[0] == "s3://b/w.safetensors"
    assert given(pretrained_text="org/bert")[1] == "org/bert"
    pvt = VisualConfig(encoder="pvt_v2_b2", pretrained="pretrained/w.safetensors")
    assert given(visual=pvt)[2] == f"{tmp_path}/pretrained/w.safetensors"
    assert given(visual=VisualConfig(encoder="auto", backbone="vit"))[3] == f"{tmp_path}/vit"
    assert given(visual=VisualConfig(encoder="auto", backbone="org/vit"))[3] == "org/vit"


def test_real_clips_are_trained_on_and_a_cut_copy_of_one_changes_nothing(
    real_files: Path, tmp_path: Path, local_ray: None
) -> None:
    prepared = [prepare_real_clips(real_files, tmp_path / name, cut=name == "cut") for name in ("whole", "cut")]
    whole, cut = prepared
    assert (whole.num_clips, whole.num_rejected) == ({"train": 5, "val": 1}, {})
    assert (cut.num_clips, cut.num_rejected) == ({"train": 5, "val": 1}, {"truncated": 1})
    (lost,) = read_ledger(cut.ledger_path)
    assert (lost.reason, Path(lost.uri).name) == (Reason.TRUNCATED, "cut.mp4")
    assert cut.manifest_hash == whole.manifest_hash
    ids = [read_manifest(one.manifest_path).table["clip_id"] for one in prepared]
    assert ids[0].equals(ids[1])

    runs = [
        small_run("cut", one.manifest_path, str(tmp_path / "runs"), num_steps=4, global_batch=4) for one in (whole, cut)
    ]
    assert training_frames(runs[0]) == training_frames(runs[1])
    # the one clip of the validation split is found in the first evaluation, so no later one is better
    selection = SelectionConfig(evaluate_every=1, patience=2)
    placement = dataclasses.replace(runs[1].placement, num_workers=1)
    runs[1] = dataclasses.replace(runs[1], selection=selection, placement=placement)
    with in_one_process():
        found = pretrain(runs[1])
    assert (found["num_steps"], found["num_rejected"], found["manifest_hash"]) == (3, 0, whole.manifest_hash)
    assert all(torch.isfinite(weight).all() for weight in last_weights(runs[1]).values())


def write_videos(folder: Path) -> None:
    """Ten clips to train on, which no batch of four divides, and three to validate on; each of one colour."""
    colours = np.random.default_rng(0).integers(0, 255, (13, 3), np.uint8)
    (folder / "videos").mkdir()
    lines = []
    for number, colour in enumerate(colours):
        frames = np.broadcast_to(colour, (8, 32, 32, 3)).copy()
        (folder / "videos" / f"v{number}.mp4").write_bytes(encode_video(frames, fps=8))
        names = {"clip_name": f"v{number}", "split": "val" if number > 9 else "train"}
        lines.append(names | {"caption": f"a clip in the colour number {number} of many"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def prepare_videos(root: str) -> PrepareResult:
    """Manifest and ledger of the videos below `root`, in a folder or a bucket."""
    captions = (f"{root}/captions.jsonl",)
    return prepare(PrepareConfig(corpus="toy", root=f"{root}/videos", annotations=captions, out=f"{root}/out"))


def pretrain_until_stopped(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM reaches the driver before the run's first step, and the run ends after it."""
    run = cluster_run.run

    def asked_to_stop(*positional: Any, **named: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        run(*positional, **named)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(cluster_run, "run", asked_to_stop)
        assert pretrain(config) == {}
    assert signal.getsignal(signal.SIGTERM) is handler
    folder = f"{config.placement.storage}/{config.name}"
    assert run_files.committed_step(folder) == 1
    assert not run_files.is_finished(folder)


def losses(config: PretrainConfig, config_hash: str) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each loss, as it was tracked."""
    placement = config.placement
    tracker = mlflow_runs.open_run(
        placement.storage, experiment=placement.experiment, name=config.name, identity_hash=config_hash, params={}
    )
    names = tracker.client.get_run(tracker.run_id).data.metrics
    return {name: tracker.history(name) for name in names if name.startswith("loss/")}


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_videos(tmp_path)
    prepared = prepare_videos(str(tmp_path))
    whole = small_run("whole", prepared.manifest_path, str(tmp_path / "runs"), num_steps=5, global_batch=4)
    of_whole = pretrain(whole)
    stopped = dataclasses.replace(whole, name="stopped")
    pretrain_until_stopped(stopped, monkeypatch)
    for num_workers in (1, 4):
        shutil.copytree(tmp_path / "runs", tmp_path / f"on-{num_workers}")

    of_stopped = pretrain(stopped)
    torch.testing.assert_close(last_weights(stopped), last_weights(whole), rtol=0, atol=0)
    measured = {name for name in of_whole if name.startswith("test/")}
    assert measured
    assert {name: of_stopped[name] for name in measured} == {name: of_whole[name] for name in measured}
    config_hash = of_whole["config_hash"]
    assert losses(stopped, config_hash) == losses(whole, config_hash)

    for num_workers in (1, 4):
        placement = dataclasses.replace(
            stopped.placement,
            storage=str(tmp_path / f"on-{num_workers}"),
            num_workers=num_workers,
            cpus_per_worker=0.25,
        )
        other = dataclasses.replace(stopped, placement=placement)
        with in_one_process() if num_workers == 1 else contextlib.nullcontext():  # a single rank needs nobody
            pretrain(other)
        torch.testing.assert_close(losses(other, config_hash), losses(whole, config_hash), rtol=1e-5, atol=0)
        found = last_weights(other)
        for name, weight in last_weights(whole).items():
            apart = (found[name] - weight).float().square().mean().sqrt().item()
            assert apart <= 1e-3 * whole.optim.lr, (name, apart)  # sums are rounded in another order


def test_a_bucket_holds_corpus_ledger_and_run_and_a_stopped_run_goes_on(
    bucket: str, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_videos(tmp_path)
    (tmp_path / "videos" / "v3.mp4").write_bytes(b"no video at all")
    for path in (*(tmp_path / "videos").iterdir(), tmp_path / "captions.jsonl"):
        storage.write_bytes_atomic(f"{bucket}/{path.relative_to(tmp_path)}", path.read_bytes())
    with pytest.raises(TooManyRejectedError):
        prepare_videos(bucket)
    (lost,) = read_ledger(f"{bucket}/out/rejected.parquet")
    assert lost.uri == f"{bucket}/videos/v3.mp4"
    storage.remove(lost.uri)
    kept = [line for line in storage.read_bytes(f"{bucket}/captions.jsonl").splitlines(True) if b"v3" not in line]
    storage.write_bytes_atomic(f"{bucket}/captions.jsonl", b"".join(kept))
    prepared = prepare_videos(bucket)
    assert (prepared.num_clips, prepared.num_rejected) == ({"train": 9, "val": 3}, {})

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # where MLflow puts the artefacts of such a server
    run = small_run("small", prepared.manifest_path, f"{bucket}/runs", num_steps=3, global_batch=4)
    assert survey(run).problems == ()
    alone = dataclasses.replace(run, placement=dataclasses.replace(run.placement, num_workers=1))
    pretrain_until_stopped(alone, monkeypatch)
    found = pretrain(run)
    assert (found["num_steps"], found["num_rejected"]) == (3, 0)
    assert run_files.is_finished(f"{bucket}/runs/small")
    assert read_ledger(f"{bucket}/runs/small/ledger.parquet") == []
    assert pretrain(run) == found


def test_checkpoints_of_any_size_reach_a_store_that_wants_no_checksums_behind_the_data(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ceph and older MinIO answer the checksums of Arrow's own client with HTTP 411."""
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.delenv(name, raising=False)
    contents = {"small": b"x", "empty": b"", "large": os.urandom(60 * 2**20)}  # the last in several parts
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    storage.upload_folder(str(tmp_path), f"{bucket}/run/checkpoint")
    assert {name: storage.read_bytes(f"{bucket}/run/checkpoint/{name}") for name in contents} == contents
    filesystem, path = storage.arrow_filesystem(f"{bucket}/run")
    filesystem = pickle.loads(pickle.dumps(filesystem))  # as it comes to a worker
    with filesystem.open_output_stream(f"{path}/{run_files.SNAPSHOT}") as file:  # as Ray Train commits
        file.write(b"{}")
    assert storage.read_bytes(f"{bucket}/run/{run_files.SNAPSHOT}") == b"{}"
    with checkpoints_folder(f"{path}/checkpoint", filesystem) as folder:
        assert {name: (Path(folder) / name).read_bytes() for name in contents} == contents


def checkpoints_folder(path: str, filesystem: Any) -> Any:
    """As a rank gets its checkpoint."""
    return ray.train.Checkpoint(path, filesystem).as_directory()
