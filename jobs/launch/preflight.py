"""Check a run before it starts: describe its plan in numbers and collect every problem.

Nothing here starts Ray or decodes a clip. A manifest in one file is read whole, but only the index of one in parts. One
small file is written to the storage and removed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from jobs.launch import lease
from jobs.launch.manifest_version import with_version
from jobs.launch.step_memory import memory_line, memory_problems, step_shape
from jobs.run import run_files
from jobs.run.config import TASK_FILES, DataConfig, OptimConfig, Placement, PretrainConfig, SelectionConfig, TextConfig
from jobs.run.fields import differences
from jobs.run.run_identity import identity, in_steps, with_decoder
from jobs.tasks.task import task_type
from jobs.tracking import mlflow_runs, voice
from pipeline import storage
from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import PartedManifest
from pipeline.decode import decoders
from pipeline.nearest import did_you_mean
from pipeline.records import Kind
from pipeline.stream.config import ANNOTATION, MixingConfig, caption_weights
from pipeline.stream.epoch_plan import Plan
from pipeline.text.tokenizer import Tokenizer
from snps3_model.config import ModelConfig, VisualConfig
from snps3_model.encoders import frame_size_problem
from snps3_model.loading import bert_config, is_hub_name, refuse_other_sizes
from snps3_model.loss_table import load_extra
from snps3_model.public_networks import refuse_other_pixels
from snps3_model.snps3 import SNPS3


@dataclass(frozen=True, kw_only=True)
class Machine:
    """CPUs and GPUs that a run may use, as far as they are known without starting Ray."""

    num_cpus: int | None
    """None for a cluster, whose CPUs are counted when the run starts."""
    num_gpus: int | None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The findings of all preflight checks of a run."""

    facts: Mapping[str, Callable[[], str]]
    """Topic → function that computes its line of the plan."""
    problems: tuple[str, ...]
    """Each names the value, the rule and the remedy."""


def this_machine() -> Machine:
    """Return the CPUs and GPUs of this machine, or None for each if `RAY_ADDRESS` names a cluster."""
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        return Machine(num_cpus=None, num_gpus=None)
    return Machine(num_cpus=os.cpu_count() or 1, num_gpus=torch.cuda.device_count())


def survey(config: PretrainConfig, machine: Machine | None = None) -> Survey:
    """Check the run and return its plan and its problems: all of them, not only the first."""
    machine, placement, problems = machine or this_machine(), config.placement, []
    run_folder = storage.join(storage.absolute(placement.storage), config.name)
    problems += resource_problems(placement, machine)
    known = _attempt(problems, "data.manifest", functools.partial(known_manifest, config.data, config.name, run_folder))
    data, manifest = known or (config.data, None)
    config = dataclasses.replace(config, data=data)
    optim, plan, fields = config.optim, None, None
    if manifest:
        data = with_decoder(config.data, manifest.fastest_decoder)
        fields = identity(dataclasses.replace(config, data=data), manifest.hash)
        _attempt(problems, "data.manifest", lambda: check_clips(manifest))
    problems += value_problems(config, manifest, machine)
    can_write = _attempt(problems, "placement.storage", lambda: storage.check_writable(placement.storage) is None)
    _attempt(problems, f"metrics of {config.name}", lambda: mlflow_runs.tracking_uri(placement.storage))
    state, refusals = folder_state(config.name, fields, run_folder)
    if manifest:
        plan = _attempt(
            problems, "data.train_split", lambda: training_plan(data, optim.global_batch, config.seed, manifest)
        )
    if plan:
        optim = in_steps(optim, plan.first_step)
    shape = step_shape(data, config.text, config.masking, optim, placement, num_pieces(config.text)[0])
    step = (config.model, config.objective, config.optim, placement, shape)
    if config.task.kind == "captions":
        problems += _attempt(problems, "placement.gpu_memory_gib", lambda: memory_problems(*step)) or []
    facts = {
        "run": lambda: f"{config.name}: {run_folder} ({state})",
        "corpus": functools.partial(_corpus_line, data, manifest),
        "training": functools.partial(_training_line, optim, plan),
        "frames": functools.partial(_frames_line, data, optim.global_batch),
        "model": functools.partial(_model_line, config.model, config.text),
        "step": functools.partial(_step_line, config.task.kind, step),
        "resources": functools.partial(_resources_line, placement, machine),
        "storage": lambda: f"{storage.absolute(placement.storage)} {'can' if can_write else 'cannot'} be written",
    }
    return Survey(facts=facts, problems=(*problems, *refusals))


