"""Rows grouped by the length of their captions, against every other way of grouping them."""

from __future__ import annotations

from itertools import combinations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stream.lengths import group_by_length

Lengths = st.lists(st.integers(2, 12), min_size=1, max_size=10)


@given(Lengths, st.integers(1, 5))
def test_every_row_is_in_one_group_that_is_as_long_as_its_longest(num_tokens: list[int], most: int) -> None:
    groups = group_by_length(num_tokens, most)
    assert len(groups) <= most
    assert sorted(torch.cat([group.rows for group in groups]).tolist()) == list(range(len(num_tokens)))
    for group in groups:
        assert max(num_tokens[row] for row in group.rows.tolist()) == group.num_tokens


@given(Lengths, st.integers(1, 5))
def test_no_other_grouping_has_fewer_tokens(num_tokens: list[int], most: int) -> None:
    lengths = sorted(set(num_tokens))
    choices = [
        (*some, lengths[-1]) for count in range(min(most, len(lengths))) for some in combinations(lengths[:-1], count)
    ]
    fewest = min(sum(min(end for end in ends if end >= n) for n in num_tokens) for ends in choices)
    assert sum(len(group.rows) * group.num_tokens for group in group_by_length(num_tokens, most)) == fewest
