"""The report of a corpus: one HTML page that opens offline.

`corpus_page` is pure: the caller writes the file. Clips are read in batches.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute creates its functions at import, where a type checker cannot see them

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int32, Int64, UInt8

from jobs.reports import figures
from jobs.reports.figures import FilmRoll
from jobs.reports.page import bars, most_frequent_first, template
from jobs.tasks.examples import evenly
from pipeline import storage
from pipeline.corpus import ledger
from pipeline.corpus.fetching import fetch
from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import open_manifest
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
"""Clips shown of each split, evenly spaced by clip_id against cherry-picking."""
NUM_PAIRS_SHOWN = 6
NUM_WORDS_SHOWN = 24
NUM_SIZES_SHOWN = 8
FILM_SIZE_PX = 96
FILES_AT_ONCE = 2**20


@dataclass(frozen=True, kw_only=True)
class CorpusReportConfig:
    """Which corpus the page shows, and where it is written."""

    manifest: str
    """Manifest of the corpus: a file or a folder of parts, local or in a bucket."""
    out: str
    """The page: a local path or s3://bucket/key, ending in .html."""
    ledgers: tuple[str, ...] = ()
    """Ledgers of rejected samples, as jobs/prepare.py and jobs/deduplicate.py write them."""
    pairs: str | None = None
    """pairs.parquet of jobs/deduplicate.py."""
    words: str | None = None
    """Table of significant words, a local JSON file as in a run's folder."""
    decoder: DecoderName = decoders.AUTO
    """Decoder of the clips that are shown."""

    def __post_init__(self) -> None:
        decoders.load(self.decoder)
        if not self.out.endswith(".html"):
            raise ValueError(f"out must be the path of a page and end in .html, got {self.out}")


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """A clip on the page."""

    caption: str
    frames: UInt8[np.ndarray, "T h w 3"]


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """Two clips that are copies of each other."""

    kind: str
    similarity: float
    clips: tuple[ShownClip, ShownClip]


@dataclass(frozen=True, kw_only=True, eq=False)
class CorpusFigures:
    """Statistics of the `N` clips and `M` captions of a corpus: 40 bytes per clip, and the distinct words."""

    seconds: Float32[np.ndarray, " V"]
    """Length of each video clip: between its times if it has any, otherwise of its file."""
    short_side_px: Int32[np.ndarray, " N"]
    fps: Float32[np.ndarray, " V"]
    num_bytes: Int64[np.ndarray, " N"]
    """Size of the file of each clip."""
    files: Int64[np.ndarray, " N"]
    """Hash of the file of each clip."""
    captions_per_clip: Int32[np.ndarray, " N"]
    words_per_caption: Int32[np.ndarray, " M"]
    kinds: Counter[str]
    sizes: Counter[tuple[int, int]]
    """Clips by (width, height) in pixels."""
    words: Counter[str]
    """Occurrences of each lower-case word in the captions."""


@dataclass(frozen=True, kw_only=True)
class CorpusData:
    """The input of the page."""

    corpus: Listing
    figures: CorpusFigures
    shown: Mapping[str, Sequence[ShownClip]] = field(default_factory=dict)
    """Example clips by split."""
    ledger: Mapping[Reason, int] | None = None
    """Rejected samples by reason; None without a ledger."""
    num_pairs: Mapping[str, int] | None = None
    """Duplicate pairs by kind; None without a search for them."""
    pairs: Sequence[ShownPair] = ()
    words: SignificantWords | None = None


def corpus_page(data: CorpusData) -> str:
    """Return the page as HTML. All texts are escaped; the page loads no external resources and runs no scripts."""
    films = FilmRoll()
    ledger = None if data.ledger is None else {str(reason): count for reason, count in data.ledger.items()}

    def film(clip: ShownClip, split: str = "") -> dict[str, str]:
        return {"film": films.add("clip", len(films.clips), clip.frames), "split": split, "caption": clip.caption}

    views = {
        "totals": totals(data.figures),
        "shown": [film(clip, split) for split, clips in data.shown.items() for clip in clips],
        "pairs": [(pair, [film(clip) for clip in pair.clips]) for pair in data.pairs],
        "charts": charts(data.figures),
        "sizes": bars(common_sizes(data.figures.sizes)),
        "ledger": None if ledger is None else bars(most_frequent_first(ledger)),
        "num_pairs": None if data.num_pairs is None else bars(most_frequent_first(data.num_pairs)),
        "words": [] if data.words is None else bars(most_significant(data.words)),
    }
    return template("corpus_report.html").render(corpus=data.corpus, films=films.rules(), **views)


