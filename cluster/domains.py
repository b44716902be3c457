"""Domains of a sweep's search space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range of numbers, both ends included."""

    low: float
    high: float
    is_log: bool = False
    """Sample uniformly in the logarithm."""
    is_integer: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range needs a lower and a higher number, got {self.low:g}..{self.high:g}")
        if self.is_integer and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(f"a range of whole numbers ends at whole numbers, got {self.low:g}..{self.high:g}:int")
        if self.is_log and self.low <= 0:
            raise ValueError(f"a range in equal ratios begins above 0, got {self.low:g}..{self.high:g}:log")

    def points(self, count: int) -> tuple[float, ...]:
        """Return `count` evenly spaced values from one end to the other."""
        values = (np.geomspace if self.is_log else np.linspace)(self.low, self.high, count).tolist()
        return tuple(dict.fromkeys(round(value) for value in values)) if self.is_integer else tuple(values)

    @property
    def corners(self) -> tuple[float, ...]:
        """Values most likely to violate a constraint: both ends and, unless the range is of integers, a fraction."""
        between = self.low + (self.high - self.low) / math.pi
        return (self.low, self.high) if self.is_integer else (self.low, self.high, between)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values."""

    values: Sequence[Any]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(f"a choice needs two values at least, got {list(self.values)}")
        if twice := [value for number, value in enumerate(self.values) if value in self.values[:number]]:
            raise ValueError(f"{twice[0]} stands twice among {list(self.values)}")

    def points(self, count: int) -> tuple[Any, ...]:
        """Return all values, whatever the `count`."""
        del count
        return tuple(self.values)

    @property
    def corners(self) -> tuple[Any, ...]:
        """All values."""
        return tuple(self.values)


Domain = Range | Choice
