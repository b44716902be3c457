"""Score a run on a task and write its protocol card: `ray job submit -- python jobs/evaluate.py RUN …`.

python jobs/evaluate.py runs/tiny                                 retrieval on the run's test split, exhaustive
python jobs/evaluate.py runs/tiny --rerank 100                    the same in two stages
python jobs/evaluate.py runs/tiny --task multiple_choice --questions corpora/embedded/multiple_choice/test.jsonl
python jobs/evaluate.py --card runs/tiny/evaluation/retrieval-test/card.json       the same score again

On the clips of any manifest. A score on the split by which the checkpoint was chosen is refused, unless asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.torch
import tyro
from jaxtyping import Bool, Int

from cluster import run as cluster_run
from cluster.connection import connected_ray
from jobs.evaluation import cards
from jobs.evaluation.cards import TASKS, Card, Protocol, read_card, refuse_other, write_card
from jobs.evaluation.leaderboard import doubt_of
from jobs.run import run_files
from jobs.run.config import Placement, PretrainConfig, TaskConfig, with_decoder
from jobs.run.fields import as_dict, config_hash, flat
from jobs.run.run_identity import config_of
from jobs.tasks import retrieval
from jobs.tasks.retrieval import Fusion, Scored
from jobs.tasks.tasks import AskingTask, CaptionTask, ChoiceTask, Language, QuestionTask, asked_of
from jobs.tracking import machine, mlflow_runs
from jobs.training import checkpoints, streams
from jobs.training.job import Job, evaluation_sources, with_absolute_weights, workers
from jobs.training.trainer import Rank, unique
from pipeline import storage
from pipeline.corpus.ledger import write_ledger
from pipeline.corpus.manifest import Manifest, read_manifest
from pipeline.corpus.questions import read_choices, read_questions
from pipeline.records import Batch
from pipeline.stream.loader import ClipSource
from snps3_model.loading import load_earlier_run
from snps3_model.objective import Pretraining

KINDS = {task: kind for kind, task in TASKS.items()}
"""What a run is trained for, by the task that it is scored on."""


PLACES = ("run", "manifest", "questions")
"""What may lie elsewhere when a card's score is repeated."""
REJECTED = "rejected.parquet"
"""Beside a card: the clips that could not be decoded, and why."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is to be scored, and how."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """Folder of the run."""
    task: Literal["auto", "retrieval", "question_answering", "multiple_choice"] = "auto"
    """`auto`: what the run was trained for."""
    manifest: str | None = None
    """None: that of the run."""
    split: str | None = None
    """None: the run's test split."""
    questions: str | None = None
    """File of questions or choices; None: those of the run's test split."""
    queries: Literal["first", "each", "paragraph"] = "first"
    """Captions that ask: the first of each clip, each of them, or all of a clip as one paragraph."""
    rerank: int | None = None
    """Clips of each text, and texts of each clip, that the cross encoder orders anew. None: all."""
    fusion: Fusion = "sum"
    """What orders them: both scores, or the cross encoder's own."""
    dual_softmax: bool = False
    """Show scores that use all queries as a prior too, in columns of their own."""
    num_frames: int | None = None
    """Frames per video; None: as many as in training."""
    max_clips: int | None = None
    """Clips at most, the first by clip_id; None: all of the split."""
    allow_selection_on_test: bool = False
    """Score the split by which the checkpoint was chosen; the card then says so."""
    allow_training_on_test: bool = False
    """Score clips that the run was trained on; the card then says so."""
    card: str | None = None
    """A card whose score is to be repeated. All but `placement` comes from it; `run`, `manifest` and `questions` are
    given where they lie elsewhere by now."""
    out: str | None = None
    """Folder of the card; None: `evaluation/TASK-SPLIT` in the run's, with a hash if that is not how the run scores
    itself."""
    placement: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        for name in ("rerank", "num_frames", "max_clips"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}; leave it out for all")


