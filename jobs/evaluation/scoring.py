"""Score a run on a task with the clips of any manifest, and write its protocol card."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from cluster import run as cluster_run
from cluster.connection import connected_ray
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.evaluation import cards
from jobs.evaluation.cards import Card, Protocol, read_card, refuse_other, write_card
from jobs.evaluation.leaderboard import caveat_of
from jobs.evaluation.rank import REJECTED, Request, evaluate_rank
from jobs.run import run_files
from jobs.run.config import DataConfig, Placement, PretrainConfig, TaskConfig
from jobs.run.fields import as_dict, config_hash, flat
from jobs.run.run_identity import config_of, with_decoder
from jobs.tasks.retrieval import Fusion
from jobs.tasks.task import Measured, TaskInputs, own_type, score_name, scored_kind, task_type
from jobs.tasks.text import TextProcessor
from jobs.tracking import machine, mlflow_runs
from jobs.training.job import Job, evaluation_sources, with_absolute_weights, workers
from jobs.training.streams import evaluation_stream
from pipeline import storage
from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import open_manifest

PLACES = ("run", "manifest", "questions")
"""Paths of a protocol that may differ when a card's score is repeated."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which run is scored, on what, and how."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """Folder of the run."""
    task: str = "auto"
    """`auto`: the task of the run; or retrieval, question_answering, multiple_choice, or a task of another package as
    `package.module:Name`."""
    mteb: str | None = None
    """A text-video retrieval task of mteb, such as MSRVTTT2V, or ManifestT2V and ManifestV2T for the clips of the
    manifest; the score is mteb's."""
    baselines: tuple[str, ...] | None = None
    """Score the run beside these: random, words, frames, scenes, and hub=FOLDER for each folder of CLIP or SigLIP. None
    named: the first four, as far as the corpus allows."""
    manifest: str | None = None
    """Manifest of the clips; None: that of the run."""
    split: str | None = None
    """Split of the clips; None: the run's test split."""
    questions: str | None = None
    """File of questions or choices; None: those of the run's test split."""
    queries: Literal["first", "each", "paragraph"] = "first"
    """Query texts: the first caption of each clip, each caption, or all of a clip as one paragraph."""
    rerank: int | None = None
    """Clips of each text, and texts of each clip, that the cross encoder reranks. None: all."""
    fusion: Fusion = "sum"
    """Score that orders them: the sum of both, or the cross encoder's alone."""
    dual_softmax: bool = False
    """Also show scores with a prior over all queries, in separate columns."""
    num_frames: int | None = None
    """Frames per video; None: as many as in training."""
    max_clips: int | None = None
    """Most clips, the first by clip_id; None: all of the split."""
    allow_selection_on_test: bool = False
    """Allow clips on which the checkpoint was selected; the card then says so."""
    allow_training_on_test: bool = False
    """Allow clips that the run was trained on; the card then says so."""
    card: str | None = None
    """A card whose score is to be repeated. All but `placement` comes from it; set `run`, `manifest` and `questions` if
    they have moved."""
    out: str | None = None
    """Folder of the card; None: `evaluation/TASK-SPLIT` in the run's folder, with a hash unless the settings are those
    of the run's own evaluation."""
    placement: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        for name in ("rerank", "num_frames", "max_clips"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}; leave it out for all")