def value_problems(config: PretrainConfig, manifest: Listing | None, machine: Machine) -> list[str]:
    """Return the problems of metric, splits, decoder, network, losses and files, whatever the resources."""
    data, text, task = config.data, config.text, config.task
    problems = metric_problems(task.kind, config.selection) + (split_problems(data, manifest) if manifest else [])
    if machine.num_cpus is not None:  # this machine decodes
        _attempt(problems, "data.decoder", lambda: decoders.load(data.decoder))
    problems += visual_problems(config.model.visual, data)
    if task.kind == "captions":
        _attempt(problems, "objective.extra", lambda: load_extra(config.objective))
    texts = {f"text.{name}": getattr(text, name) for name in ("vocabulary", "significant_words", "word_families")}
    for name, path in (texts | {f"task.{name}": getattr(task, name) for name in TASK_FILES}).items():
        if path:
            _attempt(problems, name, lambda path=path: storage.check_readable(path))
    return problems + weight_problems(config.model, text)


def weight_problems(model: ModelConfig, text: TextConfig) -> list[str]:
    """Return the problems of the initial weights. Names on the hub are not checked here, but by the run."""
    problems: list[str] = []
    earlier, pretrained = model.initial_weights, model.pretrained_text
    if earlier:
        _attempt(problems, "model.initial_weights", lambda: storage.check_readable(earlier))
    if pretrained and not is_hub_name(pretrained):
        pieces = num_pieces(text)[0]
        _attempt(problems, "model.pretrained_text", lambda: refuse_other_sizes(model, pieces, bert_config(pretrained)))
    return problems


def num_pieces(text: TextConfig) -> tuple[int, str]:
    """Return the size of the run's vocabulary, with "at most " if the vocabulary is still to be trained."""
    if text.vocabulary and (loaded := _attempt([], "", lambda: Tokenizer.load(str(text.vocabulary)))):
        return loaded.vocabulary_size, ""
    return text.vocabulary_size, "at most "