def evaluate(config: EvaluateConfig) -> Card:
    """The card of the score. ValueError for what cannot be scored, or not repeated."""
    wanted = read_card(config.card) if config.card else None
    if not wanted and not config.run:
        raise ValueError("name the folder of a run, or a card with --card")
    moved = moved_to(config, wanted.protocol) if wanted else None
    run_folder = moved.run if moved else storage.absolute(config.run)
    run = config_of(run_folder)
    protocol = moved or protocol_of(config, run, run_folder)
    manifest, identity = read_manifest(protocol.manifest), run_files.read_json(f"{run_folder}/{run_files.IDENTITY}")
    seen = num_seen(run, protocol, identity["fields"]["data.manifest_hash"])
    refuse_seen(config, run, protocol, seen, wanted)
    weights = run_files.weights_hash(run_folder)
    if wanted:
        questions_hash = cards.hash_of_questions(protocol)
        refuse_other(wanted, {"weights": weights, "manifest_hash": manifest.hash, "questions_hash": questions_hash})
    out = out_folder(config, run, run_folder, protocol)
    job = make_job(run, run_folder, protocol, config.placement)
    request = Request(job=job, protocol=protocol, weights_of=run, out=out)
    connected = connected_ray(worker_environment=cluster_run.WORKER_ENVIRONMENT, is_watched=True)
    with tempfile.TemporaryDirectory() as scratch, connected:
        cluster_run.run(
            evaluate_rank,
            request,
            storage=cluster_run.Storage(path=scratch, upload=storage.upload_folder),
            name="evaluation",
            datasets={"test": functools.partial(streams.evaluation_stream, job.sources["test"])},
            workers=workers(job.config),
        )
    card = cards.make_card(
        protocol,
        cards.Measured(**run_files.read_json(f"{out}/measured.json")),
        run,
        is_selected_on_test=seen["validation"] > 0,
        num_trained_on=seen["train"],
        weights=weights,
        run_hash=identity["hash"],
        manifest_hash=manifest.hash,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        hardware=machine.hardware(),
        commit=machine.git_commit(),
    )
    if wanted:
        refuse_other(wanted, {"ids_hash": card.ids_hash})
    refuse_too_many_rejected(card, f"{out}/{REJECTED}", run.data.max_rejected_share)
    write_card(card, place := f"{out}/{'repeated' if wanted else 'card'}.json")
    print(f"card: {place}")
    log(card, run, config.placement)
    return card


def refuse_too_many_rejected(card: Card, path: str, share: float) -> None:
    """ValueError where so many clips could not be decoded that the score is that of another test set."""
    num_scored = card.num_videos if card.protocol.task == "retrieval" else card.num_queries
    if card.num_undecoded > share * (num_scored + card.num_undecoded):
        raise ValueError(
            f"{card.num_undecoded} of what was asked about could not be decoded ({path} says why), more than "
            f"data.max_rejected_share={share} of all: a score over the others would be that of another test set"
        )


def out_folder(config: EvaluateConfig, run: PretrainConfig, run_folder: str, protocol: Protocol) -> str:
    """Where the card goes, and what was measured. A repeated score lies beside its card, which stays as it is."""
    if config.out:
        return storage.absolute(config.out)
    if config.card:
        return f"{storage.absolute(config.card).rpartition('/')[0]}/repeated"
    return cards.card_folder(run_folder, protocol, cards.own_protocol(run, run_folder))


