"""The protocol card: a score with everything that it depends on, so that anybody can repeat it.

`Protocol` has the settings that two comparable scores must share; `Card` has the results, and where they were measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from jobs.corpus.summary import annotated_beside
from jobs.run import run_files
from jobs.run.config import DataConfig, SelectionConfig, TaskConfig
from jobs.run.fields import as_dict
from jobs.tasks.retrieval import Fusion, RetrievalOptions
from jobs.tasks.task import Measured, hash_of_ids, score_name
from pipeline import storage
from pipeline.corpus.manifest import checksum, open_manifest
from pipeline.records import Kind
from pipeline.stream.source import split_clips

RETRIEVAL = "retrieval"
AnyCard = TypeVar("AnyCard")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The settings with which a score is measured."""

    task: str
    """retrieval, question_answering, multiple_choice, or the name of a third-party task."""
    run: str
    """Folder of the run."""
    manifest: str
    split: str
    questions: str | None = None
    """File of questions or choices."""
    queries: str = "first"
    """Query texts: the `first` caption of each clip, `each` caption, or all of a clip joined to a `paragraph`."""
    rerank: int | None = None
    """Clips of each text that the cross encoder reranks; None: all."""
    fusion: Fusion = "sum"
    """Score that orders the reranked clips."""
    prior: str = "none"
    """`dual_softmax` adds separate metrics of scores with a prior over all queries."""
    num_frames: int = 4
    frame_size_px: int = 48
    max_clips: int | None = None
    """Most clips of the split, the first by clip_id; None: all."""
    is_video_hidden: bool = False
    """Whether the frames were black: a baseline without visual information."""
    seed: int = 0
    """Seed of the bootstrap."""

    @property
    def retrieval_options(self) -> RetrievalOptions:
        """Return the options of retrieval."""
        return RetrievalOptions(
            queries=self.queries, rerank=self.rerank, fusion=self.fusion, prior=self.prior, seed=self.seed
        )

    @property
    def is_retrieval(self) -> bool:
        """Return whether the task is retrieval; all others ask about clips."""
        return self.task == RETRIEVAL


