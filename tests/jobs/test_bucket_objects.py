"""`bucket-objects`: what stands in for decoding finds what decoding finds, and its kills are where it says."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import pytest

from jobs.benchmarks.bucket_objects import lost_and_doubled, objects_in, used
from jobs.benchmarks.prepare_scale import write_captions
from jobs.benchmarks.support import bucket_run
from jobs.benchmarks.support.prepare_run import name_of
from jobs.benchmarks.support.search_run import in_turn
from jobs.benchmarks.support.small_objects import NUM_VIDEOS, upload
from jobs.corpus.preparation import PrepareConfig, prepare
from pipeline.corpus.manifest import read_manifest
from pipeline.offline import stages
from tests.jobs.test_s3_benchmark import measured

NUM_OBJECTS = 3 * NUM_VIDEOS


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "stream_blocks", in_turn)
    monkeypatch.setattr("cluster.connection.connected_ray", contextlib.nullcontext)


@pytest.fixture
def objects(tmp_path: Path) -> tuple[str, str]:
    """The captions and the folder of a few objects."""
    assert upload(str(tmp_path / "videos"), NUM_OBJECTS) == NUM_OBJECTS
    write_captions(tmp_path / "captions.csv", NUM_OBJECTS)
    return str(tmp_path / "captions.csv"), str(tmp_path / "videos")


def run(objects: tuple[str, str], out: Path, stage: str = "", is_fetched: bool = True) -> dict:
    return bucket_run.measured(*objects, str(out), NUM_OBJECTS, stage, is_fetched)


def test_what_is_found_without_decoding_is_what_decoding_finds(objects: tuple[str, str], tmp_path: Path) -> None:
    captions, root = objects
    decoded = prepare(
        PrepareConfig(corpus="objects", root=root, out=str(tmp_path / "d"), annotations=(captions,), in_parts=True)
    )
    expected = read_manifest(decoded.manifest_path).table
    assert len(expected) == NUM_OBJECTS
    assert len(set(expected["checksum"].to_pylist())) == NUM_VIDEOS
    for is_fetched in (True, False):
        done = run(objects, tmp_path / str(is_fetched), is_fetched=is_fetched)
        assert done["manifest_hash"] == decoded.manifest_hash
        assert read_manifest(str(tmp_path / str(is_fetched) / "manifest")).table.equals(expected)
        assert done["seconds"].keys() == done["driver_cpu_seconds"].keys() == {*bucket_run.STAGES}


@pytest.mark.parametrize(
    ("stage", "there"),
    [
        ("listing", {"parts": 0, "index": 0, "kept": 0}),
        ("looking", {"parts": 0, "index": 0, "kept": 2}),
        ("writing", {"parts": 1, "index": 0, "kept": 3}),
    ],
)
def test_a_job_is_killed_in_the_middle_of_a_stage_and_goes_on(
    stage: str, there: dict[str, int], objects: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bucket_run, "die", die)
        with pytest.raises(KeyboardInterrupt):
            run(objects, tmp_path / "killed", stage)
    assert objects_in(str(tmp_path / "killed")) == there
    assert run(objects, tmp_path / "killed")["manifest_hash"] == run(objects, tmp_path / "whole")["manifest_hash"]


def test_objects_of_another_measurement_are_refused(objects: tuple[str, str]) -> None:
    assert upload(objects[1], NUM_OBJECTS) == 0
    with pytest.raises(ValueError, match=f"has 3 more objects than {NUM_OBJECTS - 3}, as .*: name another"):
        upload(objects[1], NUM_OBJECTS - 3)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([0, 1, 2], {"lost": 0, "doubled": 0}),
        ([0, 2], {"lost": 1, "doubled": 0}),
        ([0, 1, 1, 1, 2], {"lost": 0, "doubled": 2}),
        ([0, 1, 7], {"lost": 1, "doubled": 1}),
    ],
)
def test_lost_and_doubled_rows_are_counted(rows: list[int], found: dict[str, int]) -> None:
    assert lost_and_doubled(Counter(map(name_of, rows)), set(map(name_of, range(3)))) == found


def test_a_process_counts_at_its_highest_memory_and_its_last_time() -> None:
    samples = [
        (0.0, {1: ("driver", 5 * 2**20, 1.0), 2: ("task", 2**20, 0.5)}),
        (1.0, {1: ("driver", 4 * 2**20, 2.0), 3: ("task", 7 * 2**20, 0.25)}),
    ]
    assert used(samples) == {"largest_mib": 7.0, "largest": "task", "cpu_seconds": {"driver": 2.0, "task": 0.8}}


@pytest.mark.nightly  # three corpora wait half a minute each for the lease of a driver that was killed
@pytest.mark.slow
@pytest.mark.ray
def test_killed_jobs_on_a_bucket_make_the_same_manifest(bucket: str) -> None:
    found = measured("bucket-objects", "--num-objects", "60", "--folder", bucket)
    assert (found["is_equal"], found["lost"], found["doubled"]) == (True, 0, 0)
    attempts = [one for corpus in found["corpora"].values() for one in corpus["attempts"]]
    assert [one["killed_in"] for one in attempts] == [None, "listing", None, "looking", "writing", None]
    assert not any(one["num_processes_left"] for one in attempts)