def protocol_of(config: EvaluateConfig, run: PretrainConfig, run_folder: str) -> Protocol:
    """How the score is measured, with what the run says where nothing was asked for."""
    kind = run.task.kind
    task = config.task if config.task != "auto" else TASKS[kind]
    if task == "question_answering" and kind != "question_answering":
        raise ValueError(
            f"{run_folder} was trained for {kind} and has no answers; fine-tune it with jobs/finetune.py first"
        )
    split = config.split or run.data.test_split
    questions = config.questions or (files_of(run).get(split) if KINDS[task] == kind else None)
    if task != "retrieval" and not questions:
        raise ValueError(f"--task {task} on the split {split} needs --questions, the file that asks about its clips")
    if task == "retrieval" and config.questions:
        raise ValueError("--questions are not asked by --task retrieval; name the task")
    if task != "retrieval":
        refuse_given(config, ("queries", "rerank", "fusion", "dual_softmax"), f"says nothing to --task {task}")
    return Protocol(
        task=task,
        run=run_folder,
        manifest=storage.absolute(config.manifest or run.data.manifest),
        split=split,
        questions=storage.absolute(questions) if questions else None,
        queries=config.queries,
        rerank=config.rerank,
        fusion=config.fusion,
        prior="dual_softmax" if config.dual_softmax else "none",
        num_frames=config.num_frames or run.data.num_frames,
        frame_size_px=run.data.frame_size_px,
        max_clips=config.max_clips,
        is_video_hidden=run.task.is_video_hidden and task != "retrieval",
    )


def files_of(run: PretrainConfig) -> dict[str | None, str | None]:
    """The run's own files of questions, by the split whose clips they ask about."""
    data, task = run.data, run.task
    return {
        data.temporal_split: task.temporal,
        data.validation_split: task.validation,
        data.test_split: task.test,
    }


def refuse_given(config: EvaluateConfig, names: Sequence[str], why: str) -> None:
    """ValueError that names the first of these fields that somebody has set."""
    default = EvaluateConfig()
    for name in names:
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)} {why}; leave it out")


def moved_to(config: EvaluateConfig, protocol: Protocol) -> Protocol:
    """The protocol of a card, with what lies elsewhere by now; the card's hashes say whether it is the same."""
    places = [name for name in PLACES if getattr(config, name)]
    others = ("card", "out", "placement", "allow_selection_on_test", "allow_training_on_test", *PLACES)
    names = [one.name for one in dataclasses.fields(config) if one.name not in others]
    refuse_given(config, names, "is not for --card, which says it all")
    if not protocol.questions:
        refuse_given(config, ["questions"], "is not asked by the card")
    return dataclasses.replace(protocol, **{name: storage.absolute(getattr(config, name)) for name in places})


def run_manifest(run: PretrainConfig, protocol: Protocol, wanted_hash: str) -> str:
    """Path of the manifest that the run was trained with; "", said, where it is not at hand any more."""
    for path in (protocol.manifest, storage.absolute(run.data.manifest)):
        with contextlib.suppress(OSError):  # of a file that is gone, or a bucket that is not for everybody
            if read_manifest(path).hash == wanted_hash:
                return path
    print(f"{run.data.manifest} is not as {run.name} learned from it: did it learn from these clips? Not checked")
    return ""


def num_seen(run: PretrainConfig, protocol: Protocol, manifest_hash: str) -> dict[str, int]:
    """How many of the scored clips are in the splits that the run was trained and its checkpoint chosen on."""
    splits = {"validation": run.data.validation_split, "train": run.data.train_split}
    path, scored = run_manifest(run, protocol, manifest_hash), (protocol.manifest, protocol.split)
    return {name: cards.num_shared(scored, (path, split)) if path else 0 for name, split in splits.items()}


def refuse_seen(
    config: EvaluateConfig, run: PretrainConfig, protocol: Protocol, seen: Mapping[str, int], wanted: Card | None
) -> None:
    """ValueError if clips are scored that the run has seen, and nobody asked for that."""
    for name, what, option, is_wanted in (
        ("validation", "chosen", "allow_selection_on_test", wanted and wanted.is_selected_on_test),
        ("train", "trained", "allow_training_on_test", wanted and wanted.num_trained_on),
    ):
        if seen[name] and not (getattr(config, option) or is_wanted):
            raise ValueError(
                f"the checkpoint of {protocol.run} was {what} on the split {getattr(run.data, f'{name}_split')}, which "
                f"has {seen[name]} clips of the split {protocol.split}, and so its score there says too much; take "
                f"another --split, or --{option.replace('_', '-')}, which the card will show"
            )


