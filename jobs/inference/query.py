"""Search an index by a sentence: the dual encoder chooses the videos, the cross encoder ranks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
import tyro

from jobs.inference.index_files import INDEX, parts_in
from jobs.inference.model import Model, Videos, load
from jobs.run import run_files
from jobs.run.fields import refuse_below
from pipeline import storage


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A sentence, and the index that is searched."""

    index: Annotated[str, tyro.conf.Positional]
    """Folder that jobs/embed.py wrote."""
    text: Annotated[str, tyro.conf.Positional]
    """A sentence about the video."""
    num_results: int = 5
    rerank: int = 100
    """Videos that the cross encoder puts in order."""
    run: str | None = None
    """Folder of the model; None: where it lay when the index was made."""

    def __post_init__(self) -> None:
        refuse_below(self, "", num_results=1, rerank=1)
        if not self.text.strip():
            raise ValueError("text must say what is looked for, got an empty one")


@dataclass(frozen=True, kw_only=True)
class Match:
    """A video and its scores."""

    uri: str
    cross: float
    dual: float


def search(config: SearchConfig) -> list[Match]:
    """Return the best videos, best first. ValueError for an index of another model."""
    folder = storage.absolute(config.index)
    storage.check_readable(f"{folder}/{INDEX}")
    facts = run_files.read_json(f"{folder}/{INDEX}")
    run = storage.absolute(config.run or facts["run"])
    if (weights := run_files.weights_hash(run)) != facts["model"]:
        raise ValueError(
            f"{folder} was made with the model {facts['model']}, and {run} is {weights}; name it with --run"
        )
    model = load(run)
    uris, videos = read_index(folder, model)
    return best(model, uris, videos, config)


def read_index(folder: str, model: Model) -> tuple[list[str], Videos]:
    """Return every video of an index."""
    paths = parts_in(folder)
    if not paths:
        raise ValueError(f"{folder} holds no embedded video")
    table = pa.concat_tables(storage.read_table(path) for path in paths)
    hidden = model.network.config.hidden

    def column(name: str) -> torch.Tensor:
        values = table[name].combine_chunks().flatten().to_numpy()
        return torch.from_numpy(values.reshape(len(table), -1, hidden).copy())

    return table["uri"].to_pylist(), Videos(tokens=column("tokens"), vectors=column("vectors"))


def best(model: Model, uris: list[str], videos: Videos, config: SearchConfig) -> list[Match]:
    """Return the videos that the dual encoder puts first, in the order of the cross encoder."""
    text = model.embed_texts([config.text])
    dual = model.dual_scores(text, videos)[0].numpy()
    first = np.argsort(-dual, kind="stable")[: config.rerank]
    chosen = Videos(tokens=videos.tokens[first], vectors=videos.vectors[first])
    cross = model.match(text, chosen)[0].numpy()
    order = np.argsort(-cross, kind="stable")[: config.num_results]
    return [Match(uri=uris[first[i]], cross=float(cross[i]), dual=float(dual[first[i]])) for i in order]
