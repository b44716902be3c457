"""What a rank hands to its network: clips shown anew in training, the middle in evaluation, whatever the ranks."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from cluster.run import Runtime
from cluster.world import World
from jobs.run.config import DataConfig, OptimConfig, PretrainConfig
from jobs.tasks.captions import CaptionTask
from jobs.tasks.text import TextProcessor
from jobs.training.batches import RankBatches
from jobs.training.job import Job, make_sources
from jobs.training.step import Clock
from pipeline.corpus.manifest import checksum, clip_id, make_manifest, write_manifest
from pipeline.decode.codec import encode_video
from pipeline.records import Batch, Kind, Stage
from pipeline.storage import upload_folder
from pipeline.stream.config import AugmentationConfig, MixingConfig
from pipeline.stream.loader import ClipSource, decode_share
from pipeline.text.significance import mine_significant_words
from pipeline.text.tokenizer import train_wordpiece

NUM_VIDEOS, NUM_IMAGES, BATCH, SIZE_PX, CROP_PX, IMAGE_EPOCHS = 9, 6, 4, 32, 20, 2
NUM_STEPS = IMAGE_EPOCHS * 2 + 3 + 3
CAPTIONS = [f"a bright square number {number} moves" for number in range(NUM_VIDEOS + NUM_IMAGES)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """Two epochs of images and then videos, in crops; nine of the videos are evaluated too."""
    folder, rows = tmp_path_factory.mktemp("corpus"), []
    for number, caption in enumerate(CAPTIONS):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 4, 6, 3), np.uint8)
        frames = coarse.repeat(8, 1).repeat(8, 2)
        is_video = number < NUM_VIDEOS
        path = folder / (f"{number}.mp4" if is_video else f"{number}.png")
        if is_video:
            path.write_bytes(encode_video(frames, fps=8))
        else:
            Image.fromarray(frames[0]).save(path)
        row = {
            "clip_id": clip_id("toy", path.name),
            "uri": str(path),
            "captions": [caption],
            "kind": (Kind.VIDEO if is_video else Kind.IMAGE).value,
            "split": "train",
            "width": 48,
            "height": 32,
            "fps": 8.0 if is_video else None,
            "duration_seconds": 1.0 if is_video else None,
            "num_frames": 8 if is_video else 1,
            "bytes": path.stat().st_size,
            "checksum": checksum(path.read_bytes()),
        }
        rows += [row, row | {"clip_id": clip_id("toy", f"val/{path.name}"), "split": "val"}] if is_video else [row]
    write_manifest(make_manifest("toy", str(folder), rows), str(folder / "manifest.parquet"))
    return PretrainConfig(
        name="toy",
        data=DataConfig(
            decoder="decord",
            manifest=str(folder / "manifest.parquet"),
            test_split="val",
            num_frames=2,
            frame_size_px=SIZE_PX,
            mixing=MixingConfig(image_epochs=IMAGE_EPOCHS),
            augmentation=AugmentationConfig(
                crop_px=CROP_PX, short_side_px=(22, 30), flip_probability=0.5, num_operations=2
            ),
        ),
        optim=OptimConfig(num_steps=NUM_STEPS, global_batch=BATCH),
    )


def sources_of(config: PretrainConfig) -> dict[str, ClipSource]:
    return make_sources(config.data, config.placement, config.optim.global_batch, config.seed)


def job_of(config: PretrainConfig) -> Job:
    tokenizer = train_wordpiece(CAPTIONS, 100)
    return Job(
        name=config.name,
        seed=config.seed,
        run_folder="",
        text=TextProcessor(
            tokenizer=tokenizer,
            table=mine_significant_words(CAPTIONS, tokenizer.pieces),
            text=config.text,
            masking=config.masking,
            seed=config.seed,
        ),
        task=CaptionTask(objective=config.objective),
        model=config.model,
        sources=sources_of(config),
        data=config.data,
        optim=config.optim,
        selection=config.selection,
        placement=config.placement,
    )


def batches(
    config: PretrainConfig, source: str, stage: Stage, *, rank: int = 0, num_ranks: int = 1, start: int = 0
) -> Iterator[Batch]:
    """What `rank` shows its network in the steps from `start` on, decoded here and now."""
    job = job_of(config)
    clips = job.sources[source]
    stop = NUM_STEPS if source == "train" else clips.num_evaluation_steps()
    tables = (decode_share(clips, step, rank, num_ranks) for step in range(start, stop))
    world = World(rank, num_ranks, torch.device("cpu"))
    return RankBatches(job, Runtime(world, upload_folder), Clock()).read(source, tables, start)


def columns(batch: Batch) -> list[torch.Tensor]:
    return [batch.clip_ids, batch.frames, batch.frame_pad_mask]


@pytest.fixture(scope="module")
def training(config: PretrainConfig) -> list[Batch]:
    return list(batches(config, "train", Stage.TRAIN))


def test_images_come_first_for_their_epochs_and_then_videos_each_clip_once_per_epoch(training: list[Batch]) -> None:
    assert [batch.frames.shape for batch in training] == [
        (BATCH, num_frames, CROP_PX, CROP_PX, 3) for num_frames in (1, 1, 1, 1, 2, 2, 2, 2, 2, 2)
    ]
    for first, stop, num_clips in ((0, 2, NUM_IMAGES), (2, 4, NUM_IMAGES), (4, 7, NUM_VIDEOS), (7, 10, NUM_VIDEOS)):
        ids = torch.cat([batch.clip_ids[batch.weight == 1] for batch in training[first:stop]])
        assert len(ids) == len(ids.unique()) == num_clips


def test_a_later_epoch_shows_the_same_image_anew(training: list[Batch]) -> None:
    shown: list[dict[int, bytes]] = [{}, {}]
    for step, batch in enumerate(training[:4]):
        for clip, frames, weight in zip(batch.clip_ids.tolist(), batch.frames, batch.weight, strict=True):
            if weight:
                shown[step // 2][clip] = frames.numpy().tobytes()
    assert all(shown[0][clip] != shown[1][clip] for clip in shown[0])


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_share_what_one_process_shows(config: PretrainConfig, training: list[Batch], num_ranks: int) -> None:
    ranks = [batches(config, "train", Stage.TRAIN, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for whole, *parts in zip(training, *ranks, strict=True):
        for expected, *shares in zip(columns(whole), *map(columns, parts), strict=True):
            assert torch.equal(torch.cat(shares), expected)


@pytest.mark.parametrize("start", [1, 3, 4, 8])
def test_a_resumed_run_shows_what_an_unbroken_one_does(
    config: PretrainConfig, training: list[Batch], start: int
) -> None:
    resumed = list(batches(config, "train", Stage.TRAIN, start=start))
    assert len(resumed) == NUM_STEPS - start
    for one, other in zip(resumed, training[start:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(columns(one), columns(other), strict=True))


def test_evaluation_shows_the_middle_whatever_the_seed(config: PretrainConfig) -> None:
    shown = [list(batches(dataclasses.replace(config, seed=seed), "validation", Stage.EVALUATE)) for seed in (0, 1)]
    for one, other in zip(*shown, strict=True):
        assert torch.equal(one.frames, other.frames)
        assert one.frames.shape == (BATCH, 2, CROP_PX, CROP_PX, 3)
    plain = dataclasses.replace(config.data.augmentation, flip_probability=0.0, num_operations=0)
    without = dataclasses.replace(config, data=dataclasses.replace(config.data, augmentation=plain))
    for one, other in zip(shown[0], batches(without, "validation", Stage.EVALUATE), strict=True):
        assert torch.equal(one.frames, other.frames)


def test_without_augmentation_the_network_sees_what_was_decoded(config: PretrainConfig) -> None:
    off = dataclasses.replace(config, data=dataclasses.replace(config.data, augmentation=AugmentationConfig()))
    table = decode_share(sources_of(off)["train"], 0, 0, 1)
    (first, *_) = batches(off, "train", Stage.TRAIN)
    for row, square in zip(table.to_pylist(), first.frames.numpy(), strict=True):
        height, width = row["real_height"], row["real_width"]
        assert row["frames"] == square[:, :height, :width].tobytes()
        assert not square[:, height:].any()
        assert not square[:, :, width:].any()
    assert first.frames.shape == (BATCH, 1, SIZE_PX, SIZE_PX, 3)


def test_what_was_made_ahead_of_its_step_is_not_yet_counted(config: PretrainConfig) -> None:
    job, is_second_taken = job_of(config), threading.Event()
    source = job.sources["train"]

    def tables() -> Iterator[pa.Table]:
        for step in range(NUM_STEPS):
            yield decode_share(source, step, 0, 1)
            is_second_taken.set()

    rank = RankBatches(job, Runtime(World(0, 1, torch.device("cpu")), upload_folder), Clock())
    stream = rank.read("train", tables(), 0)
    next(stream)
    assert is_second_taken.wait(60)  # in a thread: nobody asks for the second batch here
    assert rank.num_seen == BATCH
    next(stream)
    assert rank.num_seen == NUM_IMAGES
    (thread,) = [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    del stream  # as at the end of a run
    thread.join(60)
    assert not thread.is_alive()


def test_an_error_of_the_thread_that_makes_batches_reaches_the_loop_with_its_place(config: PretrainConfig) -> None:
    job = job_of(config)

    def torn() -> Iterator[pa.Table]:
        yield decode_share(job.sources["train"], 0, 0, 1)
        raise OSError("the store went away")

    rank = RankBatches(job, Runtime(World(0, 1, torch.device("cpu")), upload_folder), Clock())
    stream = rank.read("train", torn(), 0)
    next(stream)
    with pytest.raises(OSError, match="the store went away") as error:
        next(stream)
    assert "torn" in [entry.name for entry in error.traceback]