def evaluate(config: EvaluateConfig) -> Card:
    """Score a run and return the card. ValueError if it cannot be scored, or a card not be repeated."""
    before = read_card(config.card) if config.card else None
    if not before and not config.run:
        raise ValueError("name the folder of a run, or a card with --card")
    relocated = relocate(config, before.protocol) if before else None
    run_folder = relocated.run if relocated else storage.absolute(config.run)
    run = config_of(run_folder)
    protocol = relocated or protocol_of(config, run.data, run.task, run_folder)
    manifest, identity = open_manifest(protocol.manifest), run_files.read_json(f"{run_folder}/{run_files.IDENTITY}")
    overlap = count_overlap(run.data, protocol, identity["fields"]["data.manifest_hash"])
    refuse_overlap(config, run.data, protocol, overlap, before)
    weights = run_files.weights_hash(run_folder)
    if before:
        questions_hash = cards.hash_of_questions(protocol)
        refuse_other(before, {"weights": weights, "manifest_hash": manifest.hash, "questions_hash": questions_hash})
    out = out_folder(config, protocol, run.data, run.task, run.selection.rerank)
    card = cards.make_card(
        protocol,
        measure(make_request(run, protocol, config.placement, manifest, out)),
        run_seed=run.seed,
        selected_on=cards.selected_on(run.selection, run.data),
        is_selected_on_test=overlap["validation"] > 0,
        num_trained_on=overlap["train"],
        weights=weights,
        run_hash=identity["hash"],
        manifest_hash=manifest.hash,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        hardware=machine.hardware(),
        commit=machine.git_commit(),
    )
    if before:
        refuse_other(before, {"ids_hash": card.ids_hash})
    refuse_too_many_rejected(card, f"{out}/{REJECTED}", run.data.max_rejected_share)
    write_card(card, place := f"{out}/{'repeated' if before else 'card'}.json")
    print(f"card: {place}")
    log(card, run.name, config.placement)
    return card


def is_own(protocol: Protocol, data: DataConfig, task: TaskConfig, rerank: int | None) -> bool:
    """Return whether a protocol is that of the evaluation at the end of the run with these settings.

    The run's manifest, which may be gone, is read only if the protocol names it.
    """
    if protocol.manifest != storage.absolute(data.manifest):
        return False
    trained_task = own_type(task.kind)
    return protocol == cards.make_run_protocol(
        protocol.run,
        data=data,
        task=task,
        rerank=rerank,
        scores_all_pairs=trained_task is not None and trained_task.scores_all_pairs,
    )


def measure(request: Request) -> Measured:
    """Run the ranks and return their results."""
    job = request.job
    connected = connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True)
    with tempfile.TemporaryDirectory() as scratch, connected:
        cluster_run.run(
            evaluate_rank,
            request,
            storage=cluster_run.Storage(path=scratch, upload=storage.upload_folder),
            name="evaluation",
            datasets={"test": functools.partial(evaluation_stream, job.sources["test"])},
            workers=workers(job.placement),
        )
    return Measured(**run_files.read_json(f"{request.out}/measured.json"))


def refuse_too_many_rejected(card: Card, path: str, share: float) -> None:
    """Raise ValueError if so many clips could not be decoded that the rest is another test set."""
    num_scored = card.num_videos if card.protocol.is_retrieval else card.num_queries
    if card.num_undecoded > share * (num_scored + card.num_undecoded):
        raise ValueError(
            f"{card.num_undecoded} clips or questions could not be scored, because their clips do not decode ({path} "
            f"lists them): more than data.max_rejected_share={share}; the rest is a different test set"
        )


def out_folder(
    config: EvaluateConfig, protocol: Protocol, data: DataConfig, task: TaskConfig, rerank: int | None
) -> str:
    """Return the folder of the card and the raw results. A repeated score goes beside its card, which stays unchanged.

    `data`, `task` and `rerank` (clips that the run's selection reranks) are the run's.
    """
    if config.out:
        return storage.absolute(config.out)
    if config.card:
        return f"{storage.absolute(config.card).rpartition('/')[0]}/repeated"
    return cards.card_folder(protocol, is_own=is_own(protocol, data, task, rerank))


