"""Search an index by a sentence: the dual encoder chooses the videos, the cross encoder ranks them."""

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
from jobs.inference.model import Model, Videos, load
from jobs.inference.ranking import Place, distinct
from jobs.inference.window_index import WindowIndex
from jobs.run import run_files
from jobs.run.fields import refuse_below
from pipeline import storage

MAX_QUERY_CHARACTERS = 1000
PORT = 8765
"""Default port of the page."""


def refuse_long(text: str) -> None:
    """Raise ValueError for a question that is much too long: the tokenizer would truncate most of it."""
    if len(text) > MAX_QUERY_CHARACTERS:
        raise ValueError(f"the question has {len(text):,} characters, at most {MAX_QUERY_CHARACTERS:,} are read")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The sentence to search for, and the index."""

    index: Annotated[str, tyro.conf.Positional]
    """Folder that jobs/embed.py wrote. For the page with --run also a folder of videos, which is embedded first."""
    text: Annotated[str | None, tyro.conf.Positional] = None
    """A sentence about the video; without it and --queries, a search page opens."""
    queries: str | None = None
    """File of many sentences instead, a JSON string per line, or an object with a `text`; `-`: standard input."""
    num_results: int = 5
    rerank: int = 100
    """Windows that the cross encoder re-ranks."""
    run: str | None = None
    """Folder of the model; None: its path when the index was made."""
    filters: Annotated[Filters, tyro.conf.arg(name="")] = field(default_factory=Filters)
    port: int = PORT
    """Port of the page, on this machine's loopback; 0: any free one."""

    def __post_init__(self) -> None:
        refuse_below(self, "", num_results=1, rerank=1, port=0)
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
    cross: float
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


def open_index(index: str, run: str | None) -> tuple[Model, WindowIndex]:
    """Load the model of an index, from `run` or its path when the index was made, and open the index.

    Raise ValueError if `run` is another model.
    """
    folder = storage.absolute(index)
    run, weights = model_of(folder, run)
    model = load(run)
    return model, WindowIndex.open(folder, weights, model.network.config.hidden)


def model_of(folder: str, run: str | None) -> tuple[str, str]:
    """Return folder and weights hash of the model of an index. Raise ValueError if `run` is another model."""
    storage.check_readable(f"{folder}/{INDEX}")
    facts = run_files.read_json(f"{folder}/{INDEX}")
    run = storage.absolute(run or facts["run"])
    if (weights := run_files.weights_hash(run)) != facts["model"]:
        raise ValueError(
            f"{folder} was made with the model {facts['model']}, and {run} is {weights}; name it with --run"
        )
    return run, weights


class Answerer:
    """An open index with its model, for several questions."""

    def __init__(self, config: SearchConfig) -> None:
        self.config = config
        self.model, self.index = open_index(config.index, config.run)
        self.is_eligible = None
        if config.filters != Filters():
            files = IndexedFiles.read([part.path for part in self.index.parts], videos_of(config.index))
            self.is_eligible = files.passing(config.filters)

    def best(self, sentence: str) -> list[Match]:
        """Return the windows with the highest dual scores, re-ranked by the cross encoder; of windows that show the
        same moment, only the best."""
        text = self.model.embed_texts([sentence])
        first, dual = self.index.first(text.vectors, self.config.rerank, self.model.temperature, self.is_eligible)
        if not len(first):
            return []
        cross = self.model.match(text, Videos(tokens=self.index.tokens(first), vectors=self.index.vectors(first)))[0]
        order = cross.argsort(descending=True, stable=True)
        scores = {int(first[i]): (float(cross[i]), float(dual[i])) for i in order}
        kept = distinct(self.index.place, scores, self.config.num_results)
        return [match_of(place, *scores[row]) for row, place in kept.items()]


def match_of(place: Place, cross: float, dual: float) -> Match:
    """Return a window of an index with its scores."""
    uri, start, end = place
    is_image = end is None
    return Match(uri=uri, start_seconds=None if is_image else start, end_seconds=end, cross=cross, dual=dual)
