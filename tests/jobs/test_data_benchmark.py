from __future__ import annotations

import contextlib

import numpy as np
import pytest

from jobs.benchmarks import data_path
from jobs.benchmarks.data_path import Clips, decode_step, delivered, made_clips, pool_rate, source_of, steady_rate
from jobs.benchmarks.support.fixtures import json_of_child
from pipeline.corpus import media
from pipeline.decode.codec import open_video
from pipeline.records import Kind
from pipeline.stream.source import split_rows

CLIPS = Clips(count=10, width=64, height=48, seconds=1, fps=10)


def test_the_steady_rate_leaves_out_the_start():
    arrivals = [(100.0, 4)] + [(200.0 + index / 2, 4) for index in range(21)]
    assert steady_rate(arrivals) == pytest.approx(8.0)


@pytest.fixture
def pool(monkeypatch):
    """The processes of all pools of a test: each start imports torch and Ray anew."""
    with data_path.process_pool() as processes:
        monkeypatch.setattr(data_path, "process_pool", lambda: contextlib.nullcontext(processes))
        yield


@pytest.mark.ray
def test_what_the_pool_decodes_is_delivered_by_ray(tmp_path, local_ray, pool):
    manifest = made_clips(CLIPS, str(tmp_path))
    rows = split_rows(manifest, "train")[Kind.VIDEO].to_pylist()
    assert len(rows) == CLIPS.count
    looks = []
    for row in rows[:4]:
        data = media.read(row["uri"])
        with open_video(data) as video:
            frames = video.frames([0, 9])
        assert np.abs(frames[0].astype(int) - frames[1]).mean() > 1  # it moves
        looks.append(frames[0])
    assert all(np.abs(one.astype(int) - looks[0]).mean() > 5 for one in looks[1:])  # no two are alike

    source = source_of(manifest, size_px=32)
    by_pool = sum(decode_step(step, source) for step in range(3))
    found = delivered(source, 3, str(tmp_path), decode_cpus=1)
    assert by_pool == sum(count for _, count in found["arrivals"]) == CLIPS.count
    assert found["started"] < found["arrivals"][0][0]
    assert pool_rate(source, 3) > 0


def test_other_loaders_deliver_every_clip(tmp_path):
    (tmp_path / "videos").mkdir()
    for index in range(5):
        data_path.write_clip(index, CLIPS, str(tmp_path / "videos"))
    arrivals = json_of_child("jobs.benchmarks.loaders", "dataloader", tmp_path, 1, 1)
    assert [count for _, count in arrivals] == [4, 1]
