"""The report of a run: one HTML page that opens offline and holds its pictures.

    ReportData ──views of each section──► report.html (jinja2, escaped) ──► str

Pure: the caller writes the file. A section without data is left out, and a line says what was missing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from markupsafe import Markup

from jobs.evaluation import cards
from jobs.evaluation.cards import Card
from jobs.reports import figures
from pipeline import storage
from snps3_model import metrics
from snps3_model.loss_table import PAPER_ORDER

MAX_FILM_BYTES = 1_800_000
"""What all filmstrips together may weigh, so that the page stays below 3 MB."""
NUM_TOP = 5
NUM_QUERIES = 4
"""Right ones shown, and as many wrong ones."""
NUM_GROUPS = 3
NUM_MASKED_CAPTIONS = 9
FOUND_DEPTH = 50
PROTOCOLS = ("<!-- protocols -->", "<!-- end of protocols -->")

SCORES = {"fused": "", "dual": "dual_", "cross": "cross_"}
"""Name of a score -> how its keys in the results begin: `test/t2v/r1` is the fused one."""
LOSS_TITLES = {"total": "all losses together"} | {loss.name: loss.title for loss in PAPER_ORDER}
TIMING_TITLES = {
    "data_wait": "waiting for data",
    "step": "forward, backward, update",
    "collectives": "exchange between workers",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One test set and what each score says about every pair of caption and clip."""

    captions: Sequence[str]
    """Q captions, the queries."""
    clips: UInt8[np.ndarray, "C T h w 3"]
    """Thumbnails of the C candidates; 96 pixels of height are plenty."""
    relevant: Bool[np.ndarray, "Q C"]
    """True where a clip is a right answer."""
    scores: Mapping[str, Float[np.ndarray, "Q C"]]
    """`fused`, `dual`, `cross` or some of them; the first is the one that the pictures rank by."""
    groups: Int[np.ndarray, " Q"] | None = None
    """Temporal test: the group of each caption and of the clip with the same index."""

    def __post_init__(self) -> None:
        shape = (len(self.captions), len(self.clips))
        if not self.scores:
            raise ValueError("a ranking needs at least one score; leave the ranking out if there is none")
        for name, matrix in {"relevant": self.relevant, **self.scores}.items():
            if matrix.shape != shape:
                raise ValueError(f"{name} must be captions × clips = {shape}, got {matrix.shape}")


@dataclass(frozen=True, kw_only=True)
class Blank:
    """A masked word and what the model put there."""

    position: int
    """Index into the words of the caption."""
    guesses: Sequence[tuple[str, float]]
    """Words and their probabilities, best first."""


@dataclass(frozen=True, kw_only=True)
class MaskedCaption:
    """A caption whose `blanks` the model filled in while it saw the clip."""

    words: Sequence[str]
    """The words as they really are."""
    blanks: Sequence[Blank]
    frames: UInt8[np.ndarray, "T h w 3"]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything the page shows. What a run does not have stays empty."""

    name: str
    date: str
    hardware: str
    commit: str
    config_hash: str
    manifest_hash: str
    train_history: Sequence[figures.Row] = ()
    """Rows of `step`, `loss/…` and `clips_per_second`."""
    validation_history: Sequence[figures.Row] = ()
    """Rows of `step`, `loss/…` and shares such as `t2v/r1`, with or without a leading `validation/`."""
    results: Mapping[str, float] = field(default_factory=dict)
    """Flat keys as `snps3_model.metrics` makes them, prefixes `test` and `temporal`."""
    ceilings: Mapping[str, float] = field(default_factory=dict)
    """What others reach, in [0, 1], by prefix: `test/chance`, `test/single_frame`, `temporal/trained_on_one_frame`…"""
    test: Ranking | None = None
    temporal: Ranking | None = None
    masked_captions: Sequence[MaskedCaption] = ()
    num_clips: Mapping[str, int] = field(default_factory=dict)
    """Usable clips per split."""
    ledger: Mapping[str, int] = field(default_factory=dict)
    """Rejected samples by reason."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the parts of the run; they do not overlap, so their sum is the whole."""
    config: Mapping[str, Any] = field(default_factory=dict)
    protocols: Sequence[Card] = ()
    """Of the scores of test splits."""


