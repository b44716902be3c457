"""Where a run is, by its folder: what its processes wrote comes out again, on a disk and in a bucket."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.ray_internals import SNAPSHOT
from cluster.world import World
from jobs.launch import lease, run_status
from jobs.launch.run_status import RunConfig, describe, folder_of, read_run, request_stop
from jobs.run import run_files
from jobs.tracking import status_file
from jobs.tracking.journal import Journal, newest_lines
from jobs.tracking.status_file import STATUS, StatusFile, read_status
from jobs.training.requests import Requests, StopRequest
from jobs.training.trainer import LostWork
from pipeline import storage
from pipeline.corpus.ledger import write_ledger
from pipeline.records import Reason, Rejected, Stage

AT = {"step": 47, "loss": 3.25, "clips_per_second": 81.4, "data_wait_share": 0.31, "seconds_per_step": 0.8}
AT |= {"num_ranks": 2, "seconds_left": 3725.2, "num_steps": 60, "rejected": 2}


def make_run(folder: str) -> None:
    """Write what a run of 60 steps leaves that lost a rank at step 48, while its checkpoint of step 45 was uploaded."""
    run_files.write_json(f"{folder}/{run_files.IDENTITY}", {})
    run_files.write_json(
        f"{folder}/{run_files.CONFIG}", {"optim": {"num_steps": 60}, "data": {"manifest": "corpora/toy/manifest@2"}}
    )
    progress = {"step": 40, "best_score": 0.625, "best_step": 20, "is_finished": False}
    run_files.write_json(f"{folder}/checkpoint_2/{run_files.PROGRESS}", progress)
    run_files.write_json(f"{folder}/{SNAPSHOT}", {"latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_2"}})
    status = StatusFile(folder)
    status.update(**AT)
    assert status.writing
    status.writing.join()
    rejected = [
        Rejected(clip_id=number, uri=f"/v/{number}.mp4", stage=Stage.TRAIN, reason=Reason.TRUNCATED, detail="cut")
        for number in (1, 2)
    ]
    write_ledger(rejected, f"{folder}/ledger.parquet")
    earlier = Journal(folder, "rank-0")
    for events in ((("checkpoint", 40),), (("checkpoint", 45), ("step", 48))):
        for event, step in events:
            earlier.note(event, step=step)
        earlier.flush()
    lost = LostWork.after(40, read_status(folder), newest_lines(folder, "rank-0"))
    for who in ("rank-0", "rank-1"):
        journal = Journal(folder, who)
        journal.note("start", step=40, num_ranks=2, **dataclasses.asdict(lost))
        journal.note("step", step=41)
        journal.flush()
    controller = Journal(folder, "controller")
    controller.note("lost", rank=1, cause="RayActorError: \nThe actor died: its node was cut off")
    controller.flush()


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The folder of the run `first`."""
    root = str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")
    make_run(f"{root}/first")
    return f"{root}/first"


def acquire(folder: str) -> Callable[[float], None]:
    """Have the run's folder leased; return what lets time pass for its owner, who renews the lease."""
    owner = lease.this_process()
    storage.write_bytes_atomic(f"{folder}/{lease.LEASE}", owner.to_bytes())

    def pass_time(seconds: float) -> None:
        del seconds
        renewed = dataclasses.replace(owner, num_renewals=owner.num_renewals + 1)
        storage.write_bytes_atomic(f"{folder}/{lease.LEASE}", renewed.to_bytes())

    return pass_time


def wait(seconds: float) -> None:
    """Nobody does anything meanwhile."""


