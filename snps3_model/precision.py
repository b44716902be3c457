"""Single precision for small differences of large numbers, whatever the precision of the surrounding network."""

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
    """Run `function` outside autocast, with 16-bit tensors cast to single precision; double stays double.

    Needed where the true score is subtracted from a log-sum-exp, and for scores divided by a temperature: with the 8
    significant bits of bfloat16 a score of 20 is off by 0.06, more than a small loss, and its gradient is arbitrary.
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
