"""One driver has a run's folder: the others are refused, wait for a silent one, and a driver that lost it stops."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy import run_of

from jobs import ROOT
from jobs.launch import driver, lease, preflight
from jobs.launch.lease import EXPIRES_SECONDS, LEASE, TRUSTED_SECONDS, Lease, LeaseLostError, LeaseObserver
from pipeline import storage
from pipeline.corpus.manifest import open_manifest

QUICK = {"RENEW_SECONDS": 0.1, "EXPIRES_SECONDS": 8.0, "TRUSTED_SECONDS": 4.0, "POLL_SECONDS": 0.05}
"""Expiry has room for a renewal on S3 by a process that shares its core."""


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run's folder that does not exist yet."""
    return f"{tmp_path}/run" if request.param == "disk" else f"{request.getfixturevalue('bucket')}/run"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that expire after eight seconds."""
    for name, value in QUICK.items():
        monkeypatch.setattr(lease, name, value)


class Clock:
    """A clock that sleeping moves, and that does something at a time."""

    def __init__(self, at: float = float("inf"), action: Callable[[], object] = lambda: None) -> None:
        self.time, self.at, self.action = 100.0, at, action

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.time >= self.at:
            self.at = float("inf")
            self.action()


def taken(folder: str, clock: Clock | None = None) -> Lease:
    """The lease of a new owner on a folder that is free, or becomes free by the clock."""
    clock, owner = clock or Clock(), lease.this_process()
    return Lease(folder, owner, lease.acquire(folder, owner, now=clock.now, sleep=clock.sleep), now=clock.now)


def test_a_lease_is_judged_by_its_content_and_the_observers_clock() -> None:
    watch = LeaseObserver(b"1", since=1000.0)
    assert watch.verdict(b"1", 1000.0 + EXPIRES_SECONDS - 0.1) == "wait"
    assert watch.verdict(b"1", 1000.0 + EXPIRES_SECONDS) == "free"
    assert watch.verdict(b"2", 1000.0 + EXPIRES_SECONDS) == "alive"
    assert watch.verdict(None, 1000.0) == "free"
    assert watch.verdict(b"1", 1001.0) == "alive"  # somebody else took what was free
    assert TRUSTED_SECONDS < EXPIRES_SECONDS


def test_what_holds_something_else_is_not_written(folder: str) -> None:
    path = f"{folder}/x"
    assert not storage.write_if_unchanged(path, b"1", b"0")
    assert not storage.exists(path)
    assert storage.write_if_unchanged(path, b"1", None)
    assert not storage.write_if_unchanged(path, b"2", None)
    assert not storage.write_if_unchanged(path, b"2", b"0")
    assert storage.read_bytes(path) == b"1"
    assert storage.write_if_unchanged(path, b"2", b"1")
    assert storage.read_bytes(path) == b"2"
    assert storage.list_files(folder) == ["x"]


def test_a_store_whose_object_changed_after_it_was_read_refuses_the_write(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both conditions are the store's: the comparison on this side is made to see what was there before."""
    path = f"{bucket}/x"
    s3 = type(storage._resolve(path)[0])
    storage.write_bytes_atomic(path, b"1")
    tag = storage._resolve(path)[0].info(path)
    storage.write_bytes_atomic(path, b"2")
    monkeypatch.setattr(s3, "info", lambda self, inner: tag)
    monkeypatch.setattr(s3, "cat_file", lambda self, inner: b"1")
    assert not storage.write_if_unchanged(path, b"3", b"1")

    def nothing(self: object, inner: str) -> None:
        raise FileNotFoundError(inner)

    monkeypatch.setattr(s3, "info", nothing)
    assert not storage.write_if_unchanged(path, b"3", None)
    monkeypatch.undo()
    assert storage.read_bytes(path) == b"2"


def test_a_free_folder_is_taken_at_once_and_given_back(folder: str) -> None:
    with lease.held(folder) as held:
        held.check()
        owner = lease.owner_of(storage.read_bytes(f"{folder}/{LEASE}"))
        assert owner is not None
        assert (owner.id, owner.pid) == (held.owner.id, os.getpid())
        lease.refuse_other_owner(folder, owner.id)
    assert not storage.exists(f"{folder}/{LEASE}")


