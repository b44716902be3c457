"""Single precision for what is a small difference of large numbers, whatever the network around it computes in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
HALF = (torch.bfloat16, torch.float16)


def in_single_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return `function` computed outside autocast, on tensors of 16 bits made single ones; double ones stay.

    For a log-sum-exp from which the true score is taken away, and for scores divided by a temperature: eight bits of a
    score of 20 are wrong by 0.06, which is more than a small loss, and its gradient points anywhere.
    """

    call: Callable[..., Result] = function

    @functools.wraps(function)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device.type, enabled=False):
            return call(*map(_single, args), **{name: _single(value) for name, value in kwargs.items()})

    return wrapped


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value