def known_manifest(data: DataConfig, name: str, run_folder: str) -> tuple[DataConfig, Listing]:
    """Return the result of `with_version`. FileNotFoundError, with the remedy, if there is no manifest."""
    try:
        return with_version(data, name, run_folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or write the manifest with jobs/prepare.py") from error


def check_clips(manifest: Listing) -> None:
    """Raise an error if the object store of the clips cannot be read. A missing clip is rejected later, as a sample."""
    split, kind = next(iter(manifest.counts))
    uri = manifest.rows(split, Kind(kind)).range(0, 1)["uri"][0].as_py()
    if storage.is_remote(uri):
        with contextlib.suppress(FileNotFoundError):
            storage.check_readable(uri)


def resource_problems(placement: Placement, machine: Machine) -> list[str]:
    """Return which CPUs and GPUs are missing: Ray would wait for them forever."""
    problems: list[str] = []
    needed, have = num_cpus(placement), machine.num_cpus
    if have is not None and needed > have:
        problems.append(
            f"too few CPUs for training and decoding: {placement.fewest_workers} train workers × "
            f"{placement.cpus_per_worker:g} CPU + {placement.decode_cpus} CPU for decoding = {needed:g} CPUs, but this "
            f"machine has {have}; lower placement.num_workers, placement.cpus_per_worker or placement.decode_cpus"
        )
    if placement.use_gpu and machine.num_gpus is not None and placement.fewest_workers > machine.num_gpus:
        problems.append(
            f"placement.num_workers={placement.fewest_workers} need a GPU each, but this machine has "
            f"{machine.num_gpus}; lower placement.num_workers, or pass --placement.no-use-gpu"
        )
    return problems


def metric_problems(kind: str, selection: SelectionConfig) -> list[str]:
    """Return a problem unless `selection.metric` is a higher-is-better metric of the task `kind`. Without this check,
    the run would fail at its first evaluation."""
    problems: list[str] = []
    task = _attempt(problems, "task.kind", lambda: task_type(kind))
    if task is None or selection.metric in (names := task.metric_names(selection.rerank)):
        return problems
    hint = f"{did_you_mean(selection.metric, names)} ".lstrip()
    return [f"selection.metric={selection.metric!r} cannot select weights; {hint}choose one of {', '.join(names)}"]


def num_cpus(placement: Placement) -> float:
    """Return the CPUs that a run reserves for its minimum of train workers and for decoding."""
    return placement.fewest_workers * placement.cpus_per_worker + placement.decode_cpus


def visual_problems(visual: VisualConfig, data: DataConfig) -> list[str]:
    """Return why the visual encoder cannot be built, load its weights, or take frames of this size."""
    size = data.shown_px
    problems: list[str] = []
    problem = _attempt(
        problems, "model.visual.backbone", lambda: frame_size_problem(visual, size, size, data.num_frames)
    )
    if problem:
        name = "augmentation.crop_px" if data.augmentation.crop_px else "frame_size_px"
        problems.append(f"data.{name}={size}: {problem}")
    if visual.encoder == "auto":
        _attempt(problems, "model.visual.pixels", lambda: refuse_other_pixels(visual))
    path = visual.pretrained if visual.encoder != "auto" else None
    if path is not None and _attempt(problems, "model.visual.pretrained", lambda: storage.exists(path)) is False:
        problems.append(
            f"model.visual.pretrained={visual.pretrained} does not exist; download the weights there, or set it to "
            "None to start from random ones"
        )
    return problems


def split_problems(data: DataConfig, manifest: Listing) -> list[str]:
    """Return which splits of the manifest do not suit their use."""
    problems: list[str] = []
    evaluated = {"data.validation_split": data.validation_split, "data.test_split": data.test_split}
    if data.temporal_split:
        evaluated["data.temporal_split"] = data.temporal_split
    weights = caption_weights(data.caption_weights)
    drawn = [None if source == ANNOTATION else source for source, weight in weights.items() if weight]
    for name, split in {"data.train_split": data.train_split, **evaluated}.items():
        num_problems = len(problems)
        _attempt(problems, name, lambda split=split: manifest.refuse_empty(split))
        if len(problems) > num_problems:
            if name == "data.temporal_split":
                problems[-1] += "; --data.temporal-split None leaves the temporal test out"
        elif name in evaluated and not manifest.num_clips(split, Kind.VIDEO):
            problems.append(
                f"{name}: the split {split!r} has {manifest.splits[split]} images and no videos, and evaluation reads "
                "videos only; put some videos into it with jobs/prepare.py"
            )
        elif name == "data.temporal_split" and (num_alone := manifest.split(split)["group"].null_count):
            problems.append(
                f"{name}: {num_alone} of {manifest.splits[split]} clips of the split {split!r} have no group to be "
                "compared in; fill the column group, or pass --data.temporal-split None"
            )
        elif num_silent := manifest.num_uncaptioned(split):
            problems.append(
                f"{name}: {num_silent} of {manifest.splits[split]} clips of the split {split!r} have no caption; write "
                "some with jobs/caption.py, or prepare the corpus without --keep-uncaptioned"
            )
        elif name == "data.train_split" and drawn and (num_silent := manifest.num_of_other_sources(split, drawn)):
            problems.append(
                f"data.caption_weights: {num_silent} of {manifest.splits[split]} clips of the split {split!r} have "
                f"captions of other sources alone than {', '.join(weights)}: name these too"
            )
    return problems


def folder_state(name: str, fields: Mapping[str, Any] | None, run_folder: str) -> tuple[str, list[str]]:
    """Return the state of the run's folder, in words, and the problems of using it. `fields`: the run's identity; None
    without a manifest."""
    problems: list[str] = []
    identity_path = f"{run_folder}/{run_files.IDENTITY}"
    if not _attempt(problems, run_folder, lambda: storage.exists(identity_path)):
        return ("cannot be read" if problems else "new"), problems
    if fields is None:
        return "was begun before", problems
    refusal = _attempt(problems, identity_path, lambda: identity_refusal(name, fields, run_folder))
    if problems:
        return "cannot be read", problems
    if refusal:
        return "refused: was begun with another identity", [refusal]
    if storage.exists(f"{run_folder}/results.json"):
        return "finished: results exist, nothing to train", problems
    step = _attempt(problems, run_folder, lambda: run_files.committed_step(run_folder))
    state = f"resumes from step {step}" if step else "started, no checkpoint yet"
    return state + (_attempt(problems, run_folder, lambda: lease.owner_clause(run_folder)) or ""), problems


def identity_refusal(name: str, fields: Mapping[str, Any], run_folder: str) -> str | None:
    """Return a refusal that lists how this identity differs from that of the run in the folder; None if they agree."""
    path = f"{run_folder}/{run_files.IDENTITY}"
    if not storage.exists(path):
        return None
    changed = differences(run_files.read_json(path)["fields"], dict(fields))
    if not changed:
        return None
    return (
        f"the run name {name!r} is taken by another run in {run_folder}: {'; '.join(changed)}. "
        "Give this run another --name, or undo the change to continue that one"
    )


def training_plan(data: DataConfig, global_batch: int, seed: int, manifest: Listing) -> Plan | None:
    """Return the plan of the training split; None if it has no clip."""
    kinds = _num_by_kind(manifest, data.train_split)
    if not kinds.total():
        return None
    return Plan(
        seed=seed,
        num_videos=kinds[Kind.VIDEO.value],
        num_images=kinds[Kind.IMAGE.value],
        global_batch=global_batch,
        mixing=data.mixing,
        order=data.order if manifest.is_in_parts else None,
    )


def num_parameters(model: ModelConfig, vocabulary_size: int) -> int:
    """Return the number of parameters of the network, built on the meta device."""
    with torch.device("meta"):
        network = SNPS3(model, vocabulary_size=vocabulary_size, pad_id=0, separator_id=1)
    return sum(parameter.numel() for parameter in network.parameters())


def describe(survey: Survey) -> str:
    """Return a line per fact, then the problems."""
    lines = [f"{name:10} {line()}" for name, line in survey.facts.items()]
    problems = survey.problems
    return "\n".join([*lines, f"problems   {len(problems) or 'none'}", *(f"  - {problem}" for problem in problems)])


def _corpus_line(data: DataConfig, manifest: Listing | None) -> str:
    if manifest is None:
        return "unknown"
    names = [data.train_split, data.validation_split, data.test_split, data.temporal_split]
    kinds = {name: _num_by_kind(manifest, name) for name in names if name}
    splits = ", ".join(
        f"{name} {' + '.join(f'{count} {kind}s' for kind, count in sorted(counts.items(), reverse=True)) or 0}"
        for name, counts in kinds.items()
    )
    version = f" version {manifest.index.number}" if isinstance(manifest, PartedManifest) else ""
    return f"{manifest.corpus}{version}, {len(manifest)} clips: {splits}"


def _training_line(optim: OptimConfig, plan: Plan | None) -> str:
    if plan is None:
        return f"{optim.num_steps} steps of {optim.global_batch} clips; how many epochs is unknown"
    if plan.mixing != MixingConfig():
        order = f"{voice.counted(plan.mixing.image_epochs or 0, 'epoch')} of images, then videos"
        if plan.mixing.weights:
            order = f"images and videos by turns, {plan.mixing.weights[0]} to {plan.mixing.weights[1]}"
        return (
            f"{optim.num_steps} steps of {optim.global_batch} clips: {order}; an epoch of images has "
            f"{plan.num_steps(Kind.IMAGE)} steps, one of videos {plan.num_steps(Kind.VIDEO)}"
        )
    per_epoch = plan.steps_per_epoch
    return (
        f"{optim.num_steps} steps of {optim.global_batch} clips = {optim.num_steps / per_epoch:.1f} epochs of "
        f"{per_epoch} steps"
    )


def _frames_line(data: DataConfig, global_batch: int) -> str:
    num_frames, size, shown = global_batch * data.num_frames, data.frame_size_px, data.shown_px
    mebibytes = num_frames * size * size * 3 / 2**20
    return (
        f"{global_batch} videos × {data.num_frames} frames of {size} × {size} px = {num_frames} "
        f"frames, {mebibytes:.1f} MiB per step" + (f", shown at {shown} × {shown} px" if shown != size else "")
    )


def _model_line(model: ModelConfig, text: TextConfig) -> str:
    pieces, bound = num_pieces(text)
    number = _attempt([], "", lambda: num_parameters(model, pieces))
    if number is None:
        return f"{model.visual.encoder}: cannot be built"
    return f"{number / 1e6:.2f} M parameters, with a vocabulary of {bound}{pieces} pieces"


def _step_line(kind: str, step: Any) -> str:
    if kind != "captions":
        return f"not counted for task.kind={kind}"
    return _attempt([], "", lambda: memory_line(*step)) or "cannot be counted"


def _resources_line(placement: Placement, machine: Machine) -> str:
    gpus = " and 1 GPU" if placement.use_gpu else ""
    fewest = "" if placement.fewest_workers == placement.most_workers else f"{placement.fewest_workers} to "
    workers = voice.counted(placement.most_workers, "train worker")
    have = "checked when the run starts, on the cluster of RAY_ADDRESS"
    if machine.num_cpus is not None:
        have = f"of {machine.num_cpus} here"
    return (
        f"{fewest}{workers} × {placement.cpus_per_worker:g} CPU{gpus} + "
        f"{placement.decode_cpus} CPU for decoding = {num_cpus(placement):g} CPUs, {have}"
    )


def _num_by_kind(manifest: Listing, split: str) -> Counter[str]:
    return Counter({kind: count for (of, kind), count in manifest.counts.items() if of == split})


def _attempt(problems: list[str], name: str, check: Callable[[], Any]) -> Any:
    """Return the result of `check`. If it raises, add a problem under `name` and return None."""
    try:
        return check()
    except (ValueError, KeyError, OSError) as error:
        problems.append(f"{name}: {error}")
        return None
