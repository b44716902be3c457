"""Times of training steps. Imports no project code, since a program that runs on another version's tree uses it too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

WARM_STEPS = 2


def timed(steps: Iterable[tuple[dict[str, Any], Any]]) -> dict[str, float]:
    """Return median seconds and mean CPU seconds of a step after the warm-up steps, and the first loss."""
    seconds, losses, cpu, start = [], [], time.process_time(), time.perf_counter()
    for number, (metrics, _) in enumerate(steps):
        losses.append(metrics["loss/total"].item())
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        if number + 1 == WARM_STEPS:
            cpu = time.process_time()
    kept = seconds[WARM_STEPS:]
    return {
        "seconds": statistics.median(kept),
        "cpu": (time.process_time() - cpu) / len(kept),
        "loss": losses[0],
    }
