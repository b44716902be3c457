"""The report of a run: one HTML page that opens offline, with embedded pictures.

    ReportData ──views of each section──► report.html (jinja2, escaped) ──► str

It complements MLflow, which has the curves, with scores and their ceilings, examples with frames, predictions of masked
words, protocols, rejected samples. `render_report` is pure: the caller writes the file. A section without data says
what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup

from jobs.evaluation import cards
from jobs.evaluation.cards import Card
from jobs.reports.figures import FilmRoll
from jobs.reports.page import bars, most_frequent_first, template
from jobs.tasks.examples import shown_groups, shown_queries
from jobs.tasks.task import Examples
from pipeline import storage
from snps3_model import metrics

PROTOCOLS = ("<!-- protocols -->", "<!-- end of protocols -->")

SCORE_ROWS = (
    ("caption → clip", "fused", "test/t2v/"),
    ("caption → clip", "dual", "test/t2v/dual_"),
    ("caption → clip", "cross", "test/t2v/cross_"),
    ("clip → caption", "fused", "test/v2t/"),
    ("clip → caption", "dual", "test/v2t/dual_"),
    ("clip → caption", "cross", "test/v2t/cross_"),
    ("order in time", "cross", "temporal/t2v/group_"),
    ("order in time", "dual", "temporal/t2v/dual_group_"),
)
"""(direction of search, score, prefix of its keys in the results)."""


@dataclass(frozen=True, kw_only=True)
class MaskedCaption:
    """A caption with the model's predictions of its masked words, given the clip."""

    words: Sequence[str]
    """The true words."""
    guesses: Mapping[int, Sequence[tuple[str, float]]]
    """Place of a masked word → (word, probability), best first."""
    frames: UInt8[np.ndarray, "T h w 3"]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The input of the page. Fields that a run does not have stay empty."""

    name: str
    date: str
    hardware: str
    commit: str
    config_hash: str
    manifest_hash: str
    results: Mapping[str, float] = field(default_factory=dict)
    """Metrics under the flat keys of `snps3_model.metrics`, with prefixes `test` and `temporal`."""
    ceilings: Mapping[str, float] = field(default_factory=dict)
    """Scores of other models, in [0, 1], by prefix: `test/chance`, `test/single_frame`, `temporal/single_frame`, …"""
    test: Examples | None = None
    temporal: Examples | None = None
    masked_captions: Sequence[MaskedCaption] = ()
    num_clips: Mapping[str, int] = field(default_factory=dict)
    """Usable clips per split."""
    ledger: Mapping[str, int] = field(default_factory=dict)
    """Rejected samples by reason."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the parts of the run, which do not overlap: their sum is the total."""
    protocols: Sequence[Card] = ()
    """Protocol cards of the scores on test splits."""


def render_report(data: ReportData) -> str:
    """Return the page as HTML. All texts are escaped; the page loads no external resources and runs no scripts."""
    films = FilmRoll()
    sections = {
        "scores": score_rows(data.results),
        "ceilings": {name: ceilings(name, data) for name in ("test", "temporal")},
        "queries": query_views(data.test, films) if data.test else [],
        "groups": group_views(data.temporal, films) if data.temporal else [],
        "masked": masked_views(data.masked_captions, films),
        "ledger": bars(most_frequent_first(data.ledger)),
        "protocols": protocols_section(data.protocols),
    }
    return template("report.html").render(data=data, films=films.rules(), **sections)


def protocols_section(cards: Sequence[Card]) -> Markup:
    """Render the protocol cards between two HTML comments, by which `with_protocols` locates them."""
    start, end = PROTOCOLS
    return Markup(start + template("cards.html").render(cards=cards) + end)


def with_protocols(page: str, cards: Sequence[Card]) -> str:
    """Replace the cards of a page. Raise ValueError for a page of another version, without the comments.

    The page itself is edited because a run folder does not keep the thumbnails that it was rendered from.
    """
    start, end = PROTOCOLS
    before, _, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not found_end:
        raise ValueError("the report has no place for cards; it was written by another version")
    return before + str(protocols_section(cards)) + after


