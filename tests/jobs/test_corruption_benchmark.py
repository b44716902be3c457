"""Every kind of damage ends in the ledger under its own reason, before prepare and after it."""

from __future__ import annotations

import pytest

from jobs.benchmarks.corruption import DAMAGES, corruption


@pytest.mark.ray
def test_each_damaged_file_is_recorded_and_each_good_one_comes_through(local_ray) -> None:
    # a good clip that exceeds the limit twice in a row on a busy machine would be in one ledger and not in the other
    found = corruption(num_clips=30, shares=(0.2,), time_limit_seconds=2.0)
    assert found["20%/recorded_fraction"] == 1.0
    assert found["20%/num_injected"] == 2 * len(DAMAGES)
    # two passes: the good clips of prepare, and those of the training stream
    assert found["20%/num_good_usable"] == found["20%/num_good"] == 2 * (30 - len(DAMAGES))
    assert [found[f"20%/{name}"] for name in ("crashes", "nan", "black_frames")] == [0, 0, 0]
    assert found["20%/same_ledger_on_second_run"]
    assert found["20%/stops_above_share"]
    assert found["20%/prepare/rejected"] == found["20%/train/rejected"] == {str(reason): 1 for reason in DAMAGES}
