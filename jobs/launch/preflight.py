"""What can be known of a run before anything starts: its plan in numbers, and every reason why it could not work.

Nothing here starts Ray or decodes a clip. The manifest is read whole; one small file is written to the storage and
removed again.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from jobs.run import run_files
from jobs.run.config import TASK_FILES, DataConfig, Placement, PretrainConfig, in_steps, with_decoder
from jobs.run.fields import differences
from jobs.run.run_identity import identity
from jobs.tasks.retrieval import selectable_metrics
from pipeline import storage
from pipeline.corpus.manifest import Manifest, read_manifest
from pipeline.decode.codec import usable
from pipeline.records import Kind
from pipeline.stream.config import MixingConfig
from pipeline.stream.epoch_plan import Plan
from pipeline.text.tokenizer import Tokenizer
from snps3_model.config import ModelConfig
from snps3_model.encoders import frame_size_problem
from snps3_model.loading import bert_config, is_hub_name, refuse_other_sizes
from snps3_model.snps3 import SNPS3


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run may use, as far as it is known without starting Ray."""

    num_cpus: int | None
    """None: of a cluster, counted when the run starts."""
    num_gpus: int | None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A run as it was found before its start."""

    config: PretrainConfig
    """With the length of the run in steps."""
    run_folder: str
    state: str
    """What the run's folder means for it, in words."""
    manifest: Manifest | None
    plan: Plan | None
    """None where there is nothing to train on."""
    machine: Machine
    problems: tuple[str, ...]
    """Each names the value, the rule and the remedy."""


def this_machine() -> Machine:
    """The CPUs and GPUs of this machine, or unknown ones where `RAY_ADDRESS` names a cluster."""
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        return Machine(num_cpus=None, num_gpus=None)
    return Machine(num_cpus=os.cpu_count() or 1, num_gpus=torch.cuda.device_count())


def problems(config: PretrainConfig, machine: Machine | None = None) -> list[str]:
    """Why the run could not work, each with its remedy; empty if nothing speaks against it."""
    return list(survey(config, machine).problems)


def dry_run(config: PretrainConfig, machine: Machine | None = None) -> str:
    """The plan of the run for people, and at its end the problems."""
    return describe(survey(config, machine))


def survey(config: PretrainConfig, machine: Machine | None = None) -> Survey:
    """All that is known of the run; whatever is wrong is collected, so that one look tells everything."""
    machine = machine or this_machine()
    run_folder = storage.join(storage.absolute(config.placement.storage), config.name)
    found = resource_problems(config.placement, machine)
    manifest = _tried(found, "data.manifest", lambda: known_manifest(config.data.manifest))
    if manifest:
        config = with_decoder(config, manifest.fastest_decoder)
        _tried(found, "data.manifest", lambda: check_clips(manifest))
    found += value_problems(config, manifest, machine)
    _tried(found, "placement.storage", lambda: storage.check_writable(config.placement.storage))
    state, refusal = folder_state(config, run_folder, manifest)
    plan = _tried(found, "data.train_split", lambda: training_plan(config, manifest)) if manifest else None
    return Survey(
        config=in_steps(config, plan.first_step) if plan else config,
        run_folder=run_folder,
        state=state,
        manifest=manifest,
        plan=plan,
        machine=machine,
        problems=(*found, *refusal),
    )


def value_problems(config: PretrainConfig, manifest: Manifest | None, machine: Machine) -> list[str]:
    """What is wrong with what the run is to compute, wherever it runs."""
    found = metric_problems(config) + (split_problems(config.data, manifest) if manifest else [])
    if machine.num_cpus is not None:  # this machine decodes
        _tried(found, "data.decoder", lambda: usable(with_decoder(config, None).data.decoder))
    found += visual_problems(config)
    texts = {
        f"text.{name}": getattr(config.text, name) for name in ("vocabulary", "significant_words", "word_families")
    }
    for name, path in (texts | {f"task.{name}": getattr(config.task, name) for name in TASK_FILES}).items():
        if path:
            _tried(found, name, lambda path=path: storage.check_readable(path))
    return found + weight_problems(config)


