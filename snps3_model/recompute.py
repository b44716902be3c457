"""More rows than fit in memory: features of a few rows at a time, computed again when their gradient is wanted.

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
    return joined([checkpoint(function, *part, use_reentrant=False) for part in parts])


def joined(parts: Sequence[Any]) -> Any:
    """The rows of `parts`, one after the other, in the shape of a part."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, tuple):
        return tuple(joined(members) for members in zip(*parts, strict=True))
    names = [field.name for field in dataclasses.fields(first)]
    return type(first)(**{name: joined([getattr(part, name) for part in parts]) for name in names})