def make_job(run: PretrainConfig, run_folder: str, protocol: Protocol, placement: Placement) -> Job:
    """What every rank needs: the run's words, the clips, and what is asked about them."""
    data = dataclasses.replace(
        run.data,
        manifest=protocol.manifest,
        test_split=protocol.split,
        temporal_split=None,
        num_frames=protocol.num_frames,
        frame_size_px=protocol.frame_size_px,
    )
    manifest = read_manifest(protocol.manifest)
    config = with_absolute_weights(dataclasses.replace(run, data=data, placement=placement))
    config = with_decoder(config, manifest.fastest_decoder)
    source = dataclasses.replace(evaluation_sources(config)["test"], max_clips=protocol.max_clips)
    if not len(source.rows()):
        raise ValueError(f"{protocol.manifest} has no video in the split {protocol.split!r}")
    return Job(
        config=config,
        run_folder=run_folder,
        language=Language.load(run_folder, config),
        task=asking(run.task, run_folder, protocol, manifest, source),
        sources={"test": source},
        tracking_uri="",
        tracking_run_id="",
    )


def asking(
    task: TaskConfig, run_folder: str, protocol: Protocol, manifest: Manifest, source: ClipSource
) -> CaptionTask | QuestionTask | ChoiceTask:
    """What is asked; question answering keeps the answers of its training."""
    if protocol.task == "retrieval":
        return CaptionTask()
    path, hidden = str(protocol.questions), protocol.is_video_hidden
    if protocol.task == "multiple_choice":
        choices = asked_of(manifest, source, path, read_choices(path))
        return ChoiceTask(asked={"test": choices}, is_video_hidden=hidden)
    return QuestionTask(
        asked={"test": asked_of(manifest, source, path, read_questions(path))},
        is_video_hidden=hidden,
        answers=tuple(run_files.read_json(f"{run_folder}/{run_files.ANSWERS}")),
        is_multi_label=task.is_multi_label,
    )


# --- on every rank ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the driver hands to every rank."""

    job: Job
    protocol: Protocol
    weights_of: PretrainConfig
    """The run as it was trained."""
    out: str


def evaluate_rank(request: Request, runtime: cluster_run.Runtime) -> None:
    """Score this rank's share; the first rank writes what all found."""
    rank, protocol = Rank(request.job, runtime), request.protocol
    network = rank.network(is_new=False)
    path = run_files.best_weights(request.job.run_folder)
    data = storage.read_bytes(path)
    if request.weights_of.task.kind == KINDS[protocol.task]:
        checkpoints.load_weights(data, network)
    else:
        rank.say(str(load_earlier_run(network.model, safetensors.torch.load(data), path)))
    batches = rank.evaluation_batches("test")
    if isinstance(request.job.task, AskingTask):
        answers = rank.answers(list(batches), network, name="test")
        measured = cards.of_answers(answers, request.job.task.results(answers, "test"))
    else:
        assert isinstance(network, Pretraining), "retrieval is scored by both encoders"
        scored, texts, measured = retrieved(rank, network, batches, protocol)
        if rank.world.is_first:
            retrieval.save_scores(f"{request.out}/scores.npz", scored, texts={"texts": texts})
    rejected = rank.world.gather_objects(rank.rejected)
    if rank.world.is_first:
        run_files.write_json(f"{request.out}/measured.json", vars(measured))
        write_ledger(unique(rejected), f"{request.out}/{REJECTED}")


