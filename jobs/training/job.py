"""A run as its ranks receive it: its task, its clips in their order, and the settings of the train loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.data

from cluster.rank_datasets import Workers
from jobs.run.config import DataConfig, OptimConfig, Placement, SelectionConfig
from jobs.tasks.task import Task
from jobs.tasks.text import TextProcessor
from jobs.training.streams import evaluation_stream, training_stream
from pipeline import storage
from pipeline.records import Kind
from pipeline.stream.epoch_plan import Plan
from pipeline.stream.loader import ClipSource, segments
from pipeline.stream.source import split_clips
from snps3_model.config import ModelConfig
from snps3_model.loading import is_hub_name


@dataclass(frozen=True, kw_only=True)
class Job:
    """The input of each rank, from the driver."""

    name: str
    seed: int
    run_folder: str
    text: TextProcessor
    task: Task
    model: ModelConfig
    sources: dict[str, ClipSource]
    """By dataset: train, validation, test, and temporal if there is one."""
    data: DataConfig
    optim: OptimConfig
    selection: SelectionConfig
    placement: Placement
    config_json: bytes = b""
    """Content of config.json, the resolved configuration in the run's folder; each checkpoint gets a copy."""
    tracking_uri: str = ""
    tracking_run_id: str = ""


def with_absolute_weights(model: ModelConfig) -> ModelConfig:
    """Return the model config with absolute paths, because Ray Train starts ranks in another working directory."""

    def is_no_path(source: str) -> bool:
        return is_hub_name(source) or source.startswith("{")  # an exported model's own description

    def absolute(part: Any, *names: str) -> Any:
        paths = {name: path for name in names if (path := getattr(part, name)) and not is_no_path(path)}
        return dataclasses.replace(part, **{name: storage.absolute(path) for name, path in paths.items()})

    visual = absolute(model.visual, "pretrained", "backbone")
    return dataclasses.replace(absolute(model, "initial_weights", "pretrained_text"), visual=visual)


def make_plan(data: DataConfig, global_batch: int, seed: int) -> Plan:
    """Return the order of the training clips."""
    clips = split_clips(data.manifest, data.train_split)
    return Plan(
        seed=seed,
        num_videos=len(clips[Kind.VIDEO]),
        num_images=len(clips[Kind.IMAGE]),
        global_batch=global_batch,
        mixing=data.mixing,
        order=data.order if clips[Kind.VIDEO].is_in_parts else None,
    )


def make_sources(
    data: DataConfig,
    placement: Placement,
    global_batch: int,
    seed: int,
    *,
    max_clips: int | None = None,
    failures: str = "",
) -> dict[str, ClipSource]:
    """Return the clip sources of training and of each evaluation, by dataset. An evaluation reads at most `max_clips`
    of its split. `failures`: folder for the clips that do not decode."""
    evaluation = evaluation_sources(data, placement, global_batch, seed, max_clips=max_clips)
    training = dataclasses.replace(
        evaluation["validation"],
        split=data.train_split,
        plan=make_plan(data, global_batch, seed),
        max_clips=None,
        long_sides_px=data.augmentation.long_sides_px,
        caption_weights=data.caption_weights,
    )
    sources = {"train": training} | evaluation
    return {name: dataclasses.replace(source, failures=failures) for name, source in sources.items()}


def evaluation_sources(
    data: DataConfig, placement: Placement, global_batch: int, seed: int, *, max_clips: int | None = None
) -> dict[str, ClipSource]:
    """Return the clip source of each evaluation. Works for a corpus without training clips too."""
    splits = {"validation": data.validation_split, "test": data.test_split, "temporal": data.temporal_split}
    return {
        name: ClipSource(
            manifest_path=storage.absolute(data.manifest),
            split=split,
            plan=None,
            max_clips=max_clips,
            num_frames=data.num_frames,
            frame_size_px=data.frame_size_px,
            decoder=data.decoder,
            sampling=data.sampling,
            limits=placement.decode_limits,
            seed=seed,
            batch=global_batch,
            patience_seconds=placement.storage_patience_seconds,
        )
        for name, split in splits.items()
        if split
    }


def datasets(job: Job) -> dict[str, Callable[[int], ray.data.Dataset]]:
    """Return a builder per dataset. Each worker group calls it with its number of ranks; training then begins at the
    last committed step."""
    built: dict[str, Callable[[int], ray.data.Dataset]] = {
        name: functools.partial(evaluation_stream, source) for name, source in job.sources.items() if name != "train"
    }
    train = job.sources["train"]
    for name, start, stop in segments(train, job.optim.num_steps, job.placement.most_workers):
        built[name] = functools.partial(training_stream, train, job.run_folder, start, stop)
    return built


def workers(placement: Placement) -> Workers:
    """Return the worker group that the placement asks for."""
    return Workers(
        fewest=placement.fewest_workers,
        most=placement.most_workers,
        use_gpu=placement.use_gpu,
        cpus_each=placement.cpus_per_worker,
        threads_each=placement.threads_per_worker,
        decode_cpus=placement.decode_cpus,
        max_failures=placement.max_failures,
        num_kept_checkpoints=placement.num_kept_checkpoints,
        resize_seconds=placement.resize_seconds,
    )
