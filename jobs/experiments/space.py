"""Search spaces: fields of the configuration by dotted names, and the domain of each.

masking.ratio=0.1..0.6   optim.lr=1e-4..3e-3:log   text.num_words=1..5:int   objective.lvwm_stage=after,both
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cluster.domains import Choice, Domain, Range
from jobs.run.config import PretrainConfig
from jobs.run.fields import current_name
from pipeline.nearest import did_you_mean
from snps3_model.loss_table import PAPER_ORDER

WEIGHTS = tuple(f"objective.{loss.name}" for loss in PAPER_ORDER if not loss.needs_temporal)

SPACES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "masking_ratio": ("masking.ratio=0.1..0.6",),
        "significant_words": ("masking.strategy=mssm,mlm", "masking.top_k=10,30,100,None"),
        "significant_share": ("masking.significant_share=0.0..1.0",),
        "replacement": ("masking.mask_share=0.5..0.9", "masking.random_share=0.0..0.1"),
        "lvwm": ("objective.lvwm=0.0..2.0", "text.num_words=1..5:int", "objective.lvwm_stage=after,before,both"),
        "loss_weights": tuple(f"{name}=0.1..10:log" for name in WEIGHTS),
        "temperature": ("objective.temperature=0.02..0.2:log",),
        "learning_rate": ("optim.lr=1e-4..5e-3:log", "optim.weight_decay=1e-4..1e-1:log"),
        "mssm_and_lvwm": (
            "masking.ratio=0.1..0.6",
            "objective.masked_words_cross=0.1..10:log",
            "objective.lvwm=0.1..10:log",
        ),
    }
)
"""Preset spaces by name."""
MOST_TOGETHER = 1000
"""Limit of the combinations of other fields that are tried with a value that is invalid in the base alone."""


def parse(texts: Sequence[str]) -> dict[str, Domain]:
    """Return the domain of each field. Raise ValueError that names an invalid text."""
    space: dict[str, Domain] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = current_name(name)
        if not values:
            raise ValueError(f"a part of a space is FIELD=LOW..HIGH or FIELD=VALUE,VALUE, got {text!r}")
        if name in space:
            raise ValueError(f"{name} stands twice in the space")
        try:
            space[name] = domain(values)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return space


def domain(text: str) -> Domain:
    """Parse `LOW..HIGH`, with `:log` for a logarithmic scale or `:int` for integers, or comma-separated values."""
    if ".." not in text:
        return Choice(values=tuple(map(value, text.split(","))))
    bounds, *marks = text.split(":")
    if unknown := set(marks) - {"log", "int"}:
        raise ValueError(f"a range may be :log or :int, got :{unknown.pop()}")
    low, _, high = bounds.partition("..")
    try:
        return Range(low=float(low), high=float(high), is_log="log" in marks, is_integer="int" in marks)
    except ValueError as error:
        if "could not convert" in str(error):
            raise ValueError(f"a range is between two numbers, got {bounds!r}") from error
        raise


def value(text: str) -> Any:
    """Parse a number, None, True or False; return any other text as it is."""
    plain = {"None": None, "True": True, "False": False}
    if text in plain:
        return plain[text]
    return json.loads(text) if re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", text) else text


@dataclass(frozen=True, kw_only=True)
class Corner:
    """A value of a varied field that is likely to violate a constraint, and a run with it."""

    field: str
    value: Any
    run: PretrainConfig


def corners(space: Mapping[str, Domain], fields: Collection[str], make: Callable[..., PretrainConfig]) -> list[Corner]:
    """Return the corners of a space. All other fields are those of the base or, if that combination is invalid, have
    values of the other varied fields.

    `fields`: dotted names of the base's fields; `make`: returns the base with given values and a name. Raise ValueError
    for an unknown field, with the nearest name, or for a value that is invalid in every combination.
    """
    if kept := [name for name in space if name == "name" or name.startswith("placement.")]:
        raise ValueError(f"{kept[0]} changes nothing that is computed, so it cannot be varied; set it for all runs")
    for name in space:
        if name not in fields:
            hint = did_you_mean(name, fields, cutoff=0.5)
            raise ValueError(f"the configuration has no field {name!r}; {hint}".rstrip("; "))
    every = []
    for name, choices in space.items():
        others = {other: its.corners for other, its in space.items() if other != name}
        points = itertools.islice(itertools.product(*others.values()), MOST_TOGETHER)
        together = [dict(zip(others, point, strict=True)) for point in points]
        for corner in choices.corners:
            try:
                run = _first_valid(make, [{**values, name: corner} for values in ({}, *together)])
            except ValueError as error:
                shown = f"{corner:g}" if isinstance(corner, float) else corner
                hint = "; is it a range of whole numbers, LOW..HIGH:int?" if "valid integer" in str(error) else ""
                raise ValueError(f"{name} cannot be {shown}: {error}{hint}") from error
            every.append(Corner(field=name, value=corner, run=run))
    return every


def _first_valid(make: Callable[..., PretrainConfig], candidates: Sequence[Mapping[str, Any]]) -> PretrainConfig:
    """Return the run of the first valid candidate; raise the first candidate's ValueError if none is valid."""
    errors: list[ValueError] = []
    for values in candidates:
        try:
            return make(values, name="corner")
        except ValueError as error:
            errors.append(error)
    raise errors[0]
