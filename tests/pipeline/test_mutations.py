"""Files with flipped bits, cuts, holes and swapped boxes: none ends the worker, hangs or is a mistake of ours.

`python jobs/benchmark.py mutations` compares 10,000 of them with the ffmpeg command's frames.
"""

from __future__ import annotations

import collections
import time

import numpy as np

from jobs.benchmarks.mutations import LIMITS, kind_of, mutated, originals, probed
from pipeline.records import Reason

COUNT = 300


def test_no_mutated_file_ends_the_worker_or_is_a_mistake_of_ours() -> None:
    outcomes, slowest = collections.Counter(), 0.0
    names = sorted(originals())
    for number in range(COUNT):
        name = names[number % len(names)]
        data = mutated(originals()[name], np.random.default_rng((7, number)))
        start = time.monotonic()
        outcomes[probed(data, kind_of(name))] += 1
        slowest = max(slowest, time.monotonic() - start)
    assert "failed" not in outcomes
    assert outcomes.keys() <= {"usable", *Reason}
    assert outcomes["usable"] > COUNT // 10
    assert outcomes.total() - outcomes["usable"] > COUNT // 3
    assert slowest < 2 * LIMITS.seconds + 2  # each file is tried twice


def test_every_original_is_usable() -> None:
    assert {name: probed(data, kind_of(name)) for name, data in originals().items()} == dict.fromkeys(
        originals(), "usable"
    )