def retrieved(
    rank: Rank, network: Pretraining, batches: Iterable[Batch], protocol: Protocol
) -> tuple[Scored, list[str], cards.Measured]:
    """Scores, the texts that asked, and what came out, of retrieval in both directions."""
    source = rank.job.sources["test"]
    gallery = retrieval.encode_clips(network.model, batches, rank.world.gather)
    clip_ids = gallery.clip_ids.cpu().numpy()
    texts, relevant, owners = queries_of(source, clip_ids, protocol.queries)
    k = protocol.rerank
    scored = rank.pair_scores(
        network, gallery, texts, asked=functools.partial(retrieval.first_of_both, k=k) if k else None
    )
    how: dict[str, Any] = {"fusion": protocol.fusion, "prior": protocol.prior, "seed": protocol.seed}
    scores = retrieval.retrieval_results(scored, relevant, "test", rerank=k, owners=owners, **how)
    return scored, texts, cards.of_retrieval(clip_ids.tolist(), texts, source, scores)


def queries_of(
    source: ClipSource, clip_ids: Int[np.ndarray, " N"], queries: str
) -> tuple[list[str], Bool[np.ndarray, "Q N"], Int[np.ndarray, " Q"]]:
    """The texts that ask about these clips, which clips each of them is true of, and by which clip each was written."""
    rows = source.rows()
    captions = dict(zip(rows["clip_id"].to_pylist(), rows["captions"].to_pylist(), strict=True))
    every = [captions[clip_id] for clip_id in clip_ids.tolist()]
    own = [texts_of(some, queries) for some in every]
    texts = [text for some in own for text in some]
    owners = np.repeat(np.arange(len(own)), [len(some) for some in own])
    return texts, retrieval.true_of(texts, own if queries == "paragraph" else every), owners


def texts_of(captions: Sequence[str], queries: str) -> list[str]:
    """What a clip is asked for by."""
    return {"first": list(captions[:1]), "each": list(dict.fromkeys(captions)), "paragraph": [" ".join(captions)]}[
        queries
    ]


# --- what is told -----------------------------------------------------------------------------------------------------


def log(card: Card, run: PretrainConfig, placement: Placement) -> None:
    """The card as a run of MLflow: protocol as parameters, scores as metrics."""
    name = f"{run.name}/{card.protocol.task}-{card.protocol.split}"
    tracker = mlflow_runs.open_run(
        placement.storage,
        experiment=placement.experiment,
        name=name,
        identity_hash=config_hash(as_dict(card.protocol) | {"weights": card.weights}),
        params=flat({key: value for key, value in as_dict(card).items() if key != "scores"}),
    )
    tracker.log(card.scores, 0)
    tracker.finish("FINISHED")


def table(card: Card) -> str:
    """The card in lines."""
    protocol = card.protocol
    lines = [
        f"{protocol.task} on {protocol.split} of {protocol.manifest} ({card.manifest_hash})",
        f"{card.num_videos} videos, {card.num_queries} queries; {card.num_missing} "
        f"{'clips' if protocol.task == 'retrieval' else 'questions about clips'} that are not there, "
        f"{card.num_undecoded} not decoded",
        f"{protocol.num_frames} frames of {protocol.frame_size_px} px; checkpoint chosen by {card.selected_on}",
    ]
    if protocol.task == "retrieval":
        lines.append(
            f"asked by: {protocol.queries}; re-ranked: {protocol.rerank or 'all'}, by {protocol.fusion}; prior: "
            f"{protocol.prior}"
        )
    if doubt := doubt_of(card):
        lines.append(doubt)
    lines += [f"{doubt.upper()}: this score says too much" for doubt in card.doubts]
    for name, value in sorted(card.scores.items()):
        if name.endswith(("_low", "_high")):
            continue
        interval = ""
        if f"{name}_low" in card.scores:
            interval = f"  [{card.scores[f'{name}_low']:.3f}, {card.scores[f'{name}_high']:.3f}]"
        lines.append(f"  {name:36s} {value:8.3f}{interval}")
    return "\n".join(lines)