@dataclass(frozen=True, kw_only=True)
class Card:
    """A score and its protocol."""

    protocol: Protocol
    weights: str
    """BLAKE2b of the weights' file."""
    run_hash: str
    """Hash of the run's identity."""
    run_seed: int
    manifest_hash: str
    ids_hash: str
    """Hash of the clip ids and the query texts or question ids, in order."""
    questions_hash: str = ""
    """Hash of the file of questions and answers; empty for retrieval, and in cards older than this field."""
    num_videos: int
    num_queries: int
    num_missing: int
    """Questions about clips that are not in the split; for retrieval, clips of the caption files that jobs/prepare.py
    could not use."""
    num_undecoded: int
    """Clips that could not be decoded; of question answering and multiple choice, questions about such clips."""
    selected_on: str
    """Metric and split by which the checkpoint was selected."""
    is_selected_on_test: bool
    """Whether the checkpoint was selected on some of the scored clips."""
    num_trained_on: int = 0
    """Scored clips that the run was trained on; 0 also if its training manifest is not available."""
    scores: Mapping[str, float]
    """Scores, with the bounds of their bootstrap 95 % intervals as `_low` and `_high`."""
    date: str
    hardware: str
    commit: str

    @property
    def caveats(self) -> list[str]:
        """Return why the score is too optimistic."""
        caveats = ["chosen on the same clips"] if self.is_selected_on_test else []
        return caveats + ([f"trained on {self.num_trained_on} of these clips"] if self.num_trained_on else [])

    @property
    def means(self) -> dict[str, float]:
        """Return the scores without the bounds of their intervals."""
        return {name: value for name, value in self.scores.items() if not name.endswith(("_low", "_high"))}

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the bounds of a score's interval; None if it has none."""
        low, high = (self.scores.get(f"{name}_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)


EXPORTED = "cards"
"""Folder of the cards in a model exported by jobs/export.py."""


def make_card(protocol: Protocol, measured: Measured, **facts: Any) -> Card:
    """Return the card of a score; `facts` are the other fields of `Card`."""
    fields = asdict(measured)
    if measured.num_missing is None:
        fields["num_missing"] = num_missing(protocol.manifest, protocol.split)
    return Card(protocol=protocol, questions_hash=hash_of_questions(protocol), **fields, **facts)


def selected_on(selection: SelectionConfig, data: DataConfig) -> str:
    """Return the metric and the split by which the checkpoint of a run is selected."""
    return f"{selection.metric} on {data.validation_split}"


def make_run_protocol(
    run_folder: str, *, data: DataConfig, task: TaskConfig, rerank: int | None, scores_all_pairs: bool
) -> Protocol:
    """Return the protocol of the evaluation at the end of a run. `scores_all_pairs`: that of its `Task`."""
    manifest, max_clips = storage.absolute(data.manifest), data.max_evaluation_clips
    num_clips = len(split_clips(manifest, data.test_split)[Kind.VIDEO])
    return Protocol(
        task=score_name(task.kind),
        run=run_folder,
        manifest=manifest,
        split=data.test_split,
        questions=storage.absolute(task.test) if task.test else None,
        num_frames=data.num_frames,
        frame_size_px=data.frame_size_px,
        max_clips=max_clips if scores_all_pairs and num_clips > max_clips else None,
        rerank=rerank if scores_all_pairs else None,
        is_video_hidden=task.is_video_hidden,
    )


def num_shared(scored: tuple[str, str], seen: tuple[str, str]) -> int:
    """Return the number of clips of the (manifest, split) `scored` that are in `seen` too. Clips are equal if bytes,
    start and end are, whatever their names."""
    clips, others = (split_clips(path, split)[Kind.VIDEO] for path, split in (scored, seen))
    is_seen: dict[tuple[str, float | None, float | None], bool] = {}
    for rows in clips.batches():
        is_seen |= dict.fromkeys(clip_keys(rows), False)
    checksums = pa.array({checksum for checksum, _, _ in is_seen}, pa.string())
    for rows in others.batches():
        is_seen |= {
            place: True for place in clip_keys(rows.filter(pc.field("checksum").isin(checksums))) if place in is_seen
        }
    return sum(is_seen.values())


def clip_keys(rows: pa.Table) -> Iterator[tuple[str, float | None, float | None]]:
    """Return (checksum of the file, start, end) of each clip, times in seconds."""
    columns = rows.select(["checksum", "start_seconds", "end_seconds"]).columns
    return zip(*(column.to_pylist() for column in columns), strict=True)


def num_missing(manifest_path: str, split: str) -> int:
    """Return the number of annotated clips of a split that are not in the manifest, as recorded by jobs/prepare.py."""
    manifest = open_manifest(manifest_path)
    num_clips = manifest.splits[split]
    return annotated_beside(manifest_path, manifest.hash).get(split, num_clips) - num_clips


def card_folder(protocol: Protocol, *, is_own: bool) -> str:
    """Return the folder of the card of a score, one per protocol.

    `is_own`: it is the protocol of the evaluation at the end of the run, whose folder has only task and split in its
    name.
    """
    name = f"{protocol.task}-{protocol.split}"
    if not is_own:
        name += f"-{hash_of_ids(sorted(as_dict(protocol).items()))[:6]}"
    return f"{protocol.run}/evaluation/{name}"


def read_cards(run_folder: str) -> dict[str, Card]:
    """Return the cards of a run by the name of their folder, or of an exported model by the name of their file."""
    names: dict[str, str] = {}
    for path in sorted(storage.list_files(run_folder)):
        if path.endswith("/card.json"):
            names[path.split("/")[-2]] = path
        elif path.startswith(f"{EXPORTED}/"):
            names[path.removeprefix(f"{EXPORTED}/").removesuffix(".json")] = path
    return {name: read_card(f"{run_folder}/{path}") for name, path in names.items()}


def hash_of_questions(protocol: Protocol) -> str:
    """Return a hash of the file of questions, 32 hex digits; empty without a file."""
    return checksum(storage.read_bytes(protocol.questions)) if protocol.questions else ""


def write_card(card: Card, path: str) -> None:
    """Write the card as JSON."""
    run_files.write_json(path, as_dict(card))


def read_card(path: str) -> Card:
    """Return the card in a file. ValueError if the file is not a valid card."""
    return read_as(Card, path, "protocol card")


def read_as(kind: type[AnyCard], path: str, what: str, remedy: str = "") -> AnyCard:
    """Return the card of class `kind` in a file. ValueError with the first wrong field if the file is no valid `what`;
    `remedy` ends the message."""
    storage.check_readable(path)
    try:
        return TypeAdapter(kind).validate_python(run_files.read_json(path))
    except (ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is no {what}: {where} {first['msg']}{remedy}") from error


def refuse_other(card: Card, hashes: Mapping[str, str]) -> None:
    """Raise ValueError if a hash (weights, manifest_hash, questions_hash, ids_hash) differs from the card's."""
    expected = {name: getattr(card, name) or hashes[name] for name in hashes}  # older cards lack the hash of questions
    if wrong := [
        f"{name} is {value}, the card has {expected[name]}" for name, value in hashes.items() if value != expected[name]
    ]:
        raise ValueError(
            f"the card of {card.protocol.run} cannot be repeated: {'; '.join(wrong)}; its score is that of others"
        )


def find_differences(card: Card, scores: Mapping[str, float]) -> list[str]:
    """Return a line per score that differs from the card's. None should on the same hardware; elsewhere, each should
    lie in its interval."""
    lines = []
    for name, expected in card.means.items():
        value, ends = scores.get(name, float("nan")), card.interval(name)
        if value == expected:
            continue
        place = "which has no interval"
        if ends:
            place = f"{'inside' if ends[0] <= value <= ends[1] else 'outside'} [{ends[0]:.4f}, {ends[1]:.4f}]"
        lines.append(f"{name}: was {expected:.4f}, is {value:.4f}, {place}")
    return lines
