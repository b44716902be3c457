"""Tables of significant words for tests, made of ranks alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.text.significance import CONTENT_POS, SignificantWords


def table_of_ranks(ranks: np.ndarray, families: Sequence[Sequence[int]] | None = None) -> SignificantWords:
    """Return a table that knows nothing but ranks, and families of ids if they are given."""
    members = families if families is not None else [()] * len(ranks)
    return SignificantWords(
        words=("",) * len(ranks),
        total_counts=np.zeros(len(ranks), dtype=np.int64),
        pos_counts=np.zeros((len(ranks), len(CONTENT_POS)), dtype=np.int64),
        ranks=ranks,
        family_starts=np.cumsum([0, *map(len, members)], dtype=np.int64),
        family_members=np.array([member for family in members for member in family], dtype=np.int64),
    )
