"""An index that is open for questions: moments by a sentence or like another moment, strips, files.

text ── dual scores of all windows ── filters ── first `rerank` ── cross scores ── both, fused ── distinct moments
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int

from jobs.inference.index_files import INDEX
from jobs.inference.model import Model, Videos, decode_media
from jobs.inference.query import open_index
from jobs.inference.ranking import distinct
from jobs.inference.window_index import WindowIndex
from jobs.run import run_files
from pipeline import storage
from pipeline.corpus.media import kind_of
from pipeline.decode.formats import kind_by_bytes
from pipeline.records import DecodeError, Kind, Reason
from snps3_model import metrics, snps3

MAX_QUERY_CHARACTERS = 1000
ROWS_PER_MOMENT = 8
"""Windows that are looked at for each moment that is shown: those beside it are the same one."""
PARTS_IN_MEMORY = 4
"""Files of the index whose strips stay in memory."""


class ChangedIndexError(Exception):
    """Raised when the index was written anew after it was opened."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which files are searched."""

    folder: str = ""
    """Below the root of the videos; empty: all."""
    min_seconds: float = 0.0
    max_seconds: float = math.inf
    """Of the whole file. Images last 0 seconds."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A window of a file, and its scores."""

    row: int
    file: int
    """Number of the file."""
    name: str
    """Path below the root of the videos."""
    kind: str
    start_seconds: float | None
    end_seconds: float | None
    """None of both: a whole video, or an image."""
    score: float
    """What orders: both scores, standardised over the candidates and added; without a cross score the dual one."""
    dual: float
    cross: float | None


