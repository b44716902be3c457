"""An open index: moments by a sentence or like another moment, strips, files.

text ── dual scores of all windows ── filters ── first `rerank` ── cross scores ── both, fused ── distinct moments
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int

from jobs.inference.index_files import videos_of
from jobs.inference.indexed_files import Filters, IndexedFiles
from jobs.inference.model import Queries, Videos, decode_unnamed
from jobs.inference.query import MAX_QUERY_CHARACTERS, ROWS_PER_MOMENT, open_index, refuse_rerank
from jobs.inference.ranking import Place, distinct
from jobs.inference.search_model import SearchModel
from jobs.inference.window_index import ChangedIndexError, WindowIndex
from pipeline import storage
from pipeline.corpus.media import kind_of
from pipeline.records import Kind
from snps3_model import metrics, snps3

PARTS_IN_MEMORY = 4
"""Number of parts of the index whose strips stay in memory."""


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
    """Both None: a whole video, or an image."""
    score: float
    """The score for ranking: the sum of both scores, each standardised over the candidates; without a cross score, the
    dual score."""
    dual: float
    cross: float | None


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence that is searched for."""

    text: str
    filters: Filters
    num: int
    """Moments."""
    rerank: int | None = None
    """Windows that the cross encoder scores; None: the library's number; 0: none."""


