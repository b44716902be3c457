"""The protocol card: everything that a score depends on, beside the score. It lets anybody repeat it.

What must be the same for two scores to be comparable stands in `Protocol`; what came out, and where, in `Card`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs import run_files
from jobs.config import as_dict
from jobs.evaluation import Fusion
from pipeline import storage


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
    max_clips: int = 1000
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
    num_videos: int
    num_queries: int
    num_missing: int
    """Asked about clips that are not in the manifest."""
    num_undecoded: int
    """Clips that could not be decoded."""
    selected_on: str
    """The split by which the checkpoint was chosen, and by which metric."""
    is_selected_on_test: bool
    """The checkpoint was chosen on what it is scored on."""
    scores: Mapping[str, float]
    """With the ends of their bootstrap 95 % intervals as `_low` and `_high`."""
    date: str
    hardware: str
    commit: str


def hash_of(data: bytes) -> str:
    """32 hex digits of a file's content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_of_ids(ids: Iterable[Any]) -> str:
    """32 hex digits of ids in their order."""
    return hash_of(json.dumps(list(ids), ensure_ascii=False).encode())


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
    """ValueError that names what of `found` (weights, manifest_hash, ids_hash) is not the card's."""
    wrong = [f"{name} is {value}, the card has {getattr(card, name)}" for name, value in found.items()]
    wrong = [line for line, (name, value) in zip(wrong, found.items(), strict=True) if getattr(card, name) != value]
    if wrong:
        raise ValueError(
            f"the card of {card.protocol.run} cannot be repeated: {'; '.join(wrong)}; its score is that of others"
        )


def not_repeated(card: Card, scores: Mapping[str, float]) -> list[str]:
    """A line per score that is not the card's: equal on the same hardware, inside its interval elsewhere."""
    lines = []
    for name, wanted in card.scores.items():
        if name.endswith(("_low", "_high")):
            continue
        low, high = card.scores.get(f"{name}_low", wanted), card.scores.get(f"{name}_high", wanted)
        value = scores.get(name, float("nan"))
        if value != wanted:
            inside = "inside" if low <= value <= high else "outside"
            lines.append(f"{name}: was {wanted:.4f}, is {value:.4f}, {inside} [{low:.4f}, {high:.4f}]")
    return lines
