"""Published scores in per cent: R@1, 5 and 10 of retrieval, accuracy of other tasks.

From Table I of the paper (SNP-S3, IEEE TCSVT 2023) or, where marked, from the papers of other methods, with about five
million pre-training pairs. They are fine-tuned unless marked zero-shot, single runs without intervals, on the data
sets' test splits. Rows with only one known figure are omitted. VATEX has no full row of a method with comparable data.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.run.datasets import TestSet

FILE = Path(__file__).with_name("published_scores.json")
"""Title of the test set → method → scores, in the order of the table's columns."""


def published_scores(test: TestSet) -> Mapping[str, Sequence[float]]:
    """Return the published scores on a test set by method, with those that a plug-in's test set brings."""
    return _all_scores().get(test.title, {}) | dict(test.scores)


@functools.cache
def _all_scores() -> dict[str, dict[str, Sequence[float]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))
