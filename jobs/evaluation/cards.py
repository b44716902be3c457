"""The protocol card: everything that a score depends on, beside the score. It lets anybody repeat it.

What must be the same for two scores to be comparable stands in `Protocol`; what came out, and where, in `Card`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from jobs.corpus.summary import annotated_beside
from jobs.run import run_files
from jobs.run.config import PretrainConfig
from jobs.run.fields import as_dict
from jobs.tasks.retrieval import Fusion
from jobs.tasks.tasks import Predicted
from pipeline import storage
from pipeline.corpus.manifest import checksum, read_manifest
from pipeline.records import Kind
from pipeline.stream.loader import ClipSource, split_rows


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a score is measured."""

    task: str
    """retrieval, question_answering or multiple_choice."""
    run: str
    """Folder of the run."""
    manifest: str
    split: str
    questions: str | None = None
    """File of questions or choices."""
    queries: str = "first"
    """Captions that ask: the `first` of each clip, `each` of them, or all of a clip joined to a `paragraph`."""
    rerank: int | None = None
    """Clips of each text that the cross encoder orders anew; None: all."""
    fusion: Fusion = "sum"
    """What orders them."""
    prior: str = "none"
    """`dual_softmax` shows scores with the prior of all queries in columns of their own."""
    num_frames: int = 4
    frame_size_px: int = 48
    max_clips: int | None = None
    """Of the split, the first by clip_id; None: all."""
    is_video_hidden: bool = False
    """The frames were black: a baseline that sees nothing."""
    seed: int = 0
    """Of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A score and its protocol."""

    protocol: Protocol
    weights: str
    """BLAKE2b of the weights' file."""
    run_hash: str
    """Of the run's identity."""
    run_seed: int
    manifest_hash: str
    ids_hash: str
    """Of the ids of the clips and the texts that asked, in order."""
    questions_hash: str = ""
    """Of the file of questions, with their answers; empty for retrieval, and in cards from before it."""
    num_videos: int
    num_queries: int
    num_missing: int
    """Questions about clips that are not in the split; for retrieval, clips of the caption files that jobs/prepare.py
    could not use."""
    num_undecoded: int
    """Clips that could not be decoded; of question answering and multiple choice, questions about such clips."""
    selected_on: str
    """The split by which the checkpoint was chosen, and by which metric."""
    is_selected_on_test: bool
    """The checkpoint was chosen on what it is scored on."""
    num_trained_on: int = 0
    """Clips of the split that the run itself was trained on; 0 also where its manifest is not at hand."""
    scores: Mapping[str, float]
    """With the ends of their bootstrap 95 % intervals as `_low` and `_high`."""
    date: str
    hardware: str
    commit: str

    @property
    def doubts(self) -> list[str]:
        """Why the score says more than it should."""
        found = ["chosen on the same clips"] if self.is_selected_on_test else []
        return found + ([f"trained on {self.num_trained_on} of these clips"] if self.num_trained_on else [])


EXPORTED = "cards"
"""Folder of the cards in a model that jobs/export.py wrote."""
TASKS: Mapping[str, str] = MappingProxyType(
    {"captions": "retrieval", "question_answering": "question_answering", "multiple_choice": "multiple_choice"}
)
"""What a run is scored on, by what it is trained for."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came out of a measurement."""

    ids_hash: str
    num_videos: int
    num_queries: int
    num_missing: int
    num_undecoded: int
    scores: Mapping[str, float]


def of_answers(predicted: Sequence[Predicted], results: Mapping[str, float]) -> Measured:
    """`results`: of a task, with its counts, on the dataset `test`."""
    scores = {name: value for name, value in results.items() if name.startswith("test/")}
    counts = {name: int(scores.pop(f"test/{name}")) for name in ("num_missing", "num_undecoded", "num_asked")}
    ids = sorted((one.clip_id, one.question_id) for one in predicted)
    return Measured(
        ids_hash=hash_of_ids(ids),
        num_videos=len({clip_id for clip_id, _ in ids}),
        num_queries=counts["num_asked"],
        num_missing=counts["num_missing"],
        num_undecoded=counts["num_undecoded"],
        scores=scores,
    )


def of_retrieval(
    clip_ids: Sequence[int], texts: Sequence[str], source: ClipSource, scores: Mapping[str, float]
) -> Measured:
    """Of the clips of `source` those of `clip_ids` were decoded, and asked for by `texts`."""
    return Measured(
        ids_hash=hash_of_ids([*clip_ids, *texts]),
        num_videos=len(clip_ids),
        num_queries=len(texts),
        num_missing=num_missing(source.manifest_path, source.split),
        num_undecoded=len(source.rows()) - len(clip_ids),
        scores=scores,
    )


def make_card(
    protocol: Protocol,
    measured: Measured,
    run: PretrainConfig,
    *,
    is_selected_on_test: bool,
    num_trained_on: int,
    **facts: Any,
) -> Card:
    """The card of a score of `run`; `facts` are the hashes, date, hardware and commit."""
    return Card(
        protocol=protocol,
        run_seed=run.seed,
        questions_hash=hash_of_questions(protocol),
        selected_on=f"{run.selection.metric} on {run.data.validation_split}",
        is_selected_on_test=is_selected_on_test,
        num_trained_on=num_trained_on,
        **asdict(measured),
        **facts,
    )


