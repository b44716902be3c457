"""A corpus on one HTML page that opens offline.

`corpus_page` is pure: the caller writes the file.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8

from jobs.reports import figures
from jobs.reports.figures import FilmRoll
from jobs.reports.page import bars, most_frequent_first, template
from jobs.tasks.examples import evenly
from pipeline import storage
from pipeline.corpus import ledger
from pipeline.corpus.fetching import fetch
from pipeline.corpus.manifest import Manifest, read_manifest
from pipeline.decode import decoders
from pipeline.decode.codec import decode_frames, known_info
from pipeline.decode.config import Limits
from pipeline.decode.decoders import DecoderName
from pipeline.decode.isolation import isolated
from pipeline.records import DecodeError, Kind, Reason
from pipeline.text.significance import SignificantWords
from pipeline.text.tagging import split_words

log = logging.getLogger(__name__)

NUM_SHOWN = 8
"""Clips shown of each split, evenly spaced by clip_id, so that nobody picks the pretty ones."""
NUM_PAIRS_SHOWN = 6
NUM_WORDS_SHOWN = 24
NUM_SIZES_SHOWN = 8
FILM_SIZE_PX = 96


@dataclass(frozen=True, kw_only=True)
class CorpusReportConfig:
    """What the page shows, and where it is written."""

    manifest: str
    """Manifest of the corpus: a file or a folder of parts, local or in a bucket."""
    out: str
    """The page: a local path or s3://bucket/key, ending in .html."""
    ledgers: tuple[str, ...] = ()
    """Ledgers of rejected samples, as jobs/prepare.py and jobs/deduplicate.py write them."""
    pairs: str | None = None
    """pairs.parquet of jobs/deduplicate.py."""
    words: str | None = None
    """Table of significant words, a local JSON file such as a run's folder holds."""
    decoder: DecoderName = decoders.AUTO
    """Decoder of the clips that are shown."""

    def __post_init__(self) -> None:
        decoders.load(self.decoder)
        if not self.out.endswith(".html"):
            raise ValueError(f"out must be the path of a page and end in .html, got {self.out}")


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """A clip in pictures."""

    caption: str
    frames: UInt8[np.ndarray, "T h w 3"]


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """Two clips that are copies of each other."""

    kind: str
    similarity: float
    clips: tuple[ShownClip, ShownClip]


@dataclass(frozen=True, kw_only=True)
class CorpusData:
    """Everything the page shows."""

    corpus: Manifest
    shown: Mapping[str, Sequence[ShownClip]] = field(default_factory=dict)
    """By split."""
    ledger: Mapping[Reason, int] | None = None
    """Rejected samples by reason; None: no ledger was given."""
    num_pairs: Mapping[str, int] | None = None
    """Pairs of copies by kind; None: nobody looked for them."""
    pairs: Sequence[ShownPair] = ()
    words: SignificantWords | None = None


def corpus_page(data: CorpusData) -> str:
    """Return the page. Every text is escaped, nothing on it is fetched from elsewhere, no script runs."""
    films = FilmRoll()
    table = data.corpus.table
    ledger = None if data.ledger is None else {str(reason): count for reason, count in data.ledger.items()}

    def film(clip: ShownClip, split: str = "") -> dict[str, str]:
        return {"film": films.add("clip", len(films.clips), clip.frames), "split": split, "caption": clip.caption}

    views = {
        "totals": totals(table),
        "shown": [film(clip, split) for split, clips in data.shown.items() for clip in clips],
        "pairs": [(pair, [film(clip) for clip in pair.clips]) for pair in data.pairs],
        "charts": charts(table),
        "sizes": bars(common_sizes(table)),
        "ledger": None if ledger is None else bars(most_frequent_first(ledger)),
        "num_pairs": None if data.num_pairs is None else bars(most_frequent_first(data.num_pairs)),
        "words": [] if data.words is None else bars(most_significant(data.words)),
    }
    return template("corpus_report.html").render(corpus=data.corpus, films=films.rules(), **views)


def clip_seconds(table: pa.Table) -> Float[np.ndarray, " N"]:
    """Return the length of each video clip: between its times where it has some, otherwise of its file."""
    rows = table.select(["start_seconds", "end_seconds", "duration_seconds"]).to_pylist()
    ends = [row["end_seconds"] if row["end_seconds"] is not None else row["duration_seconds"] for row in rows]
    lengths = [end - (row["start_seconds"] or 0.0) for row, end in zip(rows, ends, strict=True) if end is not None]
    return np.array(lengths, dtype=float)


def caption_lengths(table: pa.Table) -> Float[np.ndarray, " M"]:
    """Return the number of words of each caption."""
    return np.array([len(words) for words in _caption_words(table)], dtype=float)


def word_counts(table: pa.Table) -> Counter[str]:
    """Count how often each word, in lower case, occurs in the captions."""
    return Counter(word.lower() for words in _caption_words(table) for word in words)


def _caption_words(table: pa.Table) -> list[list[str]]:
    captions = [caption for captions in table["captions"].to_pylist() for caption in captions]
    return [[word for word in split_words(caption) if word[0].isalnum()] for caption in captions]


