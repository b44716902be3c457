"""A corpus on one HTML page that opens offline: sizes, lengths, words, rejected samples, copies, and some of its clips.

python -m jobs.corpus_report --manifest M --out PAGE.html [--ledgers L …] [--pairs P] [--words W]

A section without data says what was missing. `corpus_page` is pure: the caller writes the file.
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
from markupsafe import Markup

from jobs.reports import figures
from jobs.reports.run_report import FilmRoll, evenly, ledger_rows, template
from pipeline import storage
from pipeline.corpus import ledger
from pipeline.corpus.manifest import Manifest, read_manifest
from pipeline.decode import decoders
from pipeline.decode.codec import decode_clip, known_info
from pipeline.decode.decoders import DecoderName
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
    """What the page is about, and where it goes."""

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
    """Two clips that show the same."""

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
    """Pairs that show the same by kind; None: nobody looked for them."""
    pairs: Sequence[ShownPair] = ()
    words: SignificantWords | None = None


def corpus_page(data: CorpusData) -> str:
    """The page. Every text is escaped, nothing on it is fetched from elsewhere, no script runs."""
    films = FilmRoll()
    table = data.corpus.table
    views = {
        "totals": totals(table),
        "shown": [film_view(films, split, clip) for split, clips in data.shown.items() for clip in clips],
        "pairs": [pair_view(films, pair) for pair in data.pairs],
        "charts": charts(table),
        "sizes": common_sizes(table),
        "ledger": None if data.ledger is None else ledger_rows({str(k): v for k, v in data.ledger.items()}),
        "num_pairs": None if data.num_pairs is None else ledger_rows(data.num_pairs),
        "words": [] if data.words is None else word_rows(data.words),
    }
    return template("corpus_report.html").render(corpus=data.corpus, films=films.rules(), **views)


def clip_seconds(table: pa.Table) -> Float[np.ndarray, " N"]:
    """Length of each video clip, between its times where it has some."""
    rows = table.select(["start_seconds", "end_seconds", "duration_seconds"]).to_pylist()
    ends = [row["end_seconds"] if row["end_seconds"] is not None else row["duration_seconds"] for row in rows]
    lengths = [end - (row["start_seconds"] or 0.0) for row, end in zip(rows, ends, strict=True) if end is not None]
    return np.array(lengths, dtype=float)


def caption_lengths(table: pa.Table) -> Float[np.ndarray, " M"]:
    """Words of each caption."""
    return np.array([len(words) for words in _caption_words(table)], dtype=float)


def word_counts(table: pa.Table) -> Counter[str]:
    """Word in lower case → how often it occurs in the captions."""
    return Counter(word.lower() for words in _caption_words(table) for word in words)


def _caption_words(table: pa.Table) -> list[list[str]]:
    captions = [caption for captions in table["captions"].to_pylist() for caption in captions]
    return [[word for word in split_words(caption) if word[0].isalnum()] for caption in captions]


def totals(table: pa.Table) -> dict[str, str]:
    """The corpus in a few figures."""
    kinds = Counter(table["kind"].to_pylist())
    sizes = dict(zip(table["uri"].to_pylist(), table["bytes"].to_pylist(), strict=True))
    lengths = caption_lengths(table)
    return {
        "videos": f"{kinds[Kind.VIDEO]:,}",
        "images": f"{kinds[Kind.IMAGE]:,}",
        "hours of video": f"{clip_seconds(table).sum() / 3600:,.2f}",
        "files": f"{len(sizes):,}",
        "GB": f"{sum(sizes.values()) / 1e9:,.3f}",
        "captions": f"{len(lengths):,}",
        "different words": f"{len(word_counts(table)):,}",
    }


def charts(table: pa.Table) -> list[dict[str, Any]]:
    """A chart per property of the clips, with its median; properties that no clip has are left out."""
    values = {
        "Length of videos": (clip_seconds(table), "seconds"),
        "Short side": (np.minimum(table["width"].to_numpy(), table["height"].to_numpy()), "pixels"),
        "Frame rate of videos": (table["fps"].drop_null().to_numpy(), "frames per second"),
        "Size of files": (table["bytes"].to_numpy() / 1e6, "MB"),
        "Captions per clip": (np.array([len(one) for one in table["captions"].to_pylist()]), "captions"),
        "Length of captions": (caption_lengths(table), "words"),
    }
    views = []
    for title, (numbers, unit) in values.items():
        if len(numbers):
            svg = Markup(figures.histogram_chart(title, numbers.astype(float), unit))
            views.append({"title": title, "svg": svg, "note": f"median {np.median(numbers):,.4g} {unit}"})
    if counts := word_counts(table):
        svg = Markup(figures.ranks_chart("words", np.array(list(counts.values())), "rank of the word"))
        word, count = counts.most_common(1)[0]
        views.append({"title": "How often words occur", "svg": svg, "note": f"“{word}” {count:,} times"})
    return views


def common_sizes(table: pa.Table) -> list[dict[str, Any]]:
    """The most common widths and heights with their counts; the rest as one row."""
    counts = Counter(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True))
    rows = {f"{width} × {height}": count for (width, height), count in counts.most_common(NUM_SIZES_SHOWN)}
    if rest := len(table) - sum(rows.values()):
        rows[f"{len(counts) - len(rows)} others"] = rest
    return [{"name": name, "count": count, "length": count / max(rows.values())} for name, count in rows.items()]


def word_rows(words: SignificantWords) -> list[dict[str, Any]]:
    """The first significant words with their counts."""
    best = words.significant_ids(NUM_WORDS_SHOWN - 1)[:NUM_WORDS_SHOWN].tolist()
    most = max((int(words.total_counts[one]) for one in best), default=0)
    counts = {words.words[one]: int(words.total_counts[one]) for one in best}
    return [{"name": word, "count": count, "length": count / max(most, 1)} for word, count in counts.items()]


def film_view(films: FilmRoll, split: str, clip: ShownClip) -> dict[str, str]:
    """A clip's film, split and caption."""
    return {"film": films.add("clip", len(films.clips), clip.frames), "split": split, "caption": clip.caption}


