"""A run as its ranks get it: where its clips come from, in which order, on how many workers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.data

from cluster import run as cluster_run
from jobs.run.config import PretrainConfig
from jobs.tasks.tasks import CaptionTask, ChoiceTask, Language, QuestionTask
from jobs.training import streams
from pipeline import storage
from pipeline.records import Kind
from pipeline.stream.epoch_plan import Plan
from pipeline.stream.loader import ClipSource, segments, split_rows
from snps3_model.loading import is_hub_name


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the driver hands to every rank."""

    config: PretrainConfig
    run_folder: str
    language: Language
    task: CaptionTask | QuestionTask | ChoiceTask
    sources: dict[str, ClipSource]
    """By name: train, validation, test, and temporal if there is one."""
    tracking_uri: str
    tracking_run_id: str


def with_absolute_weights(config: PretrainConfig) -> PretrainConfig:
    """The same run for its ranks, which Ray Train starts in a folder of their own: paths lead from this process's."""

    def seen_from_anywhere(path: str | None) -> str | None:
        return path if path is None or is_hub_name(path) else storage.absolute(path)

    model, visual = config.model, config.model.visual
    visual = dataclasses.replace(
        visual, pretrained=seen_from_anywhere(visual.pretrained), backbone=seen_from_anywhere(visual.backbone)
    )
    model = dataclasses.replace(
        model,
        visual=visual,
        initial_weights=seen_from_anywhere(model.initial_weights),
        pretrained_text=seen_from_anywhere(model.pretrained_text),
    )
    return dataclasses.replace(config, model=model)


def make_plan(config: PretrainConfig) -> Plan:
    """The order of the training clips."""
    rows = split_rows(config.data.manifest, config.data.train_split)
    return Plan(
        seed=config.seed,
        num_videos=len(rows[Kind.VIDEO]),
        num_images=len(rows[Kind.IMAGE]),
        global_batch=config.optim.global_batch,
        mixing=config.data.mixing,
    )


def make_sources(config: PretrainConfig) -> dict[str, ClipSource]:
    """Where the clips of training and of each evaluation come from, by name."""
    training = ClipSource(
        split=config.data.train_split,
        plan=make_plan(config),
        long_sides_px=config.data.augmentation.long_sides_px,
        **_of_every_source(config),
    )
    return {"train": training} | evaluation_sources(config)


def evaluation_sources(config: PretrainConfig) -> dict[str, ClipSource]:
    """Where the clips of each evaluation come from, by name. A corpus without training clips has these too."""
    data = config.data
    most = data.max_evaluation_clips if config.task.kind == "captions" else None
    splits = {"validation": data.validation_split, "test": data.test_split, "temporal": data.temporal_split}
    return {
        name: ClipSource(split=split, plan=None, max_clips=most, **_of_every_source(config))
        for name, split in splits.items()
        if split
    }


def _of_every_source(config: PretrainConfig) -> dict[str, Any]:
    data = config.data
    return {
        "manifest_path": storage.absolute(data.manifest),
        "num_frames": data.num_frames,
        "frame_size_px": data.frame_size_px,
        "decoder": data.decoder,
        "sampling": data.sampling,
        "limits": config.placement.decode_limits,
        "seed": config.seed,
        "batch": config.optim.global_batch,
        "patience_seconds": config.placement.storage_patience_seconds,
    }


def datasets(job: Job) -> dict[str, Callable[[int], ray.data.Dataset]]:
    """A builder per dataset, called with the number of ranks whenever a worker group has asked for it: training begins
    at the last committed step."""
    built: dict[str, Callable[[int], ray.data.Dataset]] = {
        name: functools.partial(streams.evaluation_stream, source)
        for name, source in job.sources.items()
        if name != "train"
    }
    train, config = job.sources["train"], job.config
    for name, start, stop in segments(train, config.optim.num_steps, config.placement.most_workers):
        built[name] = functools.partial(streams.training_stream, train, job.run_folder, start, stop)
    return built


def workers(config: PretrainConfig) -> cluster_run.Workers:
    """The worker group that the placement asks for."""
    placement = config.placement
    return cluster_run.Workers(
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