def test_the_status_is_what_the_processes_of_the_run_wrote(folder: str) -> None:
    stopped = read_run(folder, wait=wait)
    assert (stopped.state, stopped.num_steps, stopped.checkpoint) == ("stopped", 60, "checkpoint_2")
    assert {name: stopped.at[name] for name in AT} == AT
    assert (stopped.committed["step"], dict(stopped.rejected)) == (40, {Reason.TRUNCATED: 2})
    assert [event["event"] for event in stopped.events] == ["start", "lost"]

    running = read_run(folder, wait=acquire(folder))
    words = describe(running)
    assert running.state == "running"
    assert f"process {lease.this_process().pid} on" in words
    for part in (
        "manifest  corpora/toy/manifest@2",
        "step      47 of 60",
        "81 clips/s, 0.80 s per step, waiting for data 31 %, 2 ranks, loss 3.250",
        "left      1:02:05",
        "saved     step 40, checkpoint_2, best score 0.625 at step 20",
        f"rejected  truncated 2; {folder}/ledger.parquet",
        "2 ranks began after step 40; the checkpoint of step 45 was not uploaded to its end; "
        "8 steps after it had been done and are done again",
        "rank 1 was lost: The actor died: its node was cut off",
    ):
        assert part in words

    silent = read_run(folder, wait=wait, answer_seconds=2)
    assert silent.state == "silent"
    assert "the same command goes on" in describe(silent)
    run_files.write_json(f"{folder}/results.json", {})
    assert read_run(folder, wait=wait).state == "finished"


def test_a_run_that_failed_says_why(folder: str) -> None:
    run_files.write_json(f"{folder}/{run_files.FAILURE}", {"error": "loss/total not finite at step 3"})
    failed = read_run(folder, wait=wait)
    assert failed.state == "failed"
    assert "error     loss/total not finite at step 3" in describe(failed)


def test_a_stop_reaches_the_ranks_and_is_refused_for_a_run_that_has_ended(folder: str) -> None:
    with pytest.raises(ValueError, match="first has no driver: it is stopped already, at step 40"):
        request_stop(folder)
    acquire(folder)

    class Quiet:
        world = World(rank=0, size=1, device=None)  # pyright: ignore[reportArgumentType]

        def is_preempted(self) -> bool:
            return False

    assert Requests(folder, Quiet(), 40).poll(41) == StopRequest.NONE  # pyright: ignore[reportArgumentType]
    assert "was asked to stop" in request_stop(folder)
    assert Requests(folder, Quiet(), 40).poll(41) == StopRequest.STOP  # pyright: ignore[reportArgumentType]
    run_files.write_json(f"{folder}/results.json", {})
    with pytest.raises(ValueError, match="first is finished"):
        request_stop(folder)


def test_a_run_is_named_by_its_name_or_folder_and_a_wrong_one_is_answered_with_the_nearest(folder: str) -> None:
    root = folder.rpartition("/")[0]
    assert folder_of(RunConfig(run="first", storage=root)) == folder
    assert folder_of(RunConfig(run=f"{folder}/")) == folder
    with pytest.raises(ValueError, match=r"has no run 'frist'; did you mean first\?"):
        folder_of(RunConfig(run="frist", storage=root))
    with pytest.raises(ValueError, match="has no run 'xyz'; it has first"):
        folder_of(RunConfig(run="xyz", storage=root))
    with pytest.raises(ValueError, match="it has none"):
        folder_of(RunConfig(run="first", storage=f"{root}/nowhere"))


def test_the_status_file_is_rewritten_every_so_often_and_training_waits_for_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[dict[str, Any]] = []

    def fail(path: str, data: bytes) -> None:
        written.append(json.loads(data))
        raise OSError("the store is gone")

    assert read_status(str(tmp_path)) == {}
    status = StatusFile(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(status_file.storage, "write_bytes_atomic", fail)
        for step in range(5):
            status.update(step=step)
        assert status.writing
        status.writing.join()
    assert [values["step"] for values in written] == [0]
    status.written_at -= status_file.EVERY_SECONDS
    status.update(step=5)
    status.writing.join()
    assert read_status(str(tmp_path))["step"] == 5
    status.update(step=6)
    status.update(is_last=True, step=7)
    status.writing.join()
    assert read_status(str(tmp_path))["step"] == 7
    (tmp_path / STATUS).write_text("{")
    assert read_status(str(tmp_path)) == {}


def test_the_wait_for_an_answer_is_longer_than_a_renewal_takes() -> None:
    assert run_status.ANSWER_SECONDS > lease.RENEW_SECONDS