def figures_of(corpus: Listing) -> CorpusFigures:
    """Compute the statistics of a corpus, in batches."""
    columns: dict[str, tuple[np.dtype, bytearray]] = {}  # grow in place: concatenation would double the memory
    kinds, sizes, words = Counter[str](), Counter[tuple[int, int]](), Counter[str]()
    for rows in corpus.batches():
        captions = rows["captions"].combine_chunks()
        per_caption, counts = words_of(captions.flatten())
        words.update(counts)
        kinds.update(rows["kind"].to_pylist())
        sizes.update(zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True))
        for name, values in {
            "seconds": clip_seconds(rows),
            "short_side_px": np.minimum(rows["width"], rows["height"]),
            "fps": rows["fps"].drop_null().to_numpy().astype(np.float32),
            "num_bytes": rows["bytes"].to_numpy(),
            "files": np.array(list(map(hash, rows["uri"].to_pylist()))),
            "captions_per_clip": pc.list_value_length(captions).to_numpy(),
            "words_per_caption": per_caption,
        }.items():
            columns.setdefault(name, (values.dtype, bytearray()))[1].extend(values.tobytes())
    joined = {name: np.frombuffer(data, dtype) for name, (dtype, data) in columns.items()}
    return CorpusFigures(kinds=kinds, sizes=sizes, words=words, **joined)


def clip_seconds(rows: pa.Table) -> Float32[np.ndarray, " V"]:
    """Return the length of each video clip, in seconds: between its times if it has any, otherwise of its file."""
    ends = pc.coalesce(rows["end_seconds"], rows["duration_seconds"])
    lengths = pc.subtract(ends, pc.fill_null(rows["start_seconds"], 0.0))
    return lengths.drop_null().to_numpy().astype(np.float32)


def words_of(captions: pa.StringArray) -> tuple[Int32[np.ndarray, " M"], Counter[str]]:
    """Return the number of words of each caption, and the number of occurrences of each lower-case word.

    Each distinct string between blanks is split into words only once.
    """
    texts = pc.split_pattern(captions, " ")
    tokens = texts.flatten().dictionary_encode()
    split = [
        [word.lower() for word in split_words(text) if word[0].isalnum()] for text in tokens.dictionary.to_pylist()
    ]
    codes = tokens.indices.to_numpy()
    counts: Counter[str] = Counter()
    for words, count in zip(split, np.bincount(codes, minlength=len(split)).tolist(), strict=True):
        for word in words:
            counts[word] += count
    num_words = np.array(list(map(len, split)), np.int32)[codes]
    starts = np.cumsum(pc.list_value_length(texts).to_numpy())
    return np.diff(np.concatenate([[0], np.cumsum(num_words)])[np.concatenate([[0], starts])]).astype(np.int32), counts


def totals(figures: CorpusFigures) -> dict[str, str]:
    """Return the totals of the corpus, formatted, by title."""
    num_files, num_bytes = distinct_files(figures.files, figures.num_bytes)
    return {
        "videos": f"{figures.kinds[Kind.VIDEO]:,}",
        "images": f"{figures.kinds[Kind.IMAGE]:,}",
        "hours of video": f"{figures.seconds.sum(dtype=np.float64) / 3600:,.2f}",
        "files": f"{num_files:,}",
        "GB": f"{num_bytes / 1e9:,.3f}",
        "captions": f"{len(figures.words_per_caption):,}",
        "different words": f"{len(figures.words):,}",
    }


def distinct_files(files: Int64[np.ndarray, " N"], num_bytes: Int64[np.ndarray, " N"]) -> tuple[int, int]:
    """Return the number of distinct files and their total bytes. Takes 9 bytes of memory per clip."""
    order = np.argsort(files)
    count = total = 0
    for start in range(0, len(order), FILES_AT_ONCE):
        places = order[max(0, start - 1) : start + FILES_AT_ONCE]  # with the last place of the previous chunk
        firsts = places[1:][files[places[1:]] != files[places[:-1]]]
        firsts = firsts if start else np.concatenate([places[:1], firsts])
        count, total = count + len(firsts), total + int(num_bytes[firsts].sum())
    return count, total


