from __future__ import annotations

import dataclasses
import errno
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy import SPLITS, corpus, run_of

from cluster.run import LostError
from jobs.command_line import parsing
from jobs.command_line.entry import exit_status
from jobs.command_line.parsing import Command, parse, preflight_status
from jobs.launch.preflight import Machine, describe, num_parameters, survey, this_machine
from jobs.run.config import PretrainConfig
from jobs.run.fields import config_hash
from jobs.run.presets import tiny
from jobs.run.run_files import write_json
from jobs.run.run_identity import identity, with_decoder
from jobs.training.step import DivergedError
from pipeline.corpus.ledger import TooManyRejectedError
from pipeline.corpus.manifest import make_manifest, read_manifest, write_manifest
from pipeline.stream.config import AugmentationConfig, MixingConfig
from pipeline.text.config import Strategy
from snps3_model.config import VisualConfig
from snps3_model.snps3 import SNPS3

ENOUGH = Machine(num_cpus=2, num_gpus=0)


def problems(config: PretrainConfig, machine: Machine | None = None) -> list[str]:
    return list(survey(config, machine).problems)


def dry_run(config: PretrainConfig, machine: Machine | None = None) -> str:
    return describe(survey(config, machine))


def begin(config: PretrainConfig) -> Path:
    """The run's folder as the driver leaves it before the first step."""
    fields = identity(
        dataclasses.replace(config, data=with_decoder(config.data, None)), read_manifest(config.data.manifest).hash
    )
    folder = Path(config.placement.storage) / config.name
    folder.mkdir(parents=True)
    write_json(f"{folder}/identity.json", {"hash": config_hash(fields), "fields": fields})
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_preset_alone_is_that_preset():
    assert parse(["tiny"]) == Command(config=tiny(), dry_run=False)


def test_any_field_can_be_set_and_the_others_stay():
    arguments = (
        "tiny --name x --optim.lr 2e-4 --placement.num-workers 1 --model.visual.channels 8 16 --masking.strategy mlm "
        "--data.temporal-split None --placement.use-gpu --dry-run"
    )
    expected = dataclasses.replace(
        tiny(),
        name="x",
        optim=dataclasses.replace(tiny().optim, lr=2e-4),
        placement=dataclasses.replace(tiny().placement, num_workers=1, use_gpu=True),
        model=dataclasses.replace(tiny().model, visual=dataclasses.replace(tiny().model.visual, channels=(8, 16))),
        masking=dataclasses.replace(tiny().masking, strategy=Strategy.MLM),
        data=dataclasses.replace(tiny().data, temporal_split=None),
    )
    assert parse(arguments.split()) == Command(config=expected, dry_run=True)


