"""Search an index by a sentence: the dual encoder chooses the videos, the cross encoder, if any, ranks them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from jobs.inference.index_files import INDEX, videos_of
from jobs.inference.indexed_files import Filters, IndexedFiles
from jobs.inference.model import Videos, folder_of
from jobs.inference.ranking import Place, distinct
from jobs.inference.search_model import SearchModel, is_public, load_searcher, weights_of
from jobs.inference.window_index import WindowIndex
from jobs.run import run_files
from jobs.run.fields import refuse_below
from jobs.tracking import voice
from pipeline import storage

MAX_QUERY_CHARACTERS = 1000
RERANK = 100
"""Default number of windows that a cross encoder re-ranks."""
ROWS_PER_MOMENT = 8
"""Candidate windows per shown moment: neighbouring windows show the same moment, and only one is kept."""
PORT = 8765
"""Default port of the page."""


class NoCrossEncoderError(ValueError):
    """Raised when a search asks a model to re-rank that has no cross encoder."""


def refuse_rerank(rerank: int) -> None:
    """Raise NoCrossEncoderError if a model without a cross encoder is to re-rank."""
    if rerank:
        raise NoCrossEncoderError(
            f"rerank must be 0, got {rerank}: CLIP and SigLIP have no cross encoder to re-rank with; leave it out"
        )


def refuse_long(text: str) -> None:
    """Raise ValueError for a question that is much too long: the tokenizer would truncate most of it."""
    if len(text) > MAX_QUERY_CHARACTERS:
        raise ValueError(f"the question has {len(text):,} characters, at most {MAX_QUERY_CHARACTERS:,} are read")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The sentence to search for, and the index."""

    index: Annotated[str, tyro.conf.Positional]
    """Folder that jobs/embed.py wrote. With --model also a folder of videos, which is embedded first."""
    text: Annotated[str | None, tyro.conf.Positional] = None
    """A sentence about the video; without it and --queries, a search page opens."""
    queries: str | None = None
    """File of many sentences instead, a JSON string per line, or an object with a `text`; `-`: standard input."""
    num_results: int = 5
    rerank: int | None = None
    """Windows that the cross encoder re-ranks; None: 100, or 0 with a CLIP or SigLIP, which has none."""
    run: Annotated[str | None, tyro.conf.arg(aliases=["--model"])] = None
    """Folder of the model; None: its path when the index was made."""
    filters: Annotated[Filters, tyro.conf.arg(name="")] = field(default_factory=Filters)
    port: int = PORT
    """Port of the page, on this machine's loopback; 0: any free one."""

    def __post_init__(self) -> None:
        refuse_below(self, "", num_results=1, rerank=0, port=0)
        if self.text is not None and not self.text.strip():
            raise ValueError("text must say what is looked for, got an empty one")
        refuse_long(self.text or "")
        if self.text is not None and self.queries is not None:
            raise ValueError(f"give either a text or --queries, got {self.text!r} and {self.queries!r}")


@dataclass(frozen=True, kw_only=True)
class Match:
    """A window of a video, and its scores."""

    uri: str
    start_seconds: float | None
    end_seconds: float | None
    """Both None: the whole video, or an image."""
    cross: float | None
    """None: not re-ranked."""
    dual: float

    @property
    def span(self) -> str:
        """Start–end in seconds; empty for a whole video, or an image."""
        return "" if self.end_seconds is None else f"{self.start_seconds:.1f}–{self.end_seconds:.1f} s"


def search(config: SearchConfig) -> list[Match]:
    """Return the best windows for `config.text`, best first. Raise ValueError for an index of another model."""
    return Answerer(config).best(config.text or "")


def answers(config: SearchConfig) -> Iterator[str]:
    """Yield a JSON line per line of `config.queries`: its text, and the best windows. The index is opened once.

    Raise ValueError for an invalid line; for a file, before the first answer.
    """
    lines = sys.stdin if config.queries == "-" else read_lines(storage.absolute(str(config.queries)))
    texts = (text_of(number, line) for number, line in enumerate(lines, 1) if line.strip())
    if config.queries != "-":
        texts = iter([*texts])
    answerer = Answerer(config)
    for text in texts:
        matches = [dataclasses.asdict(match) for match in answerer.best(text)]
        yield json.dumps({"text": text, "matches": matches}, ensure_ascii=False)


def read_lines(path: str) -> list[str]:
    """Return the lines of a file of queries."""
    return storage.read_bytes(path).decode().splitlines()