def charts(corpus: CorpusFigures) -> list[dict[str, Any]]:
    """Return a chart per property of the clips, with its median; omit properties that no clip has."""
    values = {
        "Length of videos": (corpus.seconds, "seconds"),
        "Short side": (corpus.short_side_px, "pixels"),
        "Frame rate of videos": (corpus.fps, "frames per second"),
        "Size of files": (corpus.num_bytes / np.float32(1e6), "MB"),
        "Captions per clip": (corpus.captions_per_clip, "captions"),
        "Length of captions": (corpus.words_per_caption, "words"),
    }
    views = []
    for title, (numbers, unit) in values.items():
        if len(numbers):
            svg, note = figures.histogram(numbers.astype(np.float32), unit), f"median {np.median(numbers):,.4g} {unit}"
            views.append({"title": title, "svg": svg, "note": note})
    if ranked := corpus.words.most_common():
        ranks = np.unique(np.geomspace(1, len(ranked), figures.MAX_POINTS).round().astype(int)).tolist()
        line = [(rank, ranked[rank - 1][1]) for rank in ranks]
        svg = figures.line_chart([line], x_label="rank of the word", is_log=True)
        note = f"“{ranked[0][0]}” {ranked[0][1]:,} times"
        views.append({"title": "How often words occur", "svg": svg, "note": note})
    return views


def common_sizes(sizes: Counter[tuple[int, int]]) -> dict[str, int]:
    """Return the most common sizes with their counts, and the rest as one entry."""
    common = {f"{width} × {height}": count for (width, height), count in sizes.most_common(NUM_SIZES_SHOWN)}
    return common | {f"{len(sizes) - len(common)} others": sizes.total() - sum(common.values())}


def most_significant(words: SignificantWords) -> dict[str, int]:
    """Return the most significant words with their counts."""
    best = words.significant_ids(NUM_WORDS_SHOWN - 1)[:NUM_WORDS_SHOWN].tolist()
    return {words.words[word_id]: int(words.total_counts[word_id]) for word_id in best}


def read_corpus(config: CorpusReportConfig) -> CorpusData:
    """Read the data of the page from manifest, ledgers, pairs and files."""
    corpus = open_manifest(config.manifest)
    shown = {split: _shown_clips(evenly_from(corpus, split), config.decoder) for split in corpus.splits}
    rejected = [sample for path in config.ledgers for sample in ledger.read_ledger(path)]
    pairs = None if config.pairs is None else storage.read_table(config.pairs).to_pylist()
    return CorpusData(
        corpus=corpus,
        figures=figures_of(corpus),
        shown=shown,
        ledger=ledger.count_by_reason(rejected) if config.ledgers else None,
        num_pairs=None if pairs is None else Counter(pair["kind"] for pair in pairs),
        pairs=_shown_pairs(pairs, corpus, config.decoder) if pairs else [],
        words=None if config.words is None else SignificantWords.load(config.words),
    )


def evenly_from(corpus: Listing, split: str) -> list[dict[str, Any]]:
    """Return evenly spaced rows of a split, whose order is videos before images, each by clip_id."""
    places = np.array(evenly(np.arange(corpus.splits[split]), NUM_SHOWN))
    shown = []
    for kind in (Kind.VIDEO, Kind.IMAGE):
        rows = corpus.rows(split, kind)
        shown += rows.take(places[(places >= 0) & (places < len(rows))]).to_pylist()
        places = places - len(rows)
    return shown


def _shown_pairs(pairs: Sequence[dict[str, Any]], corpus: Listing, decoder: str) -> list[ShownPair]:
    """Decode some pairs within the corpus, evenly spaced from the most to the least similar."""
    clip_ids = pa.array({pair[name] for pair in pairs for name in ("clip_id", "other_clip_id")}, pa.int64())
    members = pa.concat_tables(rows.filter(pc.field("clip_id").isin(clip_ids)) for rows in corpus.batches())
    place_of = {clip_id: place for place, clip_id in enumerate(members["clip_id"].to_pylist())}
    known = [pair for pair in pairs if pair["clip_id"] in place_of and pair["other_clip_id"] in place_of]
    known.sort(key=lambda pair: (-pair["similarity"], pair["clip_id"]))
    shown = []
    for pair in (known[place] for place in evenly(np.arange(len(known)), NUM_PAIRS_SHOWN)):
        rows = members.take([place_of[pair["clip_id"]], place_of[pair["other_clip_id"]]]).to_pylist()
        match _shown_clips(rows, decoder):
            case [first, second]:
                shown.append(ShownPair(kind=pair["kind"], similarity=pair["similarity"], clips=(first, second)))
    return shown


def _shown_clips(rows: Sequence[dict[str, Any]], decoder: str) -> list[ShownClip]:
    """Decode clips; skip those that cannot be decoded, with a warning."""
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
