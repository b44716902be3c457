"""The scores of runs beside published ones: `python jobs/table.py RUN [RUN …] [--out table.md]`.

Every protocol card in the runs' folders is a row, under its benchmark. A card belongs to a benchmark if the name of its
corpus says so (`msrvtt`, `didemo`, `msvd`); others stand under their own. Benchmarks without a card say "not run".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.evaluation.cards import Card, read_cards
from jobs.evaluation.published import ACCURACY, PUBLISHED, RETRIEVAL, Benchmark
from pipeline import storage
from pipeline.corpus.manifest import read_manifest

KEYS = {"R@1": "test/t2v/r1", "R@5": "test/t2v/r5", "R@10": "test/t2v/r10", "accuracy": "test/accuracy"}
DUAL_SOFTMAX = "dual_softmax_"
"""Before the name of a score that has all queries as a prior."""
TRAIN_9K = 8000
"""MSR-VTT's larger training split has more clips than this."""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Whose scores."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of runs."""
    out: str | None = None
    """File to write; None prints it."""


def table(config: TableConfig) -> str:
    """All scores in Markdown."""
    cards: dict[str, list[tuple[str, Card]]] = defaultdict(list)
    for run in config.runs:
        folder = storage.absolute(run)
        storage.check_readable(f"{folder}/config.json")
        for card in read_cards(folder).values():
            cards[benchmark_of(card)].append((folder.rsplit("/", 1)[-1], card))
    parts = ["# Scores", "", "Ours with 95 % bootstrap intervals over queries; published ones are single runs without."]
    for name in [*(name for name in cards if name not in PUBLISHED), *PUBLISHED]:
        parts += ["", f"## {name}", "", *rows(name, cards.get(name, []))]
    return "\n".join([*parts, ""])


def benchmark_of(card: Card) -> str:
    """The benchmark that a card is of, or its corpus, task and split: published scores are of test splits."""
    protocol = card.protocol
    try:
        manifest = read_manifest(protocol.manifest)
    except FileNotFoundError:  # of a run that was scored elsewhere
        task = protocol.task.replace("_", " ")
        return f"{protocol.manifest}, which is not there: {task} on {protocol.split}"
    if protocol.split != "test":
        return f"{manifest.corpus}, {protocol.task.replace('_', ' ')} on {protocol.split}"
    corpus = manifest.corpus.lower().replace("-", "").replace("_", "")
    if protocol.task == "retrieval" and "msrvtt" in corpus:
        return f"MSR-VTT {'9K' if manifest.splits.get('train', 0) > TRAIN_9K else '7K'}, text to video"
    known = {
        ("didemo", "retrieval"): "DiDeMo, paragraph to video",
        ("msvd", "retrieval"): "MSVD, text to video",
        ("lsmdc", "retrieval"): "LSMDC, text to video",
        ("activitynet", "retrieval"): "ActivityNet, paragraph to video",
        ("vatex", "retrieval"): "VATEX, text to video",
        ("msrvtt", "question_answering"): "MSRVTT-QA",
        ("msvd", "question_answering"): "MSVD-QA",
        ("msrvtt", "multiple_choice"): "MSRVTT-MC",
    }
    found = [name for (part, task), name in known.items() if part in corpus and task == protocol.task]
    return found[0] if found else f"{manifest.corpus}, {protocol.task.replace('_', ' ')} on {protocol.split}"


def rows(name: str, cards: Sequence[tuple[str, Card]]) -> list[str]:
    """The table of a benchmark: ours first."""
    is_retrieval = cards[0][1].protocol.task == "retrieval" if cards else False
    benchmark = PUBLISHED.get(name, Benchmark(columns=RETRIEVAL if is_retrieval else ACCURACY, rows=(), sizes=()))
    lines = ["| | " + " | ".join(benchmark.columns) + " | protocol |", "|---" * (len(benchmark.columns) + 2) + "|"]
    for run, card in cards:
        doubt = benchmark.doubt(card.num_videos, card.num_queries)
        for prior in ("", DUAL_SOFTMAX) if card.protocol.prior != "none" else ("",):
            values = " | ".join(score(card, with_prior(KEYS[column], prior)) for column in benchmark.columns)
            title = f"**{run}**" + (", **all queries as a prior** (dual softmax)" if prior else "")
            lines.append(f"| {title} | {values} | {how(card)}{f'; **{doubt}**' if doubt else ''} |")
    if not cards:
        lines.append(f"| ours | {' | '.join(['not run'] * len(benchmark.columns))} | |")
    for who, published in benchmark.rows:
        lines.append(f"| {who} | {' | '.join(f'{value:.1f}' for value in published)} | published |")
    return lines


def with_prior(key: str, prior: str) -> str:
    """The key of the same score with a prior."""
    place, _, name = key.rpartition("/")
    return f"{place}/{prior}{name}"


def score(card: Card, key: str) -> str:
    """A score in per cent, with its interval."""
    if key not in card.scores:
        return "not run"
    low, high = card.scores[f"{key}_low"], card.scores[f"{key}_high"]
    return f"{100 * card.scores[key]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def how(card: Card) -> str:
    """What must be known to compare a score."""
    protocol = card.protocol
    parts = [f"{card.num_videos} videos, {card.num_queries} queries", f"{protocol.num_frames} frames"]
    if protocol.task == "retrieval":
        asks = {"first": "the first caption", "each": "each caption", "paragraph": "a paragraph"}[protocol.queries]
        parts.append(f"{asks} of a clip asks, re-ranked {protocol.rerank or 'all'} by {protocol.fusion}")
    if protocol.is_video_hidden:
        parts.append("**no video was shown**")
    if card.num_missing or card.num_undecoded:
        parts.append(f"{card.num_missing} missing, {card.num_undecoded} not decoded")
    parts += [f"**{doubt}**" for doubt in card.doubts]
    return "; ".join([*parts, f"seed {card.run_seed}, {card.date}"])
