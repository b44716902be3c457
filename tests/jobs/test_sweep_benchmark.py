from __future__ import annotations

import pytest

from jobs.benchmarks.sweep_cost import in_random_orders, shown_to_asha

GOOD, FAIR, BAD = ([(step, level * step / 90) for step in (10, 30, 60, 90)] for level in (0.9, 0.6, 0.3))


def test_what_asha_saves_depends_on_which_trial_comes_first() -> None:
    assert shown_to_asha([GOOD, FAIR, BAD], 90) == (0.9, 90 + 10 + 10)
    assert shown_to_asha([BAD, FAIR, GOOD], 90) == (0.9, 3 * 90)  # each is the best so far
    found = in_random_orders([GOOD, FAIR, BAD], 90)
    assert found["asha_over_grid"]["range"] == [0.0, 0.0]
    assert found["steps_fraction"]["range"] == pytest.approx([110 / 270, 1.0])
    assert 110 / 270 < found["steps_fraction"]["mean"] < 1