@pytest.mark.parametrize(
    ("arguments", "unknown", "suggested"),
    [
        ("--optim.lrr 1", "--optim.lrr", "--optim.lr"),
        ("--lr 1", "--lr", "--optim.lr"),
        ("--optim.weightdecay 1", "--optim.weightdecay", "--optim.weight-decay"),
        ("--placement.workers 1", "--placement.workers", "--placement.num-workers"),
    ],
)
def test_an_unknown_field_is_refused_with_the_one_that_was_meant(arguments, unknown, suggested, capsys):
    message = refused(["tiny", *arguments.split()], capsys)
    assert f"Unrecognized options: {unknown}" in message
    assert f"{suggested} " in message[message.index("Perhaps you meant") :]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tiyn", "there is no preset 'tiyn'; did you mean tiny? (presets: tiny, coco_vg_resnet50,"),
        ("coco_pvt", "did you mean coco_vg_pvt?"),
        ("--name x", "the name of a preset comes before the fields, as in `tiny --name`"),
        ("tiny --optim.lr -1", "optim.lr must be above 0, got -1.0"),
        ("tiny --optim.lr fast", "--optim.lr: 'fast' is not a number"),
        ("tiny --optim.num-steps None", "--optim.num-steps: 'None' is not a whole number"),
        ("tiny --optim.lr nan", "optim.lr must be a finite number, got nan"),
        ("tiny --optim.betas 0.9 nan", "optim.betas must lie in [0, 1), got 0.9 and nan"),
        ("tiny --objective.lvwm inf", "objective.lvwm must be a finite number, got inf"),
        ("tiny --placement.cpus-per-worker nan", "placement.cpus_per_worker must be a finite number, got nan"),
        ("tiny --placement.cpus-per-worker -1", "placement.cpus_per_worker must not be negative, got -1"),
        ("tiny --placement.max-failures -2", "placement.max_failures must not be negative, got -2"),
        ("tiny --optim.warmup-steps -1", "optim.warmup_steps must not be negative, got -1"),
        ("tiny --optim.weight-decay -1", "optim.weight_decay must not be negative, got -1.0"),
        ("tiny --text.vocabulary-size 0", "text.vocabulary_size must be at least 1, got 0"),
        ("tiny --seed -1", "seed must not be negative, got -1"),
        ("tiny --model.num-layers 0", "model.num_layers must be at least 1, got 0"),
        ("tiny --model.num-heads 0", "model.hidden must be divisible by model.num_heads, got 96 and 0"),
        ("tiny --model.visual.channels 0 8", "model.visual.channels must be at least 1 each, got (0, 8)"),
        ("tiny --model.dropout 1.5", "model.dropout must lie in [0, 1), got 1.5"),
        ("tiny --model.initial-std -1", "model.initial_std must be above 0, got -1.0"),
        ("tiny --placement.storage=", "placement.storage must not be empty"),
        ("tiny --placement.experiment=", "placement.experiment must not be empty"),
        ("tiny --data.manifest=", "data.manifest must name the manifest that jobs/prepare.py wrote"),
        ("tiny --name a/b", "name must be a plain folder name of letters, digits and _ . -, got 'a/b'"),
        ("tiny --name ..", "name must be a plain folder name of letters, digits and _ . -, got '..'"),
        ("tiny --placement.num-workers 3", "got 64 clips for 3 workers; take 63 or 66"),
        (
            "tiny --placement.num-workers 2 --optim.global-batch 1",
            "optim.global_batch must be a multiple of placement.num_workers",
        ),
        (
            "tiny --model.visual.frozen-batch-norm",
            "model.visual.frozen_batch_norm on random weights normalises nothing",
        ),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, capsys):
    printed = refused(arguments.split(), capsys)
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_a_choice_that_there_is_not_names_the_choices(capsys):
    message = refused(["tiny", "--data.decoder", "opencv"], capsys)
    assert "'opencv'" in message
    assert "decord" in message


def test_without_arguments_the_presets_are_listed(capsys):
    assert re.search("webvid_video_swin +Videos of WebVid-2M", refused([], capsys))
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    assert "usage: pretrain.py PRESET" in capsys.readouterr().out


def test_a_good_run_has_a_plan_and_no_problem(tmp_path):
    config = run_of(tmp_path)
    config = dataclasses.replace(config, placement=dataclasses.replace(config.placement, num_workers=2))
    plan = dry_run(config, ENOUGH)
    assert problems(config, ENOUGH) == []
    assert f"tiny: {tmp_path}/runs/tiny (new)" in plan
    assert "toy, 169 clips: train 147 videos + 3 images, val 5 videos, test 6 videos, temporal 8 videos" in plan
    assert (
        "700 steps of 64 clips: 1 epoch of images, then videos; an epoch of images has 1 steps, one of videos 3" in plan
    )
    assert "64 videos × 6 frames of 64 × 64 px = 384 frames, 4.5 MiB per step" in plan
    assert "2 train workers × 0.5 CPU + 1 CPU for decoding = 2 CPUs, of 2 here" in plan
    assert plan.endswith("problems   none")
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_network_is_counted_as_it_would_be_built():
    network = SNPS3(tiny().model, vocabulary_size=70, pad_id=0, separator_id=3)
    assert num_parameters(tiny().model, 70) == sum(parameter.numel() for parameter in network.parameters())


def test_epochs_bound_the_planned_steps(tmp_path):
    config = run_of(tmp_path)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, num_epochs=3))
    assert "7 steps of 64 clips: 1 epoch of images, then videos;" in dry_run(config, ENOUGH)  # 1 + 3 + 3