def protocol_of(config: EvaluateConfig, data: DataConfig, trained: TaskConfig, run_folder: str) -> Protocol:
    """Return the protocol of the score; settings that are not given are those of the run (`data`, `trained`)."""
    kind = trained.kind if config.task == "auto" else scored_kind(config.task)
    if config.task == "auto" and own_type(kind) is None:
        raise ValueError(
            f"{run_folder} was trained for {kind}, a task of another package, whose code is not run because a folder "
            f"names it; name it yourself with --task {kind}"
        )
    task, name = task_type(kind), score_name(kind)
    if task.needs_own_head and kind != trained.kind:
        raise ValueError(
            f"{run_folder} was trained for {trained.kind} and has no answers; fine-tune it with jobs/finetune.py first"
        )
    split = config.split or data.test_split
    questions = config.questions or (files_of(data, trained).get(split) if kind == trained.kind else None)
    if task.reads_questions and not questions:
        raise ValueError(f"--task {name} on the split {split} needs --questions, the file that asks about its clips")
    if not task.reads_questions and config.questions:
        raise ValueError(f"--questions has no effect with --task {name}; choose a task that reads questions")
    if not task.scores_all_pairs:
        refuse_given(config, ("queries", "rerank", "fusion", "dual_softmax"), f"has no effect with --task {name}")
    return Protocol(
        task=name,
        run=run_folder,
        manifest=storage.absolute(config.manifest or data.manifest),
        split=split,
        questions=storage.absolute(questions) if questions else None,
        queries=config.queries,
        rerank=config.rerank,
        fusion=config.fusion,
        prior="dual_softmax" if config.dual_softmax else "none",
        num_frames=config.num_frames or data.num_frames,
        frame_size_px=data.frame_size_px,
        max_clips=config.max_clips,
        is_video_hidden=trained.is_video_hidden and task.reads_questions,
    )


def files_of(data: DataConfig, task: TaskConfig) -> dict[str | None, str | None]:
    """Return the run's files of questions by split."""
    return {
        data.temporal_split: task.temporal,
        data.validation_split: task.validation,
        data.test_split: task.test,
    }


def refuse_given(config: EvaluateConfig, names: Sequence[str], why: str) -> None:
    """Raise ValueError for the first of these fields that is set."""
    default = EvaluateConfig()
    for name in names:
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)} {why}; leave it out")


def relocate(config: EvaluateConfig, protocol: Protocol) -> Protocol:
    """Return the protocol of a card with the current paths; hashes later verify that the contents are the same."""
    is_named = config.task == protocol.task
    if own_type(scored_kind(protocol.task)) is None and not is_named:
        raise ValueError(
            f"the card is of {protocol.task}, a task of another package, whose code is not run because a card names "
            f"it; name it yourself with --task {protocol.task}"
        )
    places = [name for name in PLACES if getattr(config, name)]
    others = ("card", "out", "placement", "allow_selection_on_test", "allow_training_on_test", *PLACES)
    others += ("task",) if is_named else ()
    names = [field.name for field in dataclasses.fields(config) if field.name not in others]
    refuse_given(config, names, "conflicts with --card, which fixes every setting")
    if not protocol.questions:
        refuse_given(config, ["questions"], "is not asked by the card")
    return dataclasses.replace(protocol, **{name: storage.absolute(getattr(config, name)) for name in places})


def run_manifest(data: DataConfig, protocol: Protocol, manifest_hash: str) -> str:
    """Return the path of the manifest that the run was trained with. If it is gone, print that and return ""."""
    for path in (protocol.manifest, storage.absolute(data.manifest)):
        with contextlib.suppress(OSError):  # the file is gone, or the bucket is not accessible
            if open_manifest(path).hash == manifest_hash:
                return path
    name = protocol.run.rpartition("/")[2]
    print(f"{data.manifest} has changed since {name} was trained; overlap with its training clips was not checked")
    return ""


def count_overlap(data: DataConfig, protocol: Protocol, manifest_hash: str) -> dict[str, int]:
    """Return the numbers of scored clips that are in the run's training split and in its validation split."""
    splits = {"validation": data.validation_split, "train": data.train_split}
    path, scored = run_manifest(data, protocol, manifest_hash), (protocol.manifest, protocol.split)
    return {name: cards.num_shared(scored, (path, split)) if path else 0 for name, split in splits.items()}


def refuse_overlap(
    config: EvaluateConfig, data: DataConfig, protocol: Protocol, overlap: Mapping[str, int], before: Card | None
) -> None:
    """Raise ValueError if the run has seen scored clips, unless an option or the card `before` allows that."""
    for name, what, option, is_known in (
        ("validation", "chosen", "allow_selection_on_test", before and before.is_selected_on_test),
        ("train", "trained", "allow_training_on_test", before and before.num_trained_on),
    ):
        if overlap[name] and not (getattr(config, option) or is_known):
            raise ValueError(
                f"the checkpoint of {protocol.run} was {what} on the split {getattr(data, f'{name}_split')}, which "
                f"shares {overlap[name]} clips with the split {protocol.split}, so the score would be too optimistic; "
                f"choose another --split, or pass --{option.replace('_', '-')}, which the card records"
            )


