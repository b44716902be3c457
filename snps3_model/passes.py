"""Passes of rows through the network in parts.

| function | purpose |
|---|---|
| `in_chunks` | more rows than fit in memory: features of a few at a time, recomputed for their gradient |
| `by_length` | little padding: captions of similar length together, each group as wide as its longest |

A contrastive loss compares all rows of the batch, so gradients of smaller batches do not add up to its gradient. Here
the loss sees the whole batch; only the computation of its features is split (Gao et al., RepL4NLP 2021).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.records import Batch, LengthGroup

Features = TypeVar("Features")
"""A tensor, or a dataclass or tuple of tensors."""


def in_chunks(function: Callable[..., Features], *rows: Tensor, size: int | None) -> Features:
    """Return `function(*rows)`, computed on at most `size` rows at a time; None takes all at once.

    `function` treats each row independently and returns tensors of as many rows, alone or in tuples or dataclasses.
    Between forward and backward pass only its results stay in memory; the recomputation repeats its random draws.
    """
    if size is None or len(rows[0]) <= size:
        return function(*rows)
    parts = zip(*(tensor.split(size) for tensor in rows), strict=True)
    return combined([checkpoint(function, *part, use_reentrant=False) for part in parts], torch.cat)


def by_length(function: Callable[[LengthGroup], Features], groups: Sequence[LengthGroup]) -> Features:
    """Apply `function` to each of `groups`; return the rows of the results in the order of the batch."""
    if len(groups) == 1:
        return function(groups[0])
    order = torch.cat([group.rows for group in groups]).argsort()
    return combined([function(group) for group in groups], lambda parts: torch.cat(parts).index_select(0, order))


def groups_of(batch: Batch, num_versions: int = 1) -> list[LengthGroup]:
    """Return the length groups of `batch`, or one group of all rows. If `num_versions` versions of its captions are
    stacked, a group holds every version of its captions."""
    B, L = batch.token_ids.shape
    every_row = LengthGroup(rows=torch.arange(B, device=batch.token_ids.device), num_tokens=L)
    return [
        LengthGroup(
            rows=torch.cat([group.rows + B * version for version in range(num_versions)]), num_tokens=group.num_tokens
        )
        for group in batch.length_groups or (every_row,)
    ]


def combined(parts: Sequence[Any], combine: Callable[[list[Tensor]], Tensor]) -> Any:
    """Apply `combine` to the corresponding tensors of `parts`; return a structure like that of a part."""
    first = parts[0]
    if isinstance(first, Tensor):
        return combine(list(parts))
    if isinstance(first, tuple):
        return tuple(combined(members, combine) for members in zip(*parts, strict=True))
    names = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: combined([getattr(part, name) for part in parts], combine) for name in names})
