"""An open index of windows, memory-mapped from disk.

text ── dot products with the 8-bit codes of all windows ── top thousand ── their dual scores ── top windows
        (a small index: dual scores of all windows)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jobs.inference.index_files import Part, coded, open_part, parts_in
from jobs.inference.ranking import Place
from pipeline import storage
from snps3_model.snps3 import dual_scores

EXACT_BYTES = 64 * 2**20
"""Size of frame vectors up to which an index is searched without its codes."""
OVERSAMPLING, LEAST_CANDIDATES = 4, 1000
"""The codes preselect `OVERSAMPLING` windows per requested one, but at least `LEAST_CANDIDATES`."""
TABLES_IN_MEMORY = 64
"""Number of parts whose places stay in memory."""


class ChangedIndexError(ValueError):
    """Raised when the index was rewritten after it was opened."""


class WindowIndex:
    """The windows of an index. Row numbers run through all parts."""

    def __init__(self, parts: Sequence[Part], exact_bytes: int = EXACT_BYTES) -> None:
        self.parts = parts
        self.stops = np.array([*itertools.accumulate(map(len, parts))])
        self.is_exact = sum(part.vectors.nbytes for part in parts) <= exact_bytes
        self.places_of = functools.lru_cache(TABLES_IN_MEMORY)(places_of)

    @classmethod
    def open(cls, folder: str, model: str, width: int) -> WindowIndex:
        """Open the index in `folder`; `model`: hash of the model's weights; `width`: of its vectors. Raise ValueError
        as `open_part` does."""
        reads = [(path, functools.partial(open_part, path, model, width)) for path in parts_in(folder)]
        if not reads:
            raise ValueError(f"{folder} holds no embedded video")
        return cls([part() for part in storage.prefetched(reads)])

    def __len__(self) -> int:
        return int(self.stops[-1])

    def first(
        self,
        texts: Float[Tensor, "1 D"],
        count: int,
        temperature: float,
        is_eligible: Bool[np.ndarray, " N"] | None = None,
    ) -> tuple[Int[Tensor, " K"], Float[Tensor, " K"]]:
        """Return the eligible windows with the highest dual scores for a text, best first, and their scores."""
        with one_thread():
            if self.is_exact:
                parts = [dual_scores(texts, part.vectors, temperature)[0] for part in self.parts]
                return highest(torch.cat(parts), count, is_eligible)
            candidates = max(OVERSAMPLING * count, LEAST_CANDIDATES)
            rows = highest(self.coded_scores(texts), candidates, is_eligible)[0]
            if not len(rows):
                return rows, torch.empty(0)
            order, scores = highest(dual_scores(texts, self.vectors(rows), temperature)[0], count)
            return rows[order], scores

    def coded_scores(self, texts: Float[Tensor, "1 D"]) -> Float[Tensor, " N"]:
        """Return a score per window that approximates the order by mean cosine with the text."""
        codes = coded(texts[:, None])[0].T.contiguous()
        # torch.mm does not support 8-bit integers
        return torch.cat([torch.ops.aten._int_mm(part.codes, codes)[:, 0] * part.scale for part in self.parts])

    def vectors(self, rows: Int[Tensor, " K"]) -> Float[Tensor, "K T D"]:
        """Return the frame vectors of windows."""
        return self.gathered("vectors", rows)

    def tokens(self, rows: Int[Tensor, " K"]) -> Float[Tensor, "K S D"]:
        """Return the tokens of windows, for the cross encoder."""
        return self.gathered("tokens", rows)

    def gathered(self, name: str, rows: Int[Tensor, " K"]) -> Float[Tensor, "K _ D"]:
        """Return the tensor `name` of windows, read part by part: single reads of a thousand rows would take as long as
        the search of all codes."""
        numbers, places = map(torch.from_numpy, self.located(rows))
        gathered = torch.empty(len(rows), *getattr(self.parts[0], name).shape[1:])
        for number in numbers.unique().tolist():
            is_in = numbers == number
            gathered[is_in] = getattr(self.parts[number], name)[places[is_in]]
        return gathered

    def place(self, row: int) -> Place:
        """Return the window of a row. Raise ChangedIndexError if its part was rewritten since the index was opened."""
        part, place = self.part_of(row)
        with contextlib.suppress(FileNotFoundError):
            places = self.places_of(part.path)
            if len(places) == len(part):
                return places[place]
        raise ChangedIndexError(f"{part.path} was written anew since the index was opened; open it again")

    def part_of(self, row: int) -> tuple[Part, int]:
        """Return the part of a row, and its number within the part."""
        (number,), (place,) = self.located(torch.tensor([row]))
        return self.parts[number], int(place)

    def located(self, rows: Int[Tensor, " K"]) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
        """Return for each row the number of its part, and its number within the part."""
        numbers = np.searchsorted(self.stops, rows.numpy(), side="right")
        return numbers, rows.numpy() - np.concatenate([[0], self.stops])[numbers]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Make torch use only the calling thread within the context: on small parts its threads cost more than they
    save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def highest(
    scores: Float[Tensor, " N"], count: int, is_eligible: Bool[np.ndarray, " N"] | None = None
) -> tuple[Int[Tensor, " K"], Float[Tensor, " K"]]:
    """Return the indices of the `count` highest eligible scores, best first, and these scores; ties keep their
    order."""
    if is_eligible is not None:
        scores = scores.masked_fill(torch.from_numpy(~is_eligible), -torch.inf)
        count = min(count, int(is_eligible.sum()))
    if not count:
        return torch.empty(0, dtype=torch.int64), scores[:0]
    rows = (scores >= scores.topk(min(count, len(scores))).values[-1]).nonzero()[:, 0]
    order = rows[scores[rows].argsort(descending=True, stable=True)[:count]]
    return order, scores[order]


def places_of(path: str) -> list[Place]:
    """Return the windows of a part; parts of the first format have no times."""
    table = storage.read_with(path, lambda file: pq.ParquetFile(file).read(["uri", "start_seconds", "end_seconds"]))
    nulls = [None] * len(table)
    starts, ends = (
        table[name].to_pylist() if name in table.column_names else nulls for name in ("start_seconds", "end_seconds")
    )
    return list(zip(table["uri"].to_pylist(), starts, ends, strict=True))
