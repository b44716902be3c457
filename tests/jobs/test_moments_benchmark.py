"""What counts as a hit, against the time that a clip and a moment share, counted in small steps."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.benchmarks.moments import JoinedClip, is_hit, measured
from jobs.serving.library import Moment

CLIP = JoinedClip(name="a.mp4", start_seconds=10.0, end_seconds=12.0, caption="a ring rises")


def moment(start: float, end: float, name: str = "a.mp4") -> Moment:
    times = {"start_seconds": start, "end_seconds": end}
    return Moment(row=0, file=0, name=name, kind="video", score=0.0, dual=0.0, cross=None, **times)


@pytest.mark.parametrize("start", [7.9, 9.0, 9.1, 10.0, 10.9, 11.1, 12.5])
@pytest.mark.parametrize("length", [0.5, 1.0, 2.0, 3.9, 4.1])
def test_a_hit_covers_half_of_the_clip_and_is_at_most_twice_as_long(start: float, length: float) -> None:
    instants = np.arange(9.9995, 12.0005, 0.001)
    instants = instants[(instants >= 10) & (instants < 12)]
    share = ((instants >= start) & (instants < start + length)).mean()
    assert is_hit(CLIP, moment(start, start + length)) == (share >= 0.4999 and length <= 4.0)


def test_hits_are_counted_over_all_questions_and_seconds_over_answers_in_the_right_file() -> None:
    wrong, near, far = moment(10.0, 12.0, "b.mp4"), moment(10.5, 12.5), moment(30.0, 32.0)
    result = measured([CLIP] * 4, [[near], [wrong, far, near], [wrong], [far]])
    assert (result["hit_at_1"], result["hit_at_5"]) == (0.25, 0.5)
    assert (result["seconds_off"], result["share_in_file"]) == (20.0, 0.75)