def text_of(number: int, line: str) -> str:
    """Return the text of a line of queries. Raise ValueError for an invalid line."""
    try:
        query = json.loads(line)
        text = query if isinstance(query, str) else query["text"]
        if text.strip():
            return text
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    rule = 'must be a JSON string or {"text": "…"} that is not empty'
    raise ValueError(f"line {number} of the queries {rule}, got {line.strip()!r:.80}")


def index_of(folder: str, run: str | None) -> str:
    """Return `folder` if it is an index; if it holds videos, create or update an index of them in a subfolder per
    model, and return that.

    Raise ValueError for a folder without videos, or without a model to embed them.
    """
    folder = storage.absolute(folder)
    storage.check_readable(folder)
    if storage.exists(f"{folder}/{INDEX}"):
        return folder
    if run is None:
        raise ValueError(
            f"{folder} is no index: it holds no {INDEX}; name the model with --run to index the videos in it, or an "
            "index that snps3 embed wrote"
        )
    from jobs.inference.index import EmbedConfig, embed  # imports Ray, which an existing index does not need

    out = f"{folder}/.snps3/{weights_of(folder_of(run))[:12]}"
    counts = embed(EmbedConfig(run=run, videos=folder, out=out))
    voice.say(f"{counts['videos']} files: {counts['embedded']} embedded now, {counts['rejected']} rejected ({out})")
    return out


def open_index(index: str, run: str | None, rerank: int | None) -> tuple[SearchModel, WindowIndex, int]:
    """Load the model of an index, from `run` or its path when the index was made, and open the index. Return both, and
    how many windows to re-rank.

    Raise ValueError if `run` is another model, or cannot re-rank.
    """
    folder = storage.absolute(index)
    run, weights = model_of(folder, run)
    rerank = num_reranked(run, rerank)
    model = load_searcher(run)
    return model, WindowIndex.open(folder, weights, model.width), rerank


def num_reranked(run: str, rerank: int | None) -> int:
    """Return how many windows the model in a folder re-ranks. Raise NoCrossEncoderError where it cannot."""
    if not is_public(run):
        return RERANK if rerank is None else rerank
    refuse_rerank(rerank or 0)
    if rerank is None:
        voice.say(f"{run} has no cross encoder: windows are ranked by dual scores alone")
    return 0


def model_of(folder: str, run: str | None) -> tuple[str, str]:
    """Return folder and weights hash of the model of an index. Raise ValueError if `run` is another model."""
    storage.check_readable(f"{folder}/{INDEX}")
    facts = run_files.read_json(f"{folder}/{INDEX}")
    run = folder_of(run or facts["run"])
    if (weights := weights_of(run)) != facts["model"]:
        raise ValueError(
            f"{folder} was made with the model {facts['model']}, and {run} is {weights}; name it with --run"
        )
    return run, weights


class Answerer:
    """An open index with its model, for several questions."""

    def __init__(self, config: SearchConfig) -> None:
        self.config = config
        folder = index_of(config.index, config.run)
        self.model, self.index, self.rerank = open_index(folder, config.run, config.rerank)
        self.is_eligible = None
        if config.filters != Filters():
            files = IndexedFiles.read([part.path for part in self.index.parts], videos_of(folder))
            self.is_eligible = files.passing(config.filters)

    def best(self, sentence: str) -> list[Match]:
        """Return the windows with the highest dual scores, re-ranked by the cross encoder; of windows that show the
        same moment, only the best."""
        text, num = self.model.embed_texts([sentence]), self.config.num_results
        count = self.rerank or ROWS_PER_MOMENT * num
        first, dual = self.index.first(text.vectors, count, self.model.temperature, self.is_eligible)
        scores: dict[int, tuple[float | None, float]] = {
            int(row): (None, float(score)) for row, score in zip(first, dual, strict=True)
        }
        if self.rerank and len(first) and (encoder := self.model.cross_encoder):
            videos = Videos(tokens=self.index.tokens(first), vectors=self.index.vectors(first))
            cross = encoder.match(text, videos)[0]
            order = cross.argsort(descending=True, stable=True)
            scores = {int(first[i]): (float(cross[i]), float(dual[i])) for i in order}
        kept = distinct(self.index.place, scores, num)
        return [match_of(place, *scores[row]) for row, place in kept.items()]


def match_of(place: Place, cross: float | None, dual: float) -> Match:
    """Return a window of an index with its scores."""
    uri, start, end = place
    is_image = end is None
    return Match(uri=uri, start_seconds=None if is_image else start, end_seconds=end, cross=cross, dual=dual)
