"""How rows pass through the network when not all at once.

| what | why |
|---|---|
| `in_chunks` | more rows than fit in memory: features of a few at a time, computed again for their gradient |
| `by_length` | no padding: captions of about equal length together, each group as wide as its longest |

A contrastive loss looks at all rows of the batch, so gradients of smaller batches do not add up to its own. Here the
whole batch meets in the loss; only the way to its features is cut (Gao et al., RepL4NLP 2021).
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
    """`function(*rows)`, with at most `size` rows passing through it at a time; None takes all at once.

    `function` treats each row by itself and returns tensors of as many rows, alone or in tuples or dataclasses. Between
    the forward and the backward pass only its results stay in memory. Random draws in it are repeated.
    """
    if size is None or len(rows[0]) <= size:
        return function(*rows)
    parts = zip(*(tensor.split(size) for tensor in rows), strict=True)
    return combined([checkpoint(function, *part, use_reentrant=False) for part in parts], torch.cat)


def by_length(function: Callable[[LengthGroup], Features], groups: Sequence[LengthGroup]) -> Features:
    """`function` of each of `groups`, the rows of its results in the order that they have in the batch."""
    if len(groups) == 1:
        return function(groups[0])
    order = torch.cat([group.rows for group in groups]).argsort()
    return combined([function(group) for group in groups], lambda parts: torch.cat(parts).index_select(0, order))


def groups_of(batch: Batch, num_versions: int = 1) -> list[LengthGroup]:
    """The length groups of `batch`, or all its rows as one; with versions of its captions below each other, each group
    holds a caption in every version."""
    B, L = batch.token_ids.shape
    every_row = LengthGroup(rows=torch.arange(B, device=batch.token_ids.device), num_tokens=L)
    return [
        LengthGroup(
            rows=torch.cat([group.rows + B * version for version in range(num_versions)]), num_tokens=group.num_tokens
        )
        for group in batch.length_groups or (every_row,)
    ]


def combined(parts: Sequence[Any], combine: Callable[[list[Tensor]], Tensor]) -> Any:
    """`combine` of the tensors of `parts` that stand at the same place, in the shape of a part."""
    first = parts[0]
    if isinstance(first, Tensor):
        return combine(list(parts))
    if isinstance(first, tuple):
        return tuple(combined(members, combine) for members in zip(*parts, strict=True))
    names = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: combined([getattr(part, name) for part in parts], combine) for name in names})