def weight_problems(config: PretrainConfig) -> list[str]:
    """What is wrong with the first weights that the network is to have; names on the hub are looked up by the run."""
    found: list[str] = []
    earlier, text = config.model.initial_weights, config.model.pretrained_text
    if earlier:
        _tried(found, "model.initial_weights", lambda: storage.check_readable(earlier))
    if text and not is_hub_name(text):
        pieces = num_pieces(config)[0]
        _tried(found, "model.pretrained_text", lambda: refuse_other_sizes(config.model, pieces, bert_config(text)))
    return found


def num_pieces(config: PretrainConfig) -> tuple[int, str]:
    """Pieces of the run's vocabulary, and "at most " where it is yet to be trained."""
    if config.text.vocabulary and (loaded := _tried([], "", lambda: Tokenizer.load(str(config.text.vocabulary)))):
        return loaded.vocabulary_size, ""
    return config.text.vocabulary_size, "at most "


def known_manifest(path: str) -> Manifest:
    """The manifest; where there is none, the error says how one is made."""
    try:
        return read_manifest(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or write the manifest with jobs/prepare.py") from error


def check_clips(manifest: Manifest) -> None:
    """Nothing, if the store of the clips answers and lets them be read; a clip that is missing is a sample's matter."""
    uri = manifest.table["uri"][0].as_py()
    if storage.is_remote(uri):
        with contextlib.suppress(FileNotFoundError):
            storage.check_readable(uri)


def resource_problems(placement: Placement, machine: Machine) -> list[str]:
    """The sums that do not come out: Ray would wait for the missing CPUs or GPUs for ever."""
    found = []
    needed, have = num_cpus(placement), machine.num_cpus
    if have is not None and needed > have:
        found.append(
            f"too few CPUs for training and decoding: {placement.fewest_workers} train workers × "
            f"{placement.cpus_per_worker:g} CPU + {placement.decode_cpus} CPU for decoding = {needed:g} CPUs, but this "
            f"machine has {have}; lower placement.num_workers, placement.cpus_per_worker or placement.decode_cpus"
        )
    if placement.use_gpu and machine.num_gpus is not None and placement.fewest_workers > machine.num_gpus:
        found.append(
            f"placement.num_workers={placement.fewest_workers} need a GPU each, but this machine has "
            f"{machine.num_gpus}; lower placement.num_workers, or pass --placement.no-use-gpu"
        )
    return found


def metric_problems(config: PretrainConfig) -> list[str]:
    """A metric that is not measured, or not better when it is higher, would be found after the first evaluation."""
    selection, is_asked = config.selection, config.task.kind != "captions"
    names = ["validation/accuracy"] if is_asked else selectable_metrics("validation", selection.rerank)
    if selection.metric in names:
        return []
    near = difflib.get_close_matches(selection.metric, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    return [f"selection.metric: {selection.metric!r} cannot be selected by; {hint}choose one of {', '.join(names)}"]


def num_cpus(placement: Placement) -> float:
    """CPUs that a run reserves: of its train workers, the fewest that it needs, and for decoding."""
    return placement.fewest_workers * placement.cpus_per_worker + placement.decode_cpus


def visual_problems(config: PretrainConfig) -> list[str]:
    """Why the visual encoder could not be made, filled with its weights, or take the frames."""
    visual, size = config.model.visual, config.data.shown_px
    found: list[str] = []
    problem = _tried(found, "model.visual.backbone", lambda: frame_size_problem(visual, size, size))
    if problem:
        name = "augmentation.crop_px" if config.data.augmentation.crop_px else "frame_size_px"
        found.append(f"data.{name}={size}: {problem}")
    is_file = visual.pretrained is not None and visual.encoder != "auto"
    if is_file and not os.path.exists(str(visual.pretrained)):
        found.append(
            f"model.visual.pretrained={visual.pretrained} is not there; download the weights to it, or set it to None "
            "to start from random ones"
        )
    return found


def split_problems(data: DataConfig, manifest: Manifest) -> list[str]:
    """Splits of the manifest that cannot be used for what the configuration wants of them."""
    found: list[str] = []
    evaluated = {"data.validation_split": data.validation_split, "data.test_split": data.test_split}
    if data.temporal_split:
        evaluated["data.temporal_split"] = data.temporal_split
    for name, split in {"data.train_split": data.train_split, **evaluated}.items():
        rows = _tried(found, name, lambda split=split: manifest.split(split))
        if rows is None:
            if name == "data.temporal_split":
                found[-1] += "; --data.temporal-split None leaves the temporal test out"
        elif name in evaluated and Kind.VIDEO.value not in rows["kind"].to_pylist():
            found.append(
                f"{name}: the split {split!r} has {rows.num_rows} images and no videos, and evaluation reads videos "
                "only; put some videos into it with jobs/prepare.py"
            )
        elif name == "data.temporal_split" and rows["group"].null_count:
            found.append(
                f"{name}: {rows['group'].null_count} of {rows.num_rows} clips of the split {split!r} have no group to "
                "be compared in; fill the column group, or pass --data.temporal-split None"
            )
    return found


def folder_state(config: PretrainConfig, run_folder: str, manifest: Manifest | None) -> tuple[str, list[str]]:
    """What the run's folder says, and why it refuses this run, if it does."""
    found: list[str] = []
    identity_path = f"{run_folder}/{run_files.IDENTITY}"
    if not _tried(found, run_folder, lambda: storage.exists(identity_path)):
        return ("cannot be read" if found else "new"), found
    if manifest is None:
        return "was begun before", found
    refused = _tried(found, identity_path, lambda: identity_refusal(config, run_folder, manifest.hash))
    if found:
        return "cannot be read", found
    if refused:
        return "refused: was begun with another identity", [refused]
    if storage.exists(f"{run_folder}/results.json"):
        return "finished: its results are there, and nothing would be trained", found
    step = _tried(found, run_folder, lambda: run_files.committed_step(run_folder))
    return f"would go on from step {step}" if step else "was begun, without a checkpoint yet", found


def identity_refusal(config: PretrainConfig, run_folder: str, manifest_hash: str) -> str | None:
    """What differs between this run and the one that the folder holds; None if it is the same one, or none."""
    path = f"{run_folder}/{run_files.IDENTITY}"
    if not storage.exists(path):
        return None
    changed = differences(run_files.read_json(path)["fields"], identity(config, manifest_hash))
    if not changed:
        return None
    return (
        f"the run name {config.name!r} is taken by another run in {run_folder}: {'; '.join(changed)}. "
        "Give this run another --name, or undo the change to continue that one"
    )


def training_plan(config: PretrainConfig, manifest: Manifest) -> Plan | None:
    """The plan of the training split; None if it has no clip."""
    kinds = _num_by_kind(manifest, config.data.train_split)
    if not kinds.total():
        return None
    return Plan(
        seed=config.seed,
        num_videos=kinds[Kind.VIDEO.value],
        num_images=kinds[Kind.IMAGE.value],
        global_batch=config.optim.global_batch,
        mixing=config.data.mixing,
    )


def num_parameters(model: ModelConfig, vocabulary_size: int) -> int:
    """Trained numbers of the network, without making it."""
    with torch.device("meta"):
        network = SNPS3(model, vocabulary_size=vocabulary_size, pad_id=0, separator_id=1)
    return sum(parameter.numel() for parameter in network.parameters())


def describe(found: Survey) -> str:
    """A line per fact, then the problems."""
    facts = {
        "run": f"{found.config.name}: {found.run_folder} ({found.state})",
        "corpus": _corpus_line(found),
        "training": _training_line(found),
        "frames": _frames_line(found.config),
        "model": _model_line(found.config),
        "resources": _resources_line(found.config.placement, found.machine),
        "storage": _storage_line(found),
    }
    lines = [f"{name:10} {fact}" for name, fact in facts.items()]
    if not found.problems:
        return "\n".join([*lines, "problems   none"])
    return "\n".join([*lines, f"problems   {len(found.problems)}", *(f"  - {problem}" for problem in found.problems)])


def _corpus_line(found: Survey) -> str:
    if found.manifest is None:
        return "unknown"
    wanted = found.config.data
    names = [wanted.train_split, wanted.validation_split, wanted.test_split, wanted.temporal_split]
    kinds = {name: _num_by_kind(found.manifest, name) for name in names if name}
    splits = ", ".join(
        f"{name} {' + '.join(f'{count} {kind}s' for kind, count in sorted(counts.items(), reverse=True)) or 0}"
        for name, counts in kinds.items()
    )
    return f"{found.manifest.corpus}, {len(found.manifest)} clips: {splits}"


def _training_line(found: Survey) -> str:
    optim = found.config.optim
    if found.plan is None:
        return f"{optim.num_steps} steps of {optim.global_batch} clips; how many epochs is unknown"
    per_epoch, mixing = found.plan.steps_per_epoch, found.config.data.mixing
    if mixing != MixingConfig():
        order = f"{mixing.image_epochs} epochs of images, then videos"
        if mixing.weights:
            order = f"images and videos by turns, {mixing.weights[0]} to {mixing.weights[1]}"
        return (
            f"{optim.num_steps} steps of {optim.global_batch} clips: {order}; an epoch of images has "
            f"{found.plan.num_steps(Kind.IMAGE)} steps, one of videos {found.plan.num_steps(Kind.VIDEO)}"
        )
    return (
        f"{optim.num_steps} steps of {optim.global_batch} clips = {optim.num_steps / per_epoch:.1f} epochs of "
        f"{per_epoch} steps"
    )


def _frames_line(config: PretrainConfig) -> str:
    num_frames, size = config.optim.global_batch * config.data.num_frames, config.data.frame_size_px
    mebibytes, shown = num_frames * size * size * 3 / 2**20, config.data.shown_px
    return (
        f"{config.optim.global_batch} videos × {config.data.num_frames} frames of {size} × {size} px = {num_frames} "
        f"frames, {mebibytes:.1f} MiB per step" + (f", shown at {shown} × {shown} px" if shown != size else "")
    )


def _model_line(config: PretrainConfig) -> str:
    pieces, bound = num_pieces(config)
    number = _tried([], "", lambda: num_parameters(config.model, pieces))
    if number is None:
        return f"{config.model.visual.encoder}: cannot be built"
    return f"{number / 1e6:.2f} M parameters, with a vocabulary of {bound}{pieces} pieces"


def _resources_line(placement: Placement, machine: Machine) -> str:
    gpus = " and 1 GPU" if placement.use_gpu else ""
    more = "" if placement.fewest_workers == placement.most_workers else f" to {placement.most_workers}"
    have = "checked when the run starts, on the cluster of RAY_ADDRESS"
    if machine.num_cpus is not None:
        have = f"of {machine.num_cpus} here"
    return (
        f"{placement.fewest_workers}{more} train workers × {placement.cpus_per_worker:g} CPU{gpus} + "
        f"{placement.decode_cpus} CPU for decoding = {num_cpus(placement):g} CPUs, {have}"
    )


def _storage_line(found: Survey) -> str:
    wrong = any(problem.startswith("placement.storage") for problem in found.problems)
    return f"{storage.absolute(found.config.placement.storage)} {'cannot' if wrong else 'can'} be written"


def _num_by_kind(manifest: Manifest, split: str) -> Counter[str]:
    splits, kinds = manifest.table["split"].to_pylist(), manifest.table["kind"].to_pylist()
    return Counter(kind for of, kind in zip(splits, kinds, strict=True) if of == split)


def _tried(found: list[str], name: str, look: Callable[[], Any]) -> Any:
    """What `look` returns; None, and a problem under `name`, if it refuses."""
    try:
        return look()
    except (ValueError, KeyError, OSError) as error:
        found.append(f"{name}: {error}")
        return None