@pytest.mark.parametrize(
    ("mixing", "line", "num_steps"),
    [
        (MixingConfig(image_epochs=2), "2 epochs of images, then videos", 2 * 1 + 3 * 3),
        (MixingConfig(weights=(1, 2)), "images and videos by turns, 1 to 2", 5 * 3 + 5 * 3 // 2),
    ],
)
def test_the_order_of_images_and_videos_is_planned(tmp_path, mixing, line, num_steps):
    config = run_of(tmp_path)
    data, optim = config.data, config.optim
    config = dataclasses.replace(
        config, data=dataclasses.replace(data, mixing=mixing), optim=dataclasses.replace(optim, num_epochs=5)
    )
    plan = dry_run(config, ENOUGH)
    assert f"{num_steps} steps of 64 clips: {line}; an epoch of images has 1 steps, one of videos 3" in plan
    without_images = dataclasses.replace(config, name="videos")
    write_manifest(corpus(images=0), config.data.manifest)
    found = problems(without_images, ENOUGH)
    if mixing.weights is None:
        assert not found
        assert "15 steps of 64 clips = 5.0 epochs of 3 steps" in dry_run(without_images, ENOUGH)
    else:
        assert "needs images and videos, but the training split has 0 images and 150 videos" in found[0]


def test_the_square_that_the_network_sees_is_the_one_cut_out(tmp_path):
    config = run_of(tmp_path)
    crops = AugmentationConfig(crop_px=24, short_side_px=(28, 36))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augmentation=crops))
    assert "frames of 64 × 64 px = 384 frames, 4.5 MiB per step, shown at 24 × 24 px" in dry_run(config, ENOUGH)
    assert problems(config, ENOUGH) == []
    visual = VisualConfig(encoder="pvt_v2_b0")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, visual=visual))
    (problem,) = problems(config, ENOUGH)
    assert problem.startswith("data.augmentation.crop_px=24: frames of 24 × 24 px are too small")


def test_mixing_and_augmentation_are_fields_of_the_command_line():
    words = ["tiny", "--data.mixing.weights", "1", "3", "--data.mixing.image-epochs", "None"]
    command = parse([*words, "--data.augmentation.long-sides-px", "32", "64"])
    assert command.config.data.mixing == MixingConfig(weights=(1, 3))
    assert command.config.data.augmentation == AugmentationConfig(long_sides_px=(32, 64))


def test_a_cluster_is_counted_when_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    assert this_machine() == Machine(num_cpus=None, num_gpus=None)
    assert "checked when the run starts" in dry_run(run_of(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS")
    assert (this_machine().num_cpus or 0) >= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_workers": 2, "decode_cpus": 2},
            "2 train workers × 0.5 CPU + 2 CPU for decoding = 3 CPUs, but this machine has 2",
        ),
        ({"num_workers": 4}, "4 train workers × 0.5 CPU + 1 CPU for decoding = 3 CPUs, but this machine has 2"),
        ({"num_workers": 2, "use_gpu": True}, "placement.num_workers=2 need a GPU each, but this machine has 0"),
    ],
)
def test_a_sum_that_does_not_come_out_is_a_problem(tmp_path, changes, message):
    config = run_of(tmp_path)
    config = dataclasses.replace(config, placement=dataclasses.replace(config.placement, **changes))
    (problem,) = problems(config, ENOUGH)
    assert message in problem
    assert "lower" in problem


def test_a_missing_manifest_says_how_one_is_made(tmp_path):
    config = run_of(tmp_path)
    (tmp_path / "manifest.parquet").unlink()
    (problem,) = problems(config, ENOUGH)
    assert problem.startswith(f"data.manifest: {tmp_path}/manifest.parquet does not exist")
    assert problem.endswith("or write the manifest with jobs/prepare.py")


def test_a_missing_column_is_named(tmp_path):
    config = run_of(tmp_path)
    pq.write_table(corpus().table.drop_columns(["captions"]), config.data.manifest)
    (problem,) = problems(config, ENOUGH)
    assert f"data.manifest: {config.data.manifest} lacks the column captions" in problem


def test_frames_and_weights_that_the_visual_encoder_cannot_use_are_problems(tmp_path):
    visual = VisualConfig(encoder="pvt_v2_b0", pretrained=f"{tmp_path}/absent.pth")
    config = run_of(tmp_path)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, visual=visual),
        data=dataclasses.replace(config.data, frame_size_px=24),
    )
    size, weights = problems(config, ENOUGH)
    assert "data.frame_size_px=24: frames of 24 × 24 px are too small" in size
    assert weights.startswith(f"model.visual.pretrained={tmp_path}/absent.pth does not exist; download")


@pytest.mark.parametrize(("split", "field"), [("train", "train"), ("val", "validation"), ("test", "test")])
def test_an_empty_split_is_named(tmp_path, split, field):
    config = run_of(tmp_path, corpus({name: count for name, count in SPLITS.items() if name != split}))
    (problem,) = problems(config, ENOUGH)
    assert f"data.{field}_split: the split '{split}' of corpus 'toy' is empty; there are: " in problem


