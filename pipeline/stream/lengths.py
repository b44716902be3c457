"""Reduce the padding of captions: rows of similar length pass through the network together.

A batch is as wide as its longest caption; in MS-COCO that is nearly twice the mean, and GVTM level 2 multiplies it by
the number of pairs. The groups are formed on the host, so that no step synchronises with its device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from pipeline.records import LengthGroup


def group_by_length(num_tokens: Sequence[int], max_groups: int) -> tuple[LengthGroup, ...]:
    """Form at most `max_groups` groups of rows with the least padding; `num_tokens` holds the length of each row."""
    ends = minimise_padding(Counter(num_tokens), max_groups)
    return tuple(
        LengthGroup(
            rows=torch.tensor([row for row, count in enumerate(num_tokens) if shorter < count <= longest]),
            num_tokens=longest,
        )
        for shorter, longest in zip([-1, *ends], ends, strict=False)
    )


def minimise_padding(num_rows: Counter[int], max_groups: int) -> list[int]:
    """Return at most `max_groups` lengths, ascending, such that padding each row to the next costs the fewest tokens.

    `num_rows` counts the rows of each length. Dynamic programming over the lengths that occur.
    """
    lengths, rows_before = sorted(num_rows), [0]
    for length in lengths:
        rows_before.append(rows_before[-1] + num_rows[length])
    # best[end]: the fewest tokens for the rows of the first `end` lengths, and the lengths they are padded to
    best: list[tuple[int, list[int]]] = [(0, [])]
    best += [(length * rows_before[end], [length]) for end, length in enumerate(lengths, 1)]
    for _ in range(max_groups - 1):
        best = best[:1] + [
            min(
                (tokens + length * (rows_before[end] - rows_before[start]), [*padded, length])
                for start, (tokens, padded) in enumerate(best[:end])
            )
            for end, length in enumerate(lengths, 1)
        ]
    return best[-1][1]