def own_protocol(config: PretrainConfig, run_folder: str) -> Protocol:
    """How a run measures itself at its end."""
    is_retrieval = config.task.kind == "captions"
    most = config.data.max_evaluation_clips
    num_clips = num_videos(storage.absolute(config.data.manifest), config.data.test_split)
    return Protocol(
        task=TASKS[config.task.kind],
        run=run_folder,
        manifest=storage.absolute(config.data.manifest),
        split=config.data.test_split,
        questions=storage.absolute(config.task.test) if config.task.test else None,
        num_frames=config.data.num_frames,
        frame_size_px=config.data.frame_size_px,
        max_clips=most if is_retrieval and num_clips > most else None,
        rerank=config.selection.rerank if is_retrieval else None,
        is_video_hidden=config.task.is_video_hidden and not is_retrieval,
    )


def num_shared(scored: tuple[str, str], seen: tuple[str, str]) -> int:
    """Clips of the manifest and split `scored` that are in `seen` too: the same bytes from and to the same time,
    whatever they are called there."""
    names = ["checksum", "start_seconds", "end_seconds"]
    one, other = (split_rows(path, split)[Kind.VIDEO].select(names) for path, split in (scored, seen))
    some = other.filter(pc.field("checksum").isin(one["checksum"].combine_chunks()))
    return len(contents(one) & contents(some))


def contents(clips: pa.Table) -> set[tuple[Any, ...]]:
    """The rows, each once."""
    return set(zip(*(column.to_pylist() for column in clips.columns), strict=True))


def num_missing(manifest_path: str, split: str) -> int:
    """Clips of a split that the caption files named and the manifest has not, where jobs/prepare.py tells."""
    manifest = read_manifest(manifest_path)
    num_clips = manifest.splits[split]
    return annotated_beside(manifest_path, manifest.hash).get(split, num_clips) - num_clips


def num_videos(manifest_path: str, split: str) -> int:
    """Of a split."""
    return len(split_rows(manifest_path, split)[Kind.VIDEO])


def card_folder(run_folder: str, protocol: Protocol, own: Protocol) -> str:
    """Where the card of a score lies, unless somebody wants it elsewhere: a folder per protocol.

    `own`: how the run measures itself, which needs no more than task and split in its name.
    """
    name = f"{protocol.task}-{protocol.split}"
    if protocol != own:
        name += f"-{hash_of_ids(sorted(as_dict(protocol).items()))[:6]}"
    return f"{run_folder}/evaluation/{name}"


def read_cards(run_folder: str) -> dict[str, Card]:
    """Those of the scores of a run by the folder that each lies in, or of a model that jobs/export.py wrote by the name
    that each has there."""
    names: dict[str, str] = {}
    for path in sorted(storage.list_files(run_folder)):
        if path.endswith("/card.json"):
            names[path.split("/")[-2]] = path
        elif path.startswith(f"{EXPORTED}/"):
            names[path.removeprefix(f"{EXPORTED}/").removesuffix(".json")] = path
    return {name: read_card(f"{run_folder}/{path}") for name, path in names.items()}


def hash_of_questions(protocol: Protocol) -> str:
    """32 hex digits of the file of questions; empty where none are asked."""
    return checksum(storage.read_bytes(protocol.questions)) if protocol.questions else ""


def hash_of_ids(ids: Iterable[Any]) -> str:
    """32 hex digits of ids in their order."""
    return checksum(json.dumps(list(ids), ensure_ascii=False).encode())


def write_card(card: Card, path: str) -> None:
    """The card as JSON."""
    run_files.write_json(path, as_dict(card))


def read_card(path: str) -> Card:
    """The card in a file. ValueError that names what is wrong with it."""
    storage.check_readable(path)
    try:
        return TypeAdapter(Card).validate_python(run_files.read_json(path))
    except (ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is no protocol card: {where} {first['msg']}") from error


def refuse_other(card: Card, found: Mapping[str, str]) -> None:
    """ValueError that names what of `found` (weights, manifest_hash, questions_hash, ids_hash) is not the card's."""
    wanted = {name: getattr(card, name) or found[name] for name in found}  # older cards lack the hash of questions
    if wrong := [
        f"{name} is {found[name]}, the card has {wanted[name]}" for name in found if found[name] != wanted[name]
    ]:
        raise ValueError(
            f"the card of {card.protocol.run} cannot be repeated: {'; '.join(wrong)}; its score is that of others"
        )


def not_repeated(card: Card, scores: Mapping[str, float]) -> list[str]:
    """A line per score that is not the card's: equal on the same hardware, inside its interval elsewhere."""
    lines = []
    for name, wanted in card.scores.items():
        if name.endswith(("_low", "_high")):
            continue
        value = scores.get(name, float("nan"))
        if value == wanted:
            continue
        low, high = card.scores.get(f"{name}_low"), card.scores.get(f"{name}_high")
        if low is None or high is None:
            place = "which has no interval"
        else:
            place = f"{'inside' if low <= value <= high else 'outside'} [{low:.4f}, {high:.4f}]"
        lines.append(f"{name}: was {wanted:.4f}, is {value:.4f}, {place}")
    return lines