def test_a_temporal_test_needs_clips_and_groups(tmp_path):
    (problem,) = problems(run_of(tmp_path, corpus({"train": 9, "val": 2, "test": 2})), ENOUGH)
    assert "the split 'temporal' of corpus 'toy' is empty" in problem
    assert "--data.temporal-split None leaves the temporal test out" in problem
    (problem,) = problems(run_of(tmp_path, corpus(group=False)), ENOUGH)
    assert "8 of 8 clips of the split 'temporal' have no group" in problem


def test_images_alone_cannot_be_evaluated(tmp_path):
    found = problems(run_of(tmp_path, corpus(kind="image")), ENOUGH)
    assert len(found) == 3
    assert "the split 'val' has 5 images and no videos" in found[0]


def test_a_storage_that_cannot_be_written_is_named(tmp_path):
    config = run_of(tmp_path)
    (tmp_path / "file").write_text("")
    placement = dataclasses.replace(config.placement, storage=str(tmp_path / "file" / "runs"))
    config = dataclasses.replace(config, placement=placement)
    found = problems(config, ENOUGH)
    assert found[0].startswith(f"placement.storage: a part of {tmp_path}/file/runs")
    assert "cannot be written" in dry_run(config, ENOUGH)


@pytest.mark.parametrize(
    ("metric", "meant"), [("t2v/r1", "validation/t2v/r1"), ("validation/t2v/median_rank", "recall")]
)
def test_a_metric_that_cannot_be_selected_by_is_named_before_the_start(tmp_path, metric, meant):
    config = run_of(tmp_path)
    config = dataclasses.replace(config, selection=dataclasses.replace(config.selection, metric=metric))
    (problem,) = problems(config, ENOUGH)
    assert problem.startswith(f"selection.metric='{metric}' cannot select weights; did you mean ")
    assert meant in problem.partition("?")[0]


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", None])
def test_a_manifest_that_is_none_is_named(tmp_path, content):
    config = run_of(tmp_path)
    path = Path(config.data.manifest)
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    (problem,) = problems(config, ENOUGH)
    assert problem.startswith(f"data.manifest: {path} is no Parquet file")
    assert "name the manifest that jobs/prepare.py wrote" in problem
    path.unlink()
    path.mkdir()
    (problem,) = problems(config, ENOUGH)
    assert f"the folder {path} holds no .parquet file" in problem


@pytest.fixture
def no_known_stores() -> Iterator[None]:
    """Clients of object stores are made anew, from the environment as it is within the test."""
    s3 = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()
    yield
    s3.clear_instance_cache()


def test_a_bucket_that_cannot_be_had_is_named_before_the_start(tmp_path, monkeypatch, no_known_stores):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody answers
    config = run_of(tmp_path)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, manifest="s3://nowhere/m.parquet"))
    (problem, *_) = problems(config, ENOUGH)
    assert "no credentials for s3://nowhere/m.parquet: set AWS_ACCESS_KEY_ID" in problem
    assert "or for a public bucket FSSPEC_S3_ANON=true" in problem


def test_a_bucket_for_runs_without_a_place_for_metrics_is_named_before_the_start(tmp_path, bucket, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = run_of(tmp_path)
    config = dataclasses.replace(config, placement=dataclasses.replace(config.placement, storage=f"{bucket}/runs"))
    (problem,) = problems(config, ENOUGH)
    remedy = re.search(r"MLFLOW_TRACKING_URI to .*, or to (sqlite:\S+)", problem)
    assert remedy
    monkeypatch.setenv("MLFLOW_TRACKING_URI", remedy[1])
    assert not problems(config, ENOUGH)


def test_a_bucket_without_the_right_to_write_is_named_before_the_start(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    name = bucket.removeprefix("s3://")
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{name}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    fsspec.filesystem("s3").call_s3("put_bucket_policy", Bucket=name, Policy=policy)
    config = run_of(tmp_path)
    config = dataclasses.replace(config, placement=dataclasses.replace(config.placement, storage=f"{bucket}/runs"))
    (problem,) = problems(config, ENOUGH)
    assert problem.startswith(f"placement.storage: no permission for {bucket}/runs: PutObject was refused")
    assert f"the right s3:PutObject on {bucket}/runs" in problem


def test_clips_in_a_bucket_that_cannot_be_had_are_named_before_the_start(tmp_path, monkeypatch, no_known_stores):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    config = run_of(tmp_path)
    manifest = read_manifest(config.data.manifest)
    uris = pa.array([f"s3://bucket/{row}.mp4" for row in range(len(manifest))])
    table = manifest.table.set_column(
        manifest.table.schema.get_field_index("uri"), manifest.table.schema.field("uri"), uris
    )
    write_manifest(make_manifest(manifest.corpus, "s3://bucket", table), config.data.manifest)
    (problem,) = problems(config, ENOUGH)
    assert problem.startswith("data.manifest: no credentials for s3://bucket/")


def test_an_unknown_store_is_named(tmp_path):
    config = run_of(tmp_path)
    config = dataclasses.replace(config, placement=dataclasses.replace(config.placement, storage="ss3://bucket/runs"))
    assert "use a local path or s3://bucket/key" in problems(config, ENOUGH)[0]


def test_a_vocabulary_that_is_not_there_is_named(tmp_path):
    config = run_of(tmp_path)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocabulary=str(tmp_path / "bert")))
    (problem,) = problems(config, ENOUGH)
    assert problem.startswith(f"text.vocabulary: {tmp_path}/bert does not exist")