def totals(table: pa.Table) -> dict[str, str]:
    """Return the corpus in a few figures."""
    kinds = Counter(table["kind"].to_pylist())
    sizes = dict(zip(table["uri"].to_pylist(), table["bytes"].to_pylist(), strict=True))
    return {
        "videos": f"{kinds[Kind.VIDEO]:,}",
        "images": f"{kinds[Kind.IMAGE]:,}",
        "hours of video": f"{clip_seconds(table).sum() / 3600:,.2f}",
        "files": f"{len(sizes):,}",
        "GB": f"{sum(sizes.values()) / 1e9:,.3f}",
        "captions": f"{len(caption_lengths(table)):,}",
        "different words": f"{len(word_counts(table)):,}",
    }


def charts(table: pa.Table) -> list[dict[str, Any]]:
    """Return a chart per property of the clips, with its median; properties that no clip has are left out."""
    values = {
        "Length of videos": (clip_seconds(table), "seconds"),
        "Short side": (np.minimum(table["width"].to_numpy(), table["height"].to_numpy()), "pixels"),
        "Frame rate of videos": (table["fps"].drop_null().to_numpy(), "frames per second"),
        "Size of files": (table["bytes"].to_numpy() / 1e6, "MB"),
        "Captions per clip": (np.array([len(captions) for captions in table["captions"].to_pylist()]), "captions"),
        "Length of captions": (caption_lengths(table), "words"),
    }
    views = []
    for title, (numbers, unit) in values.items():
        if len(numbers):
            svg, note = figures.histogram(numbers.astype(float), unit), f"median {np.median(numbers):,.4g} {unit}"
            views.append({"title": title, "svg": svg, "note": note})
    if ranked := word_counts(table).most_common():
        ranks = np.unique(np.geomspace(1, len(ranked), figures.MAX_POINTS).round().astype(int)).tolist()
        line = [(rank, ranked[rank - 1][1]) for rank in ranks]
        svg = figures.line_chart([line], x_label="rank of the word", is_log=True)
        note = f"“{ranked[0][0]}” {ranked[0][1]:,} times"
        views.append({"title": "How often words occur", "svg": svg, "note": note})
    return views


def common_sizes(table: pa.Table) -> dict[str, int]:
    """Count the most common widths and heights; the rest as one entry."""
    counts = Counter(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True))
    common = {f"{width} × {height}": count for (width, height), count in counts.most_common(NUM_SIZES_SHOWN)}
    return common | {f"{len(counts) - len(common)} others": len(table) - sum(common.values())}


def most_significant(words: SignificantWords) -> dict[str, int]:
    """Return the first significant words with their counts."""
    best = words.significant_ids(NUM_WORDS_SHOWN - 1)[:NUM_WORDS_SHOWN].tolist()
    return {words.words[word_id]: int(words.total_counts[word_id]) for word_id in best}


def read_corpus(config: CorpusReportConfig) -> CorpusData:
    """Read what the page shows from manifest, ledgers, pairs and files."""
    corpus = read_manifest(config.manifest)
    rows = {row["clip_id"]: row for row in corpus.table.to_pylist()}
    shown = {}
    for split in corpus.splits:
        ids = evenly(corpus.split(split)["clip_id"].to_numpy(), NUM_SHOWN)
        shown[split] = _shown_clips([rows[clip_id] for clip_id in ids], config.decoder)
    rejected = [sample for path in config.ledgers for sample in ledger.read_ledger(path)]
    pairs = None if config.pairs is None else storage.read_table(config.pairs).to_pylist()
    return CorpusData(
        corpus=corpus,
        shown=shown,
        ledger=ledger.count_by_reason(rejected) if config.ledgers else None,
        num_pairs=None if pairs is None else Counter(pair["kind"] for pair in pairs),
        pairs=_shown_pairs(pairs or [], rows, config.decoder),
        words=None if config.words is None else SignificantWords.load(config.words),
    )


def _shown_pairs(pairs: Sequence[dict[str, Any]], rows: Mapping[int, dict[str, Any]], decoder: str) -> list[ShownPair]:
    """Decode pairs within the corpus, from the most to the least similar."""
    known = [pair for pair in pairs if pair["clip_id"] in rows and pair["other_clip_id"] in rows]
    known.sort(key=lambda pair: (-pair["similarity"], pair["clip_id"]))
    shown = []
    for pair in (known[place] for place in evenly(np.arange(len(known)), NUM_PAIRS_SHOWN)):
        match _shown_clips([rows[pair["clip_id"]], rows[pair["other_clip_id"]]], decoder):
            case [first, second]:
                shown.append(ShownPair(kind=pair["kind"], similarity=pair["similarity"], clips=(first, second)))
    return shown


def _shown_clips(rows: Sequence[dict[str, Any]], decoder: str) -> list[ShownClip]:
    """Decode the clips that can be read."""
    clips = []
    for row in rows:
        try:
            frames = isolated(
                decode_frames,
                fetch(row["uri"]),
                limits=Limits(),
                kind=Kind(row["kind"]),
                num_frames=figures.MAX_FRAMES,
                size_px=FILM_SIZE_PX,
                start_seconds=row["start_seconds"],
                end_seconds=row["end_seconds"],
                decoder=decoder,
                known=known_info(row) if row["kind"] == Kind.VIDEO else None,
            )
        except DecodeError as error:
            log.warning("%s cannot be shown: %s", row["uri"], error)
            continue
        clips.append(ShownClip(caption=row["captions"][0], frames=frames))
    return clips