def test_a_silent_owner_is_waited_for_and_a_renewing_one_refuses(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    first = taken(folder, clock)
    start = clock.time
    second = taken(folder, clock)
    assert EXPIRES_SECONDS <= clock.time - start < EXPIRES_SECONDS + 5
    assert "waiting up to 30 s to see whether it is alive" in capsys.readouterr().out
    with pytest.raises(LeaseLostError, match=rf"was taken over by process {os.getpid()} on .*writes no more"):
        lease.refuse_other_owner(folder, first.owner.id)
    with pytest.raises(
        ValueError, match=r"has a live driver: process \d+ on .*, started at .*seen to renew .* take anoth"
    ):
        taken(folder, Clock(110.0, second.renew))
    second.check()


def test_a_lease_that_cannot_be_read_expires_too_and_one_given_back_meanwhile_is_taken_at_once(folder: str) -> None:
    storage.write_bytes_atomic(f"{folder}/{LEASE}", b"{")
    first = taken(folder, clock := Clock())
    assert clock.time >= 130.0
    taken(folder, clock := Clock(110.0, first.release))
    assert clock.time < 113.0


def test_an_owner_that_slept_finds_its_lease_taken_and_leaves_it(folder: str) -> None:
    clock, lost = Clock(), threading.Event()
    first, second = taken(folder, clock), taken(folder)
    first.on_loss = lost.set
    first.check()  # by its clock, its lease is fresh
    clock.time += TRUSTED_SECONDS + 1
    keeper = threading.Timer(0.2, first.renew)
    keeper.start()
    with pytest.raises(LeaseLostError, match="was taken over by process"):
        first.check()
    keeper.join()
    assert lost.is_set()
    first.release()
    lease.refuse_other_owner(folder, second.owner.id)
    second.renew()
    second.check()


def test_an_owner_without_its_lease_file_has_lost_it(tmp_path: Path) -> None:
    first = taken(str(tmp_path))
    (tmp_path / LEASE).unlink()
    first.renew()
    with pytest.raises(LeaseLostError, match="has lost its lease, which somebody removed"):
        first.check()


def test_a_store_that_is_gone_pauses_the_owner_until_it_is_back_or_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    first = taken(str(tmp_path), clock := Clock())
    write, is_gone = storage.write_if_unchanged, threading.Event()
    is_gone.set()

    def failing(*arguments: object) -> bool:
        if is_gone.is_set():
            raise storage.UnavailableError("gone")
        return write(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(storage, "write_if_unchanged", failing)
    keeper = threading.Thread(target=first.keep, daemon=True)
    keeper.start()
    clock.time += lease.TRUSTED_SECONDS + 0.1
    checked = threading.Thread(target=first.check)
    checked.start()
    checked.join(0.5)
    assert checked.is_alive()
    is_gone.clear()
    checked.join(10)
    assert not checked.is_alive()
    is_gone.set()
    clock.time += lease.TRUSTED_SECONDS + 0.1
    threading.Timer(0.3, lambda: setattr(clock, "time", clock.time + storage.OUTAGE_SECONDS + 1)).start()
    with pytest.raises(LeaseLostError, match="could not be renewed for 180 s"):
        first.check()
    first.is_closed.set()
    keeper.join()


def test_a_driver_whose_run_is_taken_is_interrupted_and_stops(tmp_path: Path, quick: None) -> None:
    other = lease.this_process()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray Tune may have left its own here

    def drive() -> None:
        with lease.held(str(tmp_path)) as held:
            storage.write_bytes_atomic(held.path, other.to_bytes())
            time.sleep(30)

    start = time.monotonic()
    try:
        with pytest.raises(LeaseLostError, match="was taken over by process"):
            drive()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 20
    assert storage.read_bytes(f"{tmp_path}/{LEASE}") == other.to_bytes()


def holders(count: int, folder: str, seconds: float, log: Path) -> list[subprocess.Popen[bytes]]:
    """Processes that hold the lease for so long if they get it, with a line in `log` when they do."""
    script = f"""
import sys, time
from jobs.launch import lease
vars(lease).update({QUICK})
with lease.held(sys.argv[1]) as held, open(sys.argv[3], "a", buffering=1) as file:
    file.write(held.owner.id + "\\n")
    time.sleep(float(sys.argv[2]))
"""
    command = [sys.executable, "-c", script, folder, str(seconds), str(log)]
    return [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(count)]


def wait_for_lines(log: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while (len(log.read_text().splitlines()) if log.exists() else 0) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_of_several_processes_one_takes_what_a_killed_one_left(folder: str, tmp_path: Path, quick: None) -> None:
    log = tmp_path / "log"
    (killed,) = holders(1, folder, 600, log)
    wait_for_lines(log, 1)
    with pytest.raises(ValueError, match=f"has a live driver: process {killed.pid}"):
        lease.acquire(folder, lease.this_process())
    killed.kill()
    killed.communicate()
    rivals = holders(3, folder, 600, log)
    wait_for_lines(log, 2)
    deadline = time.monotonic() + 120
    while sum(rival.poll() is None for rival in rivals) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    refused = [rival for rival in rivals if rival.poll() is not None]
    for rival in rivals:
        rival.kill()
    words = [rival.communicate()[1].decode() for rival in rivals]
    assert len(refused) == 2
    assert sum("has a live driver" in text for text in words) == 2
    assert len(log.read_text().splitlines()) == 2


@contextlib.contextmanager
def live_driver(run_folder: str) -> Iterator[int]:
    """The pid of a real process that has the run."""
    script = "import sys, time\nfrom jobs.launch import lease\nwith lease.held(sys.argv[1]): time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script, run_folder], cwd=ROOT)
    try:
        while not Path(run_folder, LEASE).exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_second_driver_is_refused_before_it_changes_anything_and_a_dry_run_says_so(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    run_folder = Path(config.placement.storage, config.name)
    with live_driver(str(run_folder)) as pid:
        with pytest.raises(ValueError, match=f"has a live driver: process {pid} on .*take another --name"):
            driver.pretrain(config)
        assert [path.name for path in run_folder.iterdir() if not path.name.startswith(".")] == [LEASE]
        driver.claim_folder(config, open_manifest(config.data.manifest), str(run_folder))
        words = preflight.describe(preflight.survey(config))
        assert re.search(rf"no checkpoint yet; has a driver, process {pid} on .*, which renewed its lease", words)


def test_a_rank_of_a_driver_that_lost_the_run_uploads_no_checkpoint(tmp_path: Path) -> None:
    held = taken(f"{tmp_path}/run")
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "weights").write_bytes(b"1")
    driver.upload_checkpoint(held.run_folder, held.owner.id, str(tmp_path / "local"), "checkpoint_1")
    assert storage.read_bytes(f"{held.run_folder}/checkpoint_1/weights") == b"1"
    taken(held.run_folder)
    with pytest.raises(LeaseLostError):
        driver.upload_checkpoint(held.run_folder, held.owner.id, str(tmp_path / "local"), "checkpoint_2")
    assert not storage.exists(f"{held.run_folder}/checkpoint_2")