def pair_view(films: FilmRoll, pair: ShownPair) -> dict[str, Any]:
    """Two clips' films, one above the other."""
    views = [film_view(films, "", clip) for clip in pair.clips]
    return {"kind": pair.kind, "similarity": pair.similarity, "clips": views}


def read_corpus(config: CorpusReportConfig) -> CorpusData:
    """What the page shows, read from manifest, ledgers, pairs and files."""
    corpus = read_manifest(config.manifest)
    rows = {row["clip_id"]: row for row in corpus.table.to_pylist()}
    shown = {}
    for split in corpus.splits:
        ids = corpus.split(split)["clip_id"].to_numpy()
        shown[split] = _shown_clips(
            [rows[ids[place]] for place in evenly(np.arange(len(ids)), NUM_SHOWN)], config.decoder
        )
    rejected = [one for path in config.ledgers for one in ledger.read_ledger(path)]
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
    """Pairs within the corpus, from the most to the least similar."""
    known = [pair for pair in pairs if pair["clip_id"] in rows and pair["other_clip_id"] in rows]
    known.sort(key=lambda pair: (-pair["similarity"], pair["clip_id"]))
    found = []
    for pair in (known[place] for place in evenly(np.arange(len(known)), NUM_PAIRS_SHOWN)):
        clips = _shown_clips([rows[pair["clip_id"]], rows[pair["other_clip_id"]]], decoder)
        if len(clips) == 2:
            found.append(ShownPair(kind=pair["kind"], similarity=pair["similarity"], clips=(clips[0], clips[1])))
    return found


def _shown_clips(rows: Sequence[dict[str, Any]], decoder: str) -> list[ShownClip]:
    """The clips that can be read."""
    clips = []
    for row in rows:
        try:
            clip = decode_clip(
                storage.read_bytes(row["uri"]),
                kind=Kind(row["kind"]),
                num_frames=figures.MAX_FRAMES,
                size_px=FILM_SIZE_PX,
                start_seconds=row["start_seconds"],
                end_seconds=row["end_seconds"],
                decoder=decoder,
                known=known_info(row) if row["kind"] == Kind.VIDEO else None,
            )
        except (DecodeError, FileNotFoundError):
            log.warning("%s cannot be shown", row["uri"])
            continue
        height, width = (~clip.pad_mask[0]).any(1).sum(), (~clip.pad_mask[0]).any(0).sum()
        clips.append(ShownClip(caption=row["captions"][0], frames=clip.frames[:, :height, :width]))
    return clips