class Library:
    """The windows of an index, with their model. Several threads may ask."""

    def __init__(self, folder: str, root: str, model: Model, index: WindowIndex, rerank: int) -> None:
        self.folder, self.model, self.index, self.rerank = folder, model, index, rerank
        self.places = places = [place for part in index.parts for place in index.places_of(part.path)]
        self.uris = list(dict.fromkeys(uri for uri, _, _ in places))
        numbers = {uri: number for number, uri in enumerate(self.uris)}
        self.file_of_row = np.array([numbers[uri] for uri, _, _ in places])
        self.names = [uri.removeprefix(f"{root}/") for uri in self.uris]
        self.seconds = np.zeros(len(self.uris))
        np.maximum.at(self.seconds, self.file_of_row, [end or 0.0 for _, _, end in places])
        self.strips_of = functools.lru_cache(PARTS_IN_MEMORY)(strips_of)
        self.lock = threading.Lock()

    @classmethod
    def open(cls, index: str, run: str | None = None, *, rerank: int = 100) -> Library:
        """Open an index, of which the cross encoder scores `rerank` windows for a sentence.

        ValueError for that of another model, FileNotFoundError for none.
        """
        folder = storage.absolute(index)
        model, windows = open_index(folder, run)
        return cls(folder, run_files.read_json(f"{folder}/{INDEX}")["videos"], model, windows, rerank)

    def facts(self) -> dict[str, Any]:
        """Return what a page has to know before the first question."""
        parents = {name.rpartition("/")[0] for name in self.names} - {""}
        folders = {folder[:end] for folder in parents for end in slash_ends(folder)}
        return {
            "windows": len(self.places),
            "files": len(self.uris),
            "folders": sorted(folders),
            "max_seconds": float(self.seconds.max()),
            "max_query_characters": MAX_QUERY_CHARACTERS,
        }

    def by_text(self, text: str, filters: Filters, *, num: int) -> list[Moment]:
        """Return the best moments for a sentence."""
        with self.lock:
            query = self.model.embed_texts([text])
            rows, dual = self.first(query.vectors, max(self.rerank, num), filters)
            if not len(rows):
                return []
            chosen = Videos(tokens=self.index.tokens(rows), vectors=self.index.vectors(rows))
            cross = self.model.match(query, chosen)[0].numpy()
        rows, dual = rows.numpy(), dual.numpy()
        scores = metrics.standardised(dual) + metrics.standardised(cross)
        order = np.argsort(-scores, kind="stable")
        kept = distinct(self.places, rows[order].tolist(), num)
        at = {int(row): place for place, row in enumerate(rows)}
        return [self.moment(row, *(float(of[at[row]]) for of in (scores, dual, cross))) for row in kept]

    def like(self, row: int, filters: Filters, *, num: int) -> list[Moment]:
        """Return the moments whose frames are nearest to those of a window, which is none of them."""
        return self.near(self.index.vectors(torch.tensor([row]))[0], filters, num=num, shown=[row])

    def like_media(self, media: bytes, filters: Filters, *, num: int) -> list[Moment]:
        """Return the moments nearest to the middle frames of a picture or video. DecodeError if it is neither."""
        if (kind := kind_by_bytes(media)) is None:
            raise DecodeError(Reason.UNREADABLE, "it is neither a picture nor a video of a kind that is read")
        frames = decode_media(media, kind, self.model.data)
        with self.lock:
            vectors = self.model.embed_frames(frames[None]).vectors[0]
        return self.near(vectors, filters, num=num)

    def near(
        self, vectors: Float[torch.Tensor, "T D"], filters: Filters, *, num: int, shown: Sequence[int] = ()
    ) -> list[Moment]:
        """Return the moments nearest to a clip's frames, by the mean of their vectors."""
        mean = snps3.unit(vectors.mean(0, keepdim=True))
        rows, dual = self.first(mean, ROWS_PER_MOMENT * (num + len(shown)), filters)
        scores = dict(zip(rows.tolist(), dual.tolist(), strict=True))
        return [self.moment(row, scores[row], scores[row], None) for row in distinct(self.places, scores, num, shown)]

    def first(
        self, query: Float[torch.Tensor, "1 D"], count: int, filters: Filters
    ) -> tuple[Int[torch.Tensor, " K"], Float[torch.Tensor, " K"]]:
        """Return the rows of files that pass with the highest dual scores, best first, and their scores."""
        return self.index.first(query, count, self.model.temperature, self.eligible(filters))

    def around(self, row: int, *, reach: int) -> list[Moment]:
        """Return the windows of a row's file from `reach` before it to `reach` after it, in order of time."""
        rows = np.flatnonzero(self.file_of_row == self.file_of_row[row])
        starts = [self.places[near][1] or 0.0 for near in rows.tolist()]
        rows = rows[np.argsort(starts, kind="stable")]
        place = rows.tolist().index(row)
        return [self.moment(int(near), 0.0, 0.0, None) for near in rows[max(0, place - reach) : place + reach + 1]]

    def eligible(self, filters: Filters) -> Bool[np.ndarray, " N"]:
        """Return which rows belong to files that pass."""
        below = f"{filters.folder.strip('/')}/" if filters.folder.strip("/") else ""
        in_folder = np.array([name.startswith(below) for name in self.names])
        passes = in_folder & (self.seconds >= filters.min_seconds) & (self.seconds <= filters.max_seconds)
        return passes[self.file_of_row]

    def moment(self, row: int, score: float, dual: float, cross: float | None) -> Moment:
        """Return a row with its scores."""
        uri, start, end = self.places[row]
        number = int(self.file_of_row[row])
        return Moment(
            row=row,
            file=number,
            name=self.names[number],
            kind=str(kind_of(uri) or Kind.VIDEO),
            start_seconds=None if end is None else start,
            end_seconds=end,
            score=score,
            dual=dual,
            cross=cross,
        )

    def strip(self, row: int) -> bytes:
        """Return some frames of a window side by side, a JPEG.

        FileNotFoundError for an index without strips, ChangedIndexError if it was written anew.
        """
        ((part, place),) = self.index.located(torch.tensor([row]))
        try:
            rows = self.strips_of(part.path)
        except FileNotFoundError as error:
            raise ChangedIndexError from error
        if rows is None:
            raise FileNotFoundError(f"{self.folder} was made without strips of frames: make it anew with snps3 embed")
        uri, start, _ = self.places[row]
        if place >= len(rows[0]) or (rows[0][place], rows[1][place]) != (uri, start):
            raise ChangedIndexError
        return rows[2][place]


def strips_of(path: str) -> tuple[list[str], list[float], list[bytes]] | None:
    """Return file, start and strip of each row of a part; None where it has no strips."""
    names = ["uri", "start_seconds", "strip"]
    table = storage.read_with(path, lambda file: pq.ParquetFile(file).read(names))
    if table.column_names != names:
        return None
    uris, starts, strips = (table[name].to_pylist() for name in names)
    return uris, starts, strips


def slash_ends(folder: str) -> list[int]:
    """Return where each folder of a path ends: of `a/b` at 1 and 3."""
    return [place for place, letter in enumerate(folder) if letter == "/"] + [len(folder)]
