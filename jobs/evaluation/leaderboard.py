"""The scores of runs beside published ones: `python jobs/table.py RUN [RUN …] [--out table.md]`.

Each protocol card in the runs' folders is a row below its test set. The name of a card's corpus determines its
published test set (`msrvtt`, `didemo`, `msvd`); other corpora have separate tables. Test sets without a card say "not
run".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import tyro

from jobs.evaluation.cards import Card, read_cards
from jobs.evaluation.published import published_scores
from jobs.run.datasets import TestSet, known_datasets, published_test_set
from pipeline import storage
from pipeline.corpus.manifest import open_manifest
from pipeline.foreign_text import in_markdown

COLUMNS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "retrieval": {"R@1": "test/t2v/r1", "R@5": "test/t2v/r5", "R@10": "test/t2v/r10"},
        "question_answering": {"accuracy": "test/accuracy"},
        "multiple_choice": {"accuracy": "test/accuracy"},
    }
)
"""Task → column title → score."""
DUAL_SOFTMAX = "dual_softmax_"
"""Name prefix of scores with a prior over all queries."""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Runs whose scores are shown."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of runs."""
    out: str | None = None
    """File to write; None prints it."""


def table(config: TableConfig) -> str:
    """Return all scores as Markdown, with a table per test set."""
    tests = {test.title: test for dataset in known_datasets() for test in dataset.tests}
    cards: dict[str, list[tuple[str, Card]]] = defaultdict(list)
    for run in config.runs:
        folder = storage.absolute(run)
        storage.check_readable(f"{folder}/config.json")
        for card in read_cards(folder).values():
            cards[title_of(card)].append((folder.rsplit("/", 1)[-1], card))
    parts = ["# Scores", "", "Ours with 95 % bootstrap intervals over queries; published ones are single runs without."]
    for title in [*(title for title in cards if title not in tests), *tests]:
        parts += ["", f"## {title}", "", *rows(tests.get(title), cards.get(title, []))]
    return "\n".join([*parts, ""])


def test_of(card: Card) -> TestSet | None:
    """Return the published test set of a card, by the name of its corpus; None if there is none.

    FileNotFoundError if its manifest does not exist.
    """
    manifest, protocol = open_manifest(card.protocol.manifest), card.protocol
    if protocol.split != "test":  # published scores are of test splits
        return None
    return published_test_set(manifest.corpus, protocol.task, manifest.splits.get("train", 0))


def caveat_of(card: Card) -> str:
    """Return why a score is not comparable with published ones of its test set; empty if it is."""
    try:
        test = test_of(card)
    except FileNotFoundError:
        return ""
    return test.caveat(card.num_videos, card.num_queries) if test else ""


def title_of(card: Card) -> str:
    """Return the heading of a card as Markdown: its test set, or its corpus, task and split."""
    protocol, task = card.protocol, card.protocol.task.replace("_", " ")
    try:
        test = test_of(card)
    except FileNotFoundError:  # the run was scored on another machine
        return in_markdown(f"{protocol.manifest}, which is not there: {task} on {protocol.split}")
    return test.title if test else in_markdown(f"{open_manifest(protocol.manifest).corpus}, {task} on {protocol.split}")


def rows(test: TestSet | None, cards: Sequence[tuple[str, Card]]) -> list[str]:
    """Return the table of a test set (None: an unpublished one), our cards first."""
    columns = COLUMNS[test.task if test else cards[0][1].protocol.task]
    lines = ["| | " + " | ".join(columns) + " | protocol |", "|---" * (len(columns) + 2) + "|"]
    for run, card in cards:
        caveat = test.caveat(card.num_videos, card.num_queries) if test else ""
        for prior in ("", DUAL_SOFTMAX) if card.protocol.prior != "none" else ("",):
            values = " | ".join(score(card, with_prior(key, prior)) for key in columns.values())
            title = f"**{in_markdown(run)}**" + (", **all queries as a prior** (dual softmax)" if prior else "")
            lines.append(f"| {title} | {values} | {describe_protocol(card)}{f'; **{caveat}**' if caveat else ''} |")
    if not cards:
        lines.append(f"| ours | {' | '.join(['not run'] * len(columns))} | |")
    for method, scores in published_scores(test).items() if test else ():
        lines.append(f"| {method} | {' | '.join(f'{value:.1f}' for value in scores)} | published |")
    return lines


def with_prior(key: str, prior: str) -> str:
    """Return the key of a score with the prefix `prior`."""
    place, _, name = key.rpartition("/")
    return f"{place}/{prior}{name}"


def score(card: Card, key: str) -> str:
    """Return a score in per cent, with its interval."""
    if not (ends := card.interval(key)):
        return "not run"
    return f"{100 * card.scores[key]:.1f} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def describe_protocol(card: Card) -> str:
    """Return the parts of the protocol that decide whether scores are comparable, in words."""
    protocol = card.protocol
    parts = [f"{card.num_videos} videos, {card.num_queries} queries", f"{protocol.num_frames} frames"]
    if protocol.task == "retrieval":
        asks = {"first": "the first caption", "each": "each caption", "paragraph": "a paragraph"}[protocol.queries]
        parts.append(f"{asks} of a clip asks, re-ranked {protocol.rerank or 'all'} by {protocol.fusion}")
    if protocol.is_video_hidden:
        parts.append("**no video was shown**")
    if card.num_missing or card.num_undecoded:
        parts.append(f"{card.num_missing} missing, {card.num_undecoded} not decoded")
    parts += [f"**{caveat}**" for caveat in card.caveats]
    return "; ".join([*parts, f"seed {card.run_seed}, {card.date}"])