def refresh_protocols(run_folder: str) -> None:
    """Update the report of a run, if it exists, with all protocol cards of the run."""
    path = f"{run_folder}/report.html"
    if storage.exists(path):
        page = with_protocols(storage.read_bytes(path).decode(), list(cards.read_cards(run_folder).values()))
        storage.write_bytes_atomic(path, page.encode())


def score_rows(results: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return a row per search and score in the results: R@1, R@5, R@10 with intervals, and the median rank."""
    rows = []
    for search, score, start in SCORE_ROWS:
        keys = [f"{start}r{k}" for k in metrics.RECALL_RANKS]
        if keys[0] in results:
            cells = [[results.get(key + end) for end in ("", "_low", "_high")] for key in keys]
            rows.append(
                {"search": search, "score": score, "cells": cells, "median_rank": results.get(f"{start}median_rank")}
            )
    return rows


def ceilings(prefix: str, data: ReportData) -> dict[str, float]:
    """Return the scores of other models on this test, lowest first; compute chance if it is not given."""
    ranking = {"test": data.test, "temporal": data.temporal}[prefix]
    scores = {
        key.removeprefix(f"{prefix}/").replace("/", " ").replace("_", " "): value
        for key, value in data.ceilings.items()
        if key.startswith(f"{prefix}/")
    }
    if "chance" not in scores and ranking is not None:
        blind = np.zeros(ranking.relevant.shape)
        if ranking.groups is None:
            scores["chance"] = metrics.recall_at(1, blind, ranking.relevant)
        else:
            scores["chance"] = float(metrics.group_hits(blind, ranking.groups).mean())
    return dict(sorted(scores.items(), key=lambda score: (score[1], score[0])))


def query_views(test: Examples, films: FilmRoll) -> list[dict[str, Any]]:
    """Return five queries, evenly spaced from the best to the worst rank, with their top five clips."""
    return [
        {
            "caption": test.captions[query],
            "rank": rank,
            "hits": [hit(test, films, query, clip, place) for clip, place in clips],
        }
        for query, rank, clips in shown_queries(next(iter(test.scores.values())), test.relevant)
    ]


def hit(test: Examples, films: FilmRoll, query: int, clip: int, place: float) -> dict[str, Any]:
    """Return a result of a query: film, place and true caption of the clip."""
    owners = np.flatnonzero(test.relevant[:, clip])
    return {
        "film": films.add("test", clip, test.clips[clip]),
        "place": place,
        "right": bool(test.relevant[query, clip]),
        "caption": test.captions[int(owners[0])] if len(owners) else "",
    }


def group_views(temporal: Examples, films: FilmRoll) -> list[dict[str, Any]]:
    """Return temporal groups from the best to the worst: clips, captions and the scores of all pairs."""
    if temporal.groups is None:
        return []
    name, scores = next(iter(temporal.scores.items()))
    views = []
    for num_right, rows in shown_groups(scores, temporal.groups):
        table = scores[np.ix_(rows, rows)]
        spread = np.maximum(np.ptp(table, axis=1, keepdims=True), np.finfo(float).tiny)
        shades = (table - table.min(axis=1, keepdims=True)) / spread
        views.append(
            {
                "score": name,
                "num_right": num_right,
                "captions": [temporal.captions[int(row)] for row in rows],
                "films": [films.add("temporal", int(row), temporal.clips[int(row)]) for row in rows],
                "cells": np.dstack([table, shades]).tolist(),
                "answers": table.argmax(axis=1).tolist(),
            }
        )
    return views


def masked_views(examples: Sequence[MaskedCaption], films: FilmRoll) -> list[dict[str, Any]]:
    """Return captions as words; masked words have their three best guesses."""
    views = []
    for index, example in enumerate(examples):
        pieces = [
            {"word": word, "guesses": example.guesses.get(place, ())[:3]} for place, word in enumerate(example.words)
        ]
        views.append({"film": films.add("masked", index, example.frames), "pieces": pieces})
    return views
