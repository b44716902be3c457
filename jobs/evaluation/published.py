"""Scores that others have published, in per cent: R@1, 5 and 10 of retrieval, accuracy of other tasks.

From Table I of the paper (SNP-S3, IEEE TCSVT 2023), and from others' own papers where marked, of about five million
pairs of pre-training. They are fine-tuned unless they say zero-shot, single runs without intervals, on the data sets'
test splits; rows of which only one figure is known are left out. VATEX: nobody of comparable data has a full row.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.run.datasets import TestSet

FILE = Path(__file__).with_name("published_scores.json")
"""Scores by title of the test set and by method, in the order of its table."""


def published_scores(test: TestSet) -> Mapping[str, Sequence[float]]:
    """Return the published scores on a test set by method; of a plug-in those that it brings along."""
    return _all_scores().get(test.title, {}) | dict(test.scores)


@functools.cache
def _all_scores() -> dict[str, dict[str, Sequence[float]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))
