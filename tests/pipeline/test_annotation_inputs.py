"""Captions, folders and tars as people have them: read in full, or refused with a remedy that works."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.benchmarks.support.annotation_case import Case, verdict
from jobs.benchmarks.support.published_captions import published
from jobs.benchmarks.support.recent_captions import recent
from jobs.benchmarks.support.untidy_captions import untidy


@pytest.mark.parametrize("case", [*published(), *untidy(), *recent()], ids=lambda case: case.name)
def test_a_corpus_as_people_have_it(case: Case, tmp_path: Path) -> None:
    assert verdict(case, tmp_path) == ("refused_with_working_remedy" if case.refusal else "read")
