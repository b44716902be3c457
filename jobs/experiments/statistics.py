"""Statistics over seeds: means with intervals, paired differences, and the seeds needed to resolve a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.tracking import voice


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean, its 95 % interval (Student's t) and the values; for fewer than three, the interval is the
    range."""
    mean, low, high = float(np.mean(values)), min(values), max(values)
    if len(values) > 2:
        half = float(quantile(len(values)) * np.std(values, ddof=1) / math.sqrt(len(values)))
        low, high = mean - half, mean + half
    return {"mean": mean, "interval": [low, high], "seeds": list(values)}


def quantile(num_seeds: int | np.ndarray) -> Any:
    """Return the 97.5 % quantile of Student's t for a mean over `num_seeds`."""
    from scipy.stats import t

    return t.ppf(0.975, num_seeds - 1)


def spread(values: Sequence[float], num_seeds: int) -> str:
    """Return a mean and its interval as text, with the number of seeds if that is not `num_seeds`."""
    if not values:
        return "not run"
    is_count = min(values) == max(values) and float(values[0]).is_integer()  # such as of parameters
    if len(values) == 1:
        return f"{values[0]:{',.0f' if is_count else '.4g'}}{' (1 seed)' if num_seeds != 1 else ''}"
    count = f" ({len(values)} seeds{', range' if len(values) < 3 else ''})" if len(values) != num_seeds else ""
    if is_count:
        return f"{values[0]:,.0f}{count}"
    statistics = over_seeds(values)
    low, high = statistics["interval"]
    return f"{statistics['mean']:.4g} [{low:.4g}, {high:.4g}]{count}"


def resolution(num_seeds: int) -> str:
    """Return a sentence on the difference that `num_seeds` can resolve; empty for fewer than three, which have no
    interval."""
    if num_seeds < 3:
        return ""
    smallest = quantile(num_seeds) / math.sqrt(num_seeds)
    return (
        f" {num_seeds} seeds tell a difference from 0 if it is {smallest:.2f} times its own spread over seeds or more"
    )


def difference(scores: Mapping[int, float], baseline: Mapping[int, float]) -> str:
    """Return the paired difference of scores by seed as text; for three or more seeds, also how many would settle its
    sign."""
    values = [scores[seed] - baseline[seed] for seed in sorted(scores.keys() & baseline.keys())]
    if not values:
        return "not run"
    text = f"{spread(values, len(values))} over {voice.counted(len(values), 'seed')}"
    if len(values) < 3:
        return text if len(values) == 1 else f"{text}, range"
    needed = seeds_needed(values)
    enough = f"about {needed} seeds" if needed else "more seeds than are of use"
    return f"{text}; {enough} would settle its sign, with even odds, if it is as large as that"


def seeds_needed(values: Sequence[float], most: int = 10_000) -> int | None:
    """Return the number of seeds for which the 95 % interval of a mean like that of `values` excludes 0; None if more
    than `most`."""
    mean, deviation = abs(float(np.mean(values))), float(np.std(values, ddof=1))
    counts = np.arange(2, most + 1)
    settled = quantile(counts) * deviation / np.sqrt(counts) < mean
    return int(counts[settled.argmax()]) if settled.any() else None