def render_report(data: ReportData) -> str:
    """The page. Every text is escaped, nothing on the page is fetched from elsewhere, no script runs."""
    films = FilmRoll()
    sections = {
        "cards": score_cards(data),
        "queries": query_views(data.test, films) if data.test else [],
        "groups": group_views(data.temporal, films) if data.temporal else [],
        "masked": masked_views(data.masked_captions[:NUM_MASKED_CAPTIONS], films),
        "matrices": matrix_views(data.test) if data.test else [],
        "found": found_view(data.test) if data.test else None,
        "losses": loss_views(data.train_history, data.validation_history),
        "validation": validation_views(data.validation_history),
        "throughput": throughput_view(data.train_history),
        "spans": time_spans(data.timings),
        "table": table_rows(data.results),
        "ledger": ledger_rows(data.ledger),
        "protocols": protocols_section(data.protocols),
    }
    config = json.dumps(data.config, indent=2, default=str, ensure_ascii=False) if data.config else ""
    return template("report.html").render(data=data, films=films.rules(), config=config, **sections)


def protocols_section(cards: Sequence[Card]) -> Markup:
    """The scores of test splits with their protocols, between two comments by which `with_protocols` finds them."""
    start, end = PROTOCOLS
    return Markup(start + template("cards.html").render(cards=cards) + end)


def with_protocols(page: str, cards: Sequence[Card]) -> str:
    """A page with these cards in place of those that it has. ValueError for one that was written by another version."""
    start, end = PROTOCOLS
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError("the report has no place for cards; it was written by another version")
    return before + str(protocols_section(cards)) + after


def refresh_protocols(run_folder: str) -> None:
    """Show all protocol cards of a run on its report, if it has one."""
    path = f"{run_folder}/report.html"
    if storage.exists(path):
        page = with_protocols(storage.read_bytes(path).decode(), list(cards.read_cards(run_folder).values()))
        storage.write_bytes_atomic(path, page.encode())


@functools.cache
def template(name: str) -> jinja2.Template:
    """A page with its blanks. Everything put into it is escaped; a name it does not get is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, rank=rank_text, duration=duration)
    return environment.get_template(name)


def percent(share: float) -> str:
    """`0.534` as `53.4 %`."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def rank_text(rank: float) -> str:
    """A rank without needless decimals; ties make it fractional."""
    return f"{rank:.0f}" if rank == round(rank) else f"{rank:.1f}"


