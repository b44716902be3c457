"""An open index of windows, memory-mapped from disk.

text ── dot products with the 8-bit codes of all windows ── candidates ── their dual scores ── top windows
        (a small index: dual scores of all windows)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
import simsimd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jobs.inference.index_files import Part, coded, open_part, parts_in
from jobs.inference.ranking import Place
from pipeline import storage
from snps3_model.snps3 import dual_scores

EXACT_BYTES = 64 * 2**20
"""Size of frame vectors up to which an index is searched without its codes."""
OVERSAMPLING, LEAST_CANDIDATES, CANDIDATE_SHARE = 4, 1000, 1 / 125
"""The codes preselect `OVERSAMPLING` windows per requested one, but at least `LEAST_CANDIDATES` and `CANDIDATE_SHARE`
of all: the larger the index, the more windows have a mean near that of the best, which the codes cannot tell apart."""
SAMPLED_EVERY = 16
"""Of so many scores one is in the sample that bounds a search for the highest."""
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
            num_candidates = max(OVERSAMPLING * count, LEAST_CANDIDATES, round(CANDIDATE_SHARE * len(self)))
            rows = rows_of_highest(self.coded_scores(texts), num_candidates, is_eligible).sort().values
            if not len(rows):
                return rows, torch.empty(0)
            order, scores = highest(dual_scores(texts, self.vectors(rows), temperature)[0], count)
            return rows[order], scores

    def coded_scores(self, texts: Float[Tensor, "1 D"]) -> Float[Tensor, " N"]:
        """Return a score per window that approximates the order by mean cosine with the text."""
        codes = coded(texts[:, None])[0].numpy()
        scores = torch.empty(len(self))
        for part, stop in zip(self.parts, self.stops, strict=True):
            dots = np.asarray(simsimd.cdist(codes, part.codes.numpy(), "dot"))[0]
            np.multiply(dots, float(part.scale), out=scores[stop - len(part) : stop].numpy(), casting="same_kind")
        return scores

    def vectors(self, rows: Int[Tensor, " K"]) -> Float[Tensor, "K T D"]:
        """Return the frame vectors of windows."""
        return self.gathered("vectors", rows)

    def tokens(self, rows: Int[Tensor, " K"]) -> Float[Tensor, "K S D"]:
        """Return the tokens of windows, for the cross encoder."""
        return self.gathered("tokens", rows)

    def gathered(self, name: str, rows: Int[Tensor, " K"]) -> Float[Tensor, "K _ D"]:
        """Return the tensor `name` of windows, read part by part.

        NumPy takes rows in a quarter of torch's time, and a mask per part would cost parts times rows.
        """
        numbers, places = self.located(rows)
        gathered = np.empty((len(rows), *getattr(self.parts[0], name).shape[1:]), np.float32)
        by_part = np.argsort(numbers, kind="stable")
        for slots in np.split(by_part, np.flatnonzero(np.diff(numbers[by_part])) + 1) if len(rows) else ():
            tensor = getattr(self.parts[int(numbers[slots[0]])], name)
            gathered[slots] = tensor.numpy().take(places[slots], axis=0)
        return torch.from_numpy(gathered)

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
    top = rows_of_highest(scores, count, is_eligible)
    if not len(top):
        return top, scores[:0]
    rows = (scores >= scores[top].min()).nonzero()[:, 0]
    if is_eligible is not None:
        rows = rows[torch.from_numpy(is_eligible)[rows]]
    order = rows[scores[rows].argsort(descending=True, stable=True)[: len(top)]]
    return order, scores[order]


def rows_of_highest(
    scores: Float[Tensor, " N"], count: int, is_eligible: Bool[np.ndarray, " N"] | None = None
) -> Int[Tensor, " K"]:
    """Return the indices of the `count` highest eligible scores, in any order; of ties any."""
    if is_eligible is not None:
        scores = scores.masked_fill(torch.from_numpy(~is_eligible), -torch.inf)
        count = min(count, int(is_eligible.sum()))
    count = min(count, len(scores))
    # a sample gives a bound that at least `count` scores are likely to reach: only these need sorting
    sample = scores[::SAMPLED_EVERY]
    bound = sample.topk(min(2 * count // SAMPLED_EVERY + 1, len(sample)), sorted=False).values.min()
    rows = (scores >= bound).nonzero()[:, 0]
    if len(rows) < count:
        return scores.topk(count, sorted=False).indices
    return rows[scores[rows].topk(count, sorted=False).indices]


def places_of(path: str) -> list[Place]:
    """Return the windows of a part; parts of the first format have no times."""
    table = storage.read_with(path, lambda file: pq.ParquetFile(file).read(["uri", "start_seconds", "end_seconds"]))
    nulls = [None] * len(table)
    starts, ends = (
        table[name].to_pylist() if name in table.column_names else nulls for name in ("start_seconds", "end_seconds")
    )
    return list(zip(table["uri"].to_pylist(), starts, ends, strict=True))