def make_request(run: PretrainConfig, protocol: Protocol, placement: Placement, manifest: Listing, out: str) -> Request:
    """Return the input of the ranks: the run's network and vocabulary, the clips, and the task with its questions."""
    data = dataclasses.replace(
        run.data,
        manifest=protocol.manifest,
        test_split=protocol.split,
        temporal_split=None,
        num_frames=protocol.num_frames,
        frame_size_px=protocol.frame_size_px,
    )
    data = with_decoder(data, manifest.fastest_decoder)
    sources = evaluation_sources(data, placement, run.optim.global_batch, run.seed, max_clips=protocol.max_clips)
    source = {"test": sources["test"]}
    if not source["test"].num_clips:
        raise ValueError(f"{protocol.manifest} has no video in the split {protocol.split!r}")
    kind = scored_kind(protocol.task)
    task = task_type(kind).create(
        TaskInputs(
            config=dataclasses.replace(run.task, is_video_hidden=protocol.is_video_hidden),
            files={"test": protocol.questions} if protocol.questions else {},
            objective=run.objective,
            retrieval=protocol.retrieval_options,
            manifest=manifest,
            sources=source,
            seed=run.seed,
            run_folder=protocol.run,
        )
    )
    text = TextProcessor.load(
        protocol.run, text=run.text, masking=run.masking, seed=run.seed, length_groups=placement.length_groups
    )
    job = Job(
        name=run.name,
        seed=run.seed,
        run_folder=protocol.run,
        text=text,
        task=task,
        model=with_absolute_weights(run.model),
        sources=source,
        data=data,
        optim=run.optim,
        selection=run.selection,
        placement=placement,
    )
    return Request(job=job, is_own_task=kind == run.task.kind, out=out)


def log(card: Card, run_name: str, placement: Placement) -> None:
    """Log the card as an MLflow run."""
    identity = config_hash(as_dict(card.protocol) | {"weights": card.weights})
    log_fields(as_dict(card), f"{run_name}/{card.protocol.task}-{card.protocol.split}", identity, placement)


def log_fields(card: Mapping[str, Any], name: str, identity_hash: str, placement: Placement) -> None:
    """Log the fields of a card as an MLflow run: `scores` as metrics, all others as parameters."""
    tracker = mlflow_runs.open_run(
        placement.storage,
        experiment=placement.experiment,
        name=name,
        identity_hash=identity_hash,
        params=flat({key: value for key, value in card.items() if key != "scores"}),
    )
    tracker.log(card["scores"], 0)
    tracker.finish("FINISHED")


def table(card: Card) -> str:
    """Return the card as text for the terminal."""
    protocol = card.protocol
    lines = [
        f"{protocol.task} on {protocol.split} of {protocol.manifest} ({card.manifest_hash})",
        f"{card.num_videos} videos, {card.num_queries} queries; {card.num_missing} "
        f"{'clips' if protocol.is_retrieval else 'questions about clips'} that are not there, "
        f"{card.num_undecoded} not decoded",
        f"{protocol.num_frames} frames of {protocol.frame_size_px} px; checkpoint chosen by {card.selected_on}",
    ]
    if protocol.is_retrieval:
        lines.append(
            f"asked by: {protocol.queries}; re-ranked: {protocol.rerank or 'all'}, by {protocol.fusion}; prior: "
            f"{protocol.prior}"
        )
    if caveat := caveat_of(card):
        lines.append(caveat)
    lines += [f"{caveat.upper()}: this score is too optimistic" for caveat in card.caveats]
    for name, value in sorted(card.means.items()):
        ends = card.interval(name)
        lines.append(f"  {name:36s} {value:8.3f}" + (f"  [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""))
    return "\n".join(lines)