def duration(seconds: float) -> str:
    """`312.4` as `5 min 12 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


class FilmRoll:
    """The filmstrips of the page: each clip is held once, as a CSS class, however often it is shown."""

    def __init__(self) -> None:
        self.clips: dict[tuple[str, int], UInt8[np.ndarray, "T h w 3"]] = {}

    def add(self, source: str, index: int, frames: UInt8[np.ndarray, "T h w 3"]) -> str:
        """The CSS class that shows clip `index` of `source`."""
        self.clips.setdefault((source, index), frames)
        return f"film-{source}-{index}"

    def rules(self) -> Markup:
        """A CSS rule per clip: its picture, its number of frames and their shape. Holds no text of strangers."""
        uris = figures.filmstrips(self.clips.values(), max_bytes=MAX_FILM_BYTES)
        lines = []
        for ((source, index), frames), uri in zip(self.clips.items(), uris, strict=True):
            count, height, width = min(len(frames), figures.MAX_FRAMES), *frames.shape[1:3]
            lines.append(f".film-{source}-{index}{{--film:url({uri});--n:{count};--w:{width};--h:{height}}}")
        return Markup("\n".join(lines))


def score_cards(data: ReportData) -> list[dict[str, Any]]:
    """The headline figures that the results hold, each beside chance and what others reach."""
    headlines = [
        ("test/t2v/r1", "test", "Both scores together", "fused: the sum of the two standardised scores"),
        ("test/t2v/dual_r1", "test", "Dual score", "caption and clip are embedded apart, then compared"),
        ("test/t2v/cross_r1", "test", "Cross score", "caption and clip go through the network together"),
        ("temporal/t2v/group_r1", "temporal", "Order in time", "four clips that differ only in action or order"),
    ]
    rankings = {"test": data.test, "temporal": data.temporal}
    cards = []
    for key, prefix, title, note in headlines:
        if key in data.results:
            bounds = [data.results.get(f"{key}_{end}") for end in ("low", "high")]
            marks = others(prefix, data, rankings[prefix])
            cards.append({"title": title, "note": note, "value": data.results[key], "bounds": bounds, "marks": marks})
    return cards


def others(prefix: str, data: ReportData, ranking: Ranking | None) -> dict[str, float]:
    """What chance and other scorers reach on this test, lowest first; chance is computed where it is not given."""
    ceilings = dict(data.ceilings)
    if f"{prefix}/t2v/dual_group_r1" in data.results:
        ceilings[f"{prefix}/dual score of this model"] = data.results[f"{prefix}/t2v/dual_group_r1"]
    marks = {
        key.removeprefix(f"{prefix}/").replace("/", " ").replace("_", " "): value
        for key, value in ceilings.items()
        if key.startswith(f"{prefix}/")
    }
    if "chance" not in marks and ranking is not None:
        blind = np.zeros(ranking.relevant.shape)
        if ranking.groups is None:
            marks["chance"] = metrics.recall_at(1, blind, ranking.relevant)
        else:
            marks["chance"] = metrics.group_recall(blind, ranking.groups).value
    return dict(sorted(marks.items(), key=lambda mark: (mark[1], mark[0])))


def evenly(indices: Int[np.ndarray, " N"], count: int) -> list[int]:
    """At most `count` of `indices`, evenly spaced from the first to the last."""
    if len(indices) == 0:
        return []
    places = np.unique(np.linspace(0, len(indices) - 1, count).round().astype(int))
    return [int(indices[place]) for place in places]


def query_views(test: Ranking, films: FilmRoll) -> list[dict[str, Any]]:
    """Queries with their top five clips: right ones spread over the test set, wrong ones from near misses to the worst.

    The choice is a rule, so that nobody picks the pretty ones.
    """
    scores = next(iter(test.scores.values()))
    ranks = metrics.ranks(metrics.placements(scores, test.relevant))
    order = np.argsort(-scores, axis=1, kind="stable")
    is_right = test.relevant[np.arange(len(order)), order[:, 0]]
    wrong = np.flatnonzero(~is_right)
    wrong = wrong[np.argsort(ranks[wrong], kind="stable")]
    chosen = evenly(np.flatnonzero(is_right), NUM_QUERIES) + evenly(wrong, NUM_QUERIES)
    views = []
    for query in chosen:
        top = [int(clip) for clip in order[query, :NUM_TOP]]
        hits = [hit(test, films, query, clip, place) for place, clip in enumerate(top, start=1)]
        if not test.relevant[query, top].any():
            right = next(int(clip) for clip in order[query] if test.relevant[query, clip])
            hits.append(hit(test, films, query, right, ranks[query]))
        views.append({"caption": test.captions[query], "rank": ranks[query], "right": is_right[query], "hits": hits})
    return views


def hit(test: Ranking, films: FilmRoll, query: int, clip: int, place: float) -> dict[str, Any]:
    """One clip in the answer to a query: its film, its place and the caption it really has."""
    own = np.flatnonzero(test.relevant[:, clip])
    return {
        "film": films.add("test", clip, test.clips[clip]),
        "place": place,
        "right": bool(test.relevant[query, clip]),
        "caption": test.captions[int(own[0])] if len(own) else "",
    }


def group_views(temporal: Ranking, films: FilmRoll) -> list[dict[str, Any]]:
    """Temporal groups from the best to the worst answered: clips, captions and the score of every pair inside."""
    if temporal.groups is None:
        return []
    name, scores = next(iter(temporal.scores.items()))
    members = [np.flatnonzero(temporal.groups == group) for group in np.unique(temporal.groups)]
    num_right = [(scores[np.ix_(rows, rows)].argmax(axis=1) == np.arange(len(rows))).sum() for rows in members]
    best_first = np.argsort(-np.asarray(num_right), kind="stable")
    views = []
    for group in evenly(best_first, NUM_GROUPS):
        rows = members[group]
        table = scores[np.ix_(rows, rows)]
        spread = np.maximum(np.ptp(table, axis=1, keepdims=True), np.finfo(float).tiny)
        shades = (table - table.min(axis=1, keepdims=True)) / spread
        views.append(
            {
                "score": name,
                "num_right": int(num_right[group]),
                "captions": [temporal.captions[int(row)] for row in rows],
                "films": [films.add("temporal", int(row), temporal.clips[row]) for row in rows],
                "cells": np.dstack([table, shades]).tolist(),
                "answers": table.argmax(axis=1).tolist(),
            }
        )
    return views


def masked_views(examples: Sequence[MaskedCaption], films: FilmRoll) -> list[dict[str, Any]]:
    """Captions cut into plain words and blanks, each blank with its guesses."""
    views = []
    for index, example in enumerate(examples):
        blanks = {blank.position: blank for blank in example.blanks}
        pieces = []
        for position, word in enumerate(example.words):
            guesses = list(blanks[position].guesses)[:3] if position in blanks else []
            pieces.append({"word": word, "guesses": guesses, "right": bool(guesses) and guesses[0][0] == word})
        views.append({"film": films.add("masked", index, example.frames), "pieces": pieces})
    return views


def matrix_views(test: Ranking) -> list[dict[str, Any]]:
    """A heat map per score, captions sorted by their clip so that right pairs lie on the diagonal."""
    order = np.argsort(test.relevant.argmax(axis=1), kind="stable")
    return [{"name": name, "map": figures.heat_map(scores, list(order))} for name, scores in test.scores.items()]


def found_view(test: Ranking) -> Markup:
    """The chart of recall@k over k, for each score."""
    depth = min(FOUND_DEPTH, len(test.clips))
    recalls = {}
    for name, scores in test.scores.items():
        placed = metrics.placements(scores, test.relevant)
        recalls[name] = np.asarray([metrics.recalls_at(k, placed).mean() for k in range(1, depth + 1)])
    return Markup(figures.found_chart(recalls, len(test.clips)))


def loss_views(train: Sequence[figures.Row], validation: Sequence[figures.Row]) -> list[dict[str, Any]]:
    """A chart per loss in the order of `LOSS_TITLES`, losses of other names last, with its first and last value."""
    validation = [without_prefix(row) for row in validation]
    names = {key.removeprefix("loss/"): key for row in train for key in row if key.startswith("loss/")}
    order = [name for name in LOSS_TITLES if name in names] + sorted(set(names) - set(LOSS_TITLES))
    views = []
    for name in order:
        _, values = figures.series(train, names[name])
        if len(values):
            values = figures.smoothed(figures.thinned(values))
            svg = Markup(figures.history_chart(names[name], train, validation))
            title = LOSS_TITLES.get(name, name)
            views.append({"title": title, "svg": svg, "first": values[0], "last": values[-1]})
    return views


def without_prefix(row: figures.Row) -> dict[str, float]:
    """A row of the validation history under the names that the training history uses."""
    return {key.removeprefix("validation/"): value for key, value in row.items()}


def validation_views(validation: Sequence[figures.Row]) -> list[dict[str, Any]]:
    """A chart of the recalls per direction and score, over steps."""
    rows = [without_prefix(row) for row in validation]
    views = []
    for direction, title in (("t2v", "caption → clip"), ("v2t", "clip → caption")):
        for score, begin in SCORES.items():
            labels = {f"{direction}/{begin}r{k}": f"R@{k}" for k in metrics.RECALL_RANKS}
            labels = {key: label for key, label in labels.items() if any(key in row for row in rows)}
            if labels:
                svg = Markup(figures.shares_chart(f"{direction} {score}", rows, labels))
                key = next(iter(labels))
                views.append({"title": f"{title}, {score}", "svg": svg, "last": figures.series(rows, key)[1][-1]})
    return views


def throughput_view(train: Sequence[figures.Row]) -> dict[str, Any] | None:
    """The chart of clips per second over steps, and their median."""
    _, values = figures.series(train, "clips_per_second")
    if not len(values):
        return None
    return {
        "svg": Markup(figures.history_chart("clips_per_second", train, (), width=11.0)),
        "median": float(np.median(values)),
    }


def time_spans(timings: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parts of the run's time, in the order given, with their shares."""
    total = sum(timings.values())
    if total <= 0:
        return []
    names = {key: key.removesuffix("_seconds") for key in timings}
    return [
        {"title": TIMING_TITLES.get(names[key], names[key].replace("_", " ")), "seconds": value, "share": value / total}
        for key, value in timings.items()
    ]