class Library:
    """The windows of an index, with their model. Thread-safe."""

    def __init__(self, folder: str, root: str, model: SearchModel, index: WindowIndex, rerank: int) -> None:
        self.folder, self.model, self.index, self.rerank = folder, model, index, rerank
        self.files = IndexedFiles.read([part.path for part in index.parts], root)
        self.strips_of = functools.lru_cache(PARTS_IN_MEMORY)(strips_of)
        self.lock = threading.Lock()

    @classmethod
    def open(cls, index: str, run: str | None = None, *, rerank: int | None = None) -> Library:
        """Open an index; the cross encoder re-ranks `rerank` windows per sentence, None: as `num_reranked` says.

        Raise ValueError for an index of another model, FileNotFoundError for a missing one.
        """
        folder = storage.absolute(index)
        model, windows, rerank = open_index(folder, run, rerank)
        return cls(folder, videos_of(folder), model, windows, rerank)

    def facts(self) -> dict[str, Any]:
        """Return the facts that a page needs before the first question."""
        parents = {name.rpartition("/")[0] for name in self.files.names} - {""}
        folders = {folder[:end] for folder in parents for end in slash_ends(folder)}
        return {
            "windows": len(self.index),
            "files": len(self.files.uris),
            "folders": sorted(folders),
            "max_seconds": float(self.files.seconds.max()),
            "max_query_characters": MAX_QUERY_CHARACTERS,
        }

    def by_text(self, text: str, filters: Filters, *, num: int, rerank: int | None = None) -> list[Moment]:
        """Return the best moments for a sentence. `rerank`: windows that the cross encoder scores; None: the library's
        number; 0: none."""
        sentence = Sentence(text=text, filters=filters, num=num, rerank=rerank)
        with self.lock:
            scored = self.scored(self.model.embed_texts([text]), sentence)
        return self.moments(scored, num)

    def by_texts(self, sentences: Sequence[Sentence]) -> list[list[Moment] | ValueError]:
        """Return the best moments for each sentence, or why it has none. The sentences are embedded as one batch."""
        answers: list[list[Moment] | ValueError] = []
        with self.lock:
            queries = self.model.embed_texts([sentence.text for sentence in sentences])
            for i, sentence in enumerate(sentences):
                try:
                    answers.append(self.moments(self.scored(queries.row(i), sentence), sentence.num))
                except ValueError as error:
                    answers.append(error)
        return answers

    def scored(self, query: Queries, sentence: Sentence) -> Iterable[tuple[Any, ...]]:
        """Return row, score, dual and, if re-ranked, cross score of the candidates for a sentence, best first."""
        rerank, num = self.rerank if sentence.rerank is None else sentence.rerank, sentence.num
        encoder = self.model.cross_encoder
        if encoder is None:
            refuse_rerank(rerank)
        count = max(rerank, num if rerank else ROWS_PER_MOMENT * num)
        rows, dual = self.first(query.vectors, count, sentence.filters)
        if not rerank or not encoder or not len(rows):
            return zip(rows.tolist(), dual.tolist(), dual.tolist(), strict=True)
        chosen = Videos(tokens=self.index.tokens(rows), vectors=self.index.vectors(rows))
        cross = encoder.match(query, chosen)[0].numpy()
        scores = metrics.standardised(dual.numpy()) + metrics.standardised(cross)
        order = np.argsort(-scores, kind="stable")
        columns = (rows.numpy(), scores, dual.numpy(), cross)
        return zip(*(column[order].tolist() for column in columns), strict=True)

    def like(self, row: int, filters: Filters, *, num: int) -> list[Moment]:
        """Return the moments whose frames are nearest to those of a window, without that window itself."""
        return self.near(self.index.vectors(torch.tensor([row]))[0], filters, num=num, shown=[row])

    def like_media(self, media: bytes, filters: Filters, *, num: int) -> list[Moment]:
        """Return the moments nearest to the middle frames of a picture or video. Raise DecodeError if it is neither."""
        frames = decode_unnamed(media, self.model.data)
        with self.lock:
            vectors = self.model.embed_frames(frames[None]).vectors[0]
        return self.near(vectors, filters, num=num)

    def near(
        self, vectors: Float[torch.Tensor, "T D"], filters: Filters, *, num: int, shown: Sequence[int] = ()
    ) -> list[Moment]:
        """Return the moments nearest to a clip's frames, by the mean of their vectors."""
        mean = snps3.unit(vectors.mean(0, keepdim=True))
        rows, dual = self.first(mean, ROWS_PER_MOMENT * (num + len(shown)), filters)
        return self.moments(zip(rows.tolist(), dual.tolist(), dual.tolist(), strict=True), num, shown)

    def first(
        self, query: Float[torch.Tensor, "1 D"], count: int, filters: Filters
    ) -> tuple[Int[torch.Tensor, " K"], Float[torch.Tensor, " K"]]:
        """Return the rows with the highest dual scores among files that pass, best first, and their scores."""
        return self.index.first(query, count, self.model.temperature, self.files.passing(filters))

    def around(self, row: int, *, reach: int) -> list[Moment]:
        """Return the windows of a row's file from `reach` before it to `reach` after it, in order of time, as the rows
        of a file are."""
        of_row = self.files.of_row
        near = range(max(0, row - reach), min(len(of_row), row + reach + 1))
        return [self.moment(other, self.index.place(other)) for other in near if of_row[other] == of_row[row]]

    def moments(self, scored: Iterable[tuple[Any, ...]], num: int, shown: Sequence[int] = ()) -> list[Moment]:
        """Return the first `num` distinct moments of scored rows, best first."""
        scores = {row: values for row, *values in scored}
        kept = distinct(self.index.place, scores, num, shown)
        return [self.moment(row, place, *scores[row]) for row, place in kept.items()]

    def moment(
        self, row: int, place: Place, score: float = 0.0, dual: float = 0.0, cross: float | None = None
    ) -> Moment:
        """Return a row with its scores. Raise ChangedIndexError if the row now belongs to another file."""
        uri, start, end = place
        number = int(self.files.of_row[row])
        if self.files.uris[number] != uri:
            raise ChangedIndexError(f"{uri} is not what the row {row} was of; open the index again")
        return Moment(
            row=row,
            file=number,
            name=self.files.names[number],
            kind=str(kind_of(uri) or Kind.VIDEO),
            start_seconds=None if end is None else start,
            end_seconds=end,
            score=score,
            dual=dual,
            cross=cross,
        )

    def strip(self, row: int) -> bytes:
        """Return some frames of a window side by side, a JPEG.

        Raise FileNotFoundError for an index without strips, ChangedIndexError if it was rewritten.
        """
        part, place = self.index.part_of(row)
        try:
            rows = self.strips_of(part.path)
        except FileNotFoundError as error:
            raise ChangedIndexError(f"{part.path} is gone") from error
        if rows is None:
            raise FileNotFoundError(f"{self.folder} was made without strips of frames: make it anew with snps3 embed")
        if len(rows[0]) != len(part) or rows[0][place] != self.files.uris[self.files.of_row[row]]:
            raise ChangedIndexError(f"{part.path} was written anew")
        return rows[1][place]


def strips_of(path: str) -> tuple[list[str], list[bytes]] | None:
    """Return file and strip of each row of a part; None if it has no strips."""
    names = ["uri", "strip"]
    table = storage.read_with(path, lambda file: pq.ParquetFile(file).read(names))
    if table.column_names != names:
        return None
    uris, strips = (table[name].to_pylist() for name in names)
    return uris, strips


def slash_ends(folder: str) -> list[int]:
    """Return the end of each folder in a path: 1 and 3 for `a/b`."""
    return [place for place, letter in enumerate(folder) if letter == "/"] + [len(folder)]