def test_a_run_that_was_begun_would_go_on(tmp_path):
    config = run_of(tmp_path)
    folder = begin(config)
    assert "(started, no checkpoint yet)" in dry_run(config, ENOUGH)
    (folder / "checkpoint_1").mkdir()
    (folder / "checkpoint_1" / "progress.json").write_text('{"step": 175}')
    latest = {"latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_1"}}
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(latest))
    moved = dataclasses.replace(config, placement=dataclasses.replace(config.placement, num_workers=1))
    for same in (config, moved):
        assert "(resumes from step 175)" in dry_run(same, ENOUGH)
        assert problems(same, ENOUGH) == []
    write_json(f"{folder}/results.json", {})
    assert "finished" in dry_run(config, ENOUGH)


def test_a_name_that_is_taken_shows_what_differs(tmp_path):
    config = run_of(tmp_path)
    begin(config)
    other = dataclasses.replace(config, seed=1, optim=dataclasses.replace(config.optim, lr=5e-3))
    (problem,) = problems(other, ENOUGH)
    assert f"the run name 'tiny' is taken by another run in {tmp_path}/runs/tiny" in problem
    assert "optim.lr: was 0.002, is 0.005; seed: was 0, is 1" in problem
    assert "give" in problem.lower()
    assert "refused" in dry_run(other, ENOUGH)


def test_a_spoilt_identity_is_a_problem_and_no_traceback(tmp_path):
    config = run_of(tmp_path)
    (begin(config) / "identity.json").write_text("{")
    (problem,) = problems(config, ENOUGH)
    assert "identity.json" in problem


def test_the_exit_code_tells_whether_a_run_may_start(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    good, bad = run_of(tmp_path), dataclasses.replace(run_of(tmp_path), name="bad")
    begin(dataclasses.replace(bad, seed=1))
    assert preflight_status(Command(config=good)) is None
    assert preflight_status(Command(config=good, dry_run=True)) == 0
    assert preflight_status(Command(config=bad, dry_run=True)) == 1
    assert "problems   1\n  - the run name 'bad' is taken" in capsys.readouterr().out
    assert preflight_status(Command(config=bad)) == 2
    assert capsys.readouterr().err.startswith("error: the run name 'bad' is taken")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no clip"), 2),
        (PermissionError("no right"), 2),
        (ConnectionError("no answer"), 2),
        (OSError(errno.ENOSPC, "no space left"), 1),
        (TooManyRejectedError("half of the clips"), 1),
        (LostError("three workers"), 1),
        (DivergedError("step 3"), 1),
    ],
)
def test_what_stops_a_command_is_one_line_and_a_status(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> int:
        raise error

    assert exit_status(stopped) == status
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_a_bug_keeps_its_traceback_and_ctrl_c_its_status() -> None:
    def fails(error: BaseException) -> Callable[[], int]:
        def main() -> int:
            raise error

        return main

    with pytest.raises(RuntimeError, match="a bug"):
        exit_status(fails(RuntimeError("a bug")))
    with pytest.raises(ModuleNotFoundError):
        exit_status(fails(ModuleNotFoundError("No module named 'ours'", name="ours")))
    assert exit_status(fails(KeyboardInterrupt())) == 130


def test_a_dry_run_of_many_runs_shows_the_plan_of_one_and_starts_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_of(tmp_path)
    words = ["tiny", "--data.manifest", config.data.manifest, "--placement.storage", config.placement.storage]
    words += ["--data.num-frames", "6", "--data.frame-size-px", "64", "--dry-run"]
    with pytest.raises(SystemExit) as stop:
        parsing.parse_checked(words, name="ratio", program="sweep.py … --")
    assert "ratio-base" in capsys.readouterr().out
    assert stop.value.code in (0, 1)  # whether this machine has room enough
