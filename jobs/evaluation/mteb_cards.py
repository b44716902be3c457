"""The protocol card of a score that `mteb` computed: `snps3 evaluate RUN --mteb TASK`.

Such a score stands in a table of its own, since the clips of a task of mteb need not be those of published scores: its
MSR-VTT has 879 of the 1,000 test clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.evaluation.cards import read_as
from jobs.run import run_files
from jobs.run.datasets import published_test_set
from jobs.run.fields import as_dict
from pipeline import storage
from pipeline.foreign_text import in_markdown

COLUMNS = {"R@1": "recall_at_1", "R@5": "recall_at_5", "R@10": "recall_at_10", "nDCG@10": "ndcg_at_10"}
"""Column title → score."""
PREFIX = "mteb-"
"""First part of the name of a card's file, whose second is the task."""


@dataclass(frozen=True, kw_only=True)
class MtebCard:
    """Scores of a retrieval task of mteb, and what they depend on."""

    task: str
    direction: str
    """`t2v`: texts ask for videos; `v2t`: videos for texts."""
    split: str
    mteb: str
    """Version of mteb."""
    dataset: str
    """Name of the task's data set on the hub, or path of the manifest."""
    dataset_revision: str
    """Commit of the data set, or hash of the manifest."""
    run: str
    """Folder of the model."""
    weights: str
    """BLAKE2b of the weights' file."""
    run_seed: int
    num_frames: int
    frame_size_px: int
    num_queries: int
    num_videos: int
    num_texts: int
    num_trained_on: int | None
    """Scored clips that the run was trained on; None: not known, since mteb's clips have no checksums."""
    num_selected_on: int | None
    """Scored clips by which the checkpoint was selected; None: not known."""
    main_score: str
    """Name of the score that mteb ranks models by."""
    scores: Mapping[str, float]
    """By mteb's names, without intervals."""
    date: str
    hardware: str
    commit: str

    @property
    def caveats(self) -> list[str]:
        """Return why the scores are too optimistic, not checked to be otherwise, or of other clips than published
        ones."""
        test = published_test_set(self.dataset, "retrieval", 0)
        caveats = [test.caveat(self.num_videos, self.num_queries)] if test else []
        if self.num_trained_on is None:
            caveats.append("overlap with training clips not checked")
        if self.num_trained_on:
            caveats.append(f"trained on {self.num_trained_on} of these clips")
        if self.num_selected_on:
            caveats.append("chosen on the same clips")
        return [caveat for caveat in caveats if caveat]


def write_card(card: MtebCard, folder: str) -> str:
    """Write the card as JSON, with its caveats, and return the path."""
    path = f"{folder}/{PREFIX}{card.task}.json"
    run_files.write_json(path, as_dict(card) | {"caveats": card.caveats})
    return path


def read_cards(run_folder: str) -> list[MtebCard]:
    """Return the cards of mteb in a folder's `evaluation/`. ValueError for a file that is not a valid card."""
    names = (path.rpartition("/")[2] for path in storage.list_files(f"{run_folder}/evaluation"))
    return [
        read_card(f"{run_folder}/evaluation/{name}")
        for name in sorted(names)
        if name.startswith(PREFIX) and name.endswith(".json")
    ]


def read_card(path: str) -> MtebCard:
    """Return the card in a file. ValueError if the file is not a valid card."""
    return read_as(MtebCard, path, "card of mteb", "; write it anew with snps3 evaluate --mteb")


def title_of(card: MtebCard) -> str:
    """Return the heading of a card's table as Markdown."""
    return in_markdown(f"{card.task} of mteb, {card.num_videos:,} videos")


def rows(cards: list[tuple[str, MtebCard]]) -> list[str]:
    """Return the table of one task: a row per (name of the run, card)."""
    lines = ["| | " + " | ".join(COLUMNS) + " | protocol |", "|---" * (len(COLUMNS) + 2) + "|"]
    for run, card in cards:
        values = " | ".join(f"{100 * card.scores[name]:.1f}" for name in COLUMNS.values())
        lines.append(f"| **{in_markdown(run)}** | {values} | {describe_protocol(card)} |")
    return lines


def describe_protocol(card: MtebCard) -> str:
    """Return the parts of the protocol that decide whether scores are comparable, as Markdown."""
    parts = [
        f"{card.num_videos} videos, {card.num_queries} queries",
        f"{card.num_frames} frames",
        in_markdown(f"mteb {card.mteb}, {card.dataset} at {card.dataset_revision[:12]}"),
        *(f"**{caveat}**" for caveat in card.caveats),
        f"seed {card.run_seed}, {card.date}",
    ]
    return "; ".join(parts)


def table(card: MtebCard) -> str:
    """Return the card as text for the terminal."""
    lines = [
        f"{card.task} of mteb {card.mteb}: {card.dataset} at {card.dataset_revision}, split {card.split}",
        f"{card.num_videos} videos, {card.num_texts} texts, {card.num_queries} queries; {card.num_frames} frames of "
        f"{card.frame_size_px} px",
        *card.caveats,
    ]
    return "\n".join([*lines, *(f"  {name:36s} {value:8.3f}" for name, value in sorted(card.scores.items()))])
