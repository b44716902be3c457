"""Search an index by a sentence: the dual encoder chooses the videos, the cross encoder ranks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
import tyro

from jobs.inference.index_files import INDEX, parts_in
from jobs.inference.model import Model, Videos, load
from jobs.inference.ranking import Place
from jobs.run import run_files
from jobs.run.fields import refuse_below
from pipeline import storage


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A sentence, and the index that is searched."""

    index: Annotated[str, tyro.conf.Positional]
    """Folder that jobs/embed.py wrote. For the page with --run also a folder of videos, which is embedded first."""
    text: Annotated[str | None, tyro.conf.Positional] = None
    """A sentence about the video; None: a page opens in which to ask."""
    num_results: int = 5
    rerank: int = 100
    """Windows that the cross encoder puts in order."""
    run: str | None = None
    """Folder of the model; None: where it lay when the index was made."""
    port: int = 8765
    """Of the page, on this machine's loopback; 0: any that is free."""

    def __post_init__(self) -> None:
        refuse_below(self, "", num_results=1, rerank=1, port=0)
        if self.text is not None and not self.text.strip():
            raise ValueError("text must say what is looked for, got an empty one")


@dataclass(frozen=True, kw_only=True)
class Match:
    """A window of a video, and its scores."""

    uri: str
    start_seconds: float | None
    end_seconds: float | None
    """None of both: the whole video, or an image."""
    cross: float
    dual: float

    @property
    def span(self) -> str:
        """From–to in seconds; nothing for a whole video, or an image."""
        return "" if self.end_seconds is None else f"{self.start_seconds:.1f}–{self.end_seconds:.1f} s"


def search(config: SearchConfig) -> list[Match]:
    """Return the best videos, best first. ValueError for an index of another model."""
    folder = storage.absolute(config.index)
    model = model_of(folder, config.run)
    places, videos = read_index(folder, model)
    return best(model, places, videos, config)


def model_of(folder: str, run: str | None) -> Model:
    """Load the model that an index was made with, from `run` or where it lay then. ValueError for another model."""
    storage.check_readable(f"{folder}/{INDEX}")
    facts = run_files.read_json(f"{folder}/{INDEX}")
    run = storage.absolute(run or facts["run"])
    if (weights := run_files.weights_hash(run)) != facts["model"]:
        raise ValueError(
            f"{folder} was made with the model {facts['model']}, and {run} is {weights}; name it with --run"
        )
    return load(run)


def read_index(folder: str, model: Model) -> tuple[list[Place], Videos]:
    """Return every window of an index; of one without windows, every video."""
    paths = parts_in(folder)
    if not paths:
        raise ValueError(f"{folder} holds no embedded video")
    table = pa.concat_tables(storage.read_table(path) for path in paths)
    hidden = model.network.config.hidden

    def column(name: str) -> torch.Tensor:
        values = table[name].combine_chunks().flatten().to_numpy()
        return torch.from_numpy(values.reshape(len(table), -1, hidden).copy())

    has_times = "start_seconds" in table.column_names
    times = [table[name].to_pylist() if has_times else [None] * len(table) for name in ("start_seconds", "end_seconds")]
    places = list(zip(table["uri"].to_pylist(), *times, strict=True))
    return places, Videos(tokens=column("tokens"), vectors=column("vectors"))


def best(model: Model, places: Sequence[Place], videos: Videos, config: SearchConfig) -> list[Match]:
    """Return the windows that the dual encoder puts first, in the order of the cross encoder."""
    text = model.embed_texts([config.text or ""])
    dual = model.dual_scores(text, videos)[0].numpy()
    first = np.argsort(-dual, kind="stable")[: config.rerank]
    chosen = Videos(tokens=videos.tokens[first], vectors=videos.vectors[first])
    cross = model.match(text, chosen)[0].numpy()
    order = np.argsort(-cross, kind="stable")[: config.num_results]
    return [match_of(places[int(first[i])], float(cross[i]), float(dual[first[i]])) for i in order]


def match_of(place: Place, cross: float, dual: float) -> Match:
    """Return a place of an index with its scores."""
    uri, start, end = place
    is_image = end is None
    return Match(uri=uri, start_seconds=None if is_image else start, end_seconds=end, cross=cross, dual=dual)