def table_rows(results: Mapping[str, float]) -> list[dict[str, Any]]:
    """The retrieval metrics of the test split: a row per direction and score, the best of each column marked."""
    rows = []
    for direction, title in (("t2v", "caption → clip"), ("v2t", "clip → caption")):
        found = [(score, f"test/{direction}/{begin}") for score, begin in SCORES.items()]
        found = [(score, begin) for score, begin in found if f"{begin}r1" in results]
        for score, begin in found:
            cells = []
            for k in metrics.RECALL_RANKS:
                key = f"{begin}r{k}"
                value = results.get(key)
                best = max((results.get(f"{other}r{k}", 0.0) for _, other in found), default=0.0)
                bounds = [results.get(f"{key}_{end}") for end in ("low", "high")]
                cells.append({"value": value, "bounds": bounds, "best": value == best})
            rows.append(
                {"direction": title, "score": score, "cells": cells, "median_rank": results.get(f"{begin}median_rank")}
            )
    return rows


def ledger_rows(ledger: Mapping[str, int]) -> list[dict[str, Any]]:
    """Reasons with their counts, most frequent first, and the length of their bar in [0, 1]."""
    most = max(ledger.values(), default=0)
    ordered = sorted(ledger.items(), key=lambda entry: (-entry[1], entry[0]))
    return [{"reason": reason, "count": count, "length": count / most} for reason, count in ordered if count]
