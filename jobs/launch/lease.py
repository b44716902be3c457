"""The lease of a folder, of a run or a corpus: one driver at a time, on local disks and on S3.

    driver ──driver.lease, renewed every 5 s──► folder ◄──watches the content for 30 s── second driver
                                                                changed: refuse · unchanged or gone: take over

Clocks of different machines are never compared: a second driver measures on its own clock for how long the content has
not changed, and the owner on its own clock the time since it began its last renewal. The owner stops trusting its lease
(`TRUSTED_SECONDS`) before another driver may take it (`EXPIRES_SECONDS`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from jobs.tracking import voice
from pipeline import storage

LEASE = "driver.lease"
"""Not `.json` or `.pkl`: when Ray Tune resumes a sweep, it copies such files and writes the stale copies back."""
RENEW_SECONDS = 5.0
EXPIRES_SECONDS = 30.0
"""Another driver may take a lease whose content has not changed for this long."""
TRUSTED_SECONDS = 20.0
"""The owner may begin writes this long after the start of its last successful renewal. A write that it has begun may
last until the lease expires."""
POLL_SECONDS = 1.0
SETTLE_SECONDS = 1.0
"""Pause between writing a lease to a store and reading it back, because not every store has conditional writes."""
log = logging.getLogger(__name__)


def clock() -> float:
    """Return the seconds of a monotonic clock that counts suspended time too, unlike `time.monotonic` on Linux."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class LeaseLostError(RuntimeError):
    """Another driver has taken over the run, so this driver must stop writing to its folder."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The content of a lease."""

    id: str
    host: str
    pid: int
    started: str
    renewed: str
    """By the owner's clock, for people."""
    num_renewals: int = 0

    def to_bytes(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started at {self.started}"


def this_process() -> Owner:
    """Return this process as an owner with a new id."""
    return Owner(id=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), started=utc_now(), renewed=utc_now())


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def owner_of(content: bytes | None) -> Owner | None:
    """Return the owner that a lease names; None without a lease, or if it cannot be parsed."""
    try:
        return Owner(**json.loads(content)) if content else None
    except (ValueError, TypeError):
        return None


@dataclass
class LeaseObserver:
    """Another driver's observation of a lease: the content at first sight, and when that was (seconds)."""

    content: bytes | None
    since: float

    def verdict(self, content: bytes | None, now: float) -> Literal["free", "alive", "wait"]:
        """Judge the lease from its current content, using only the observer's clock."""
        if content is None:
            self.content = None
            return "free"
        if content != self.content:
            return "alive"
        return "free" if now - self.since >= EXPIRES_SECONDS else "wait"


def acquire(
    run_folder: str,
    owner: Owner,
    *,
    now: Callable[[], float] = clock,
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """Acquire the lease for `owner`, after waiting for the lease of a silent owner to expire, and return its content.

    Raise ValueError, with the owner and the remedy, as soon as the present owner renews its lease.
    """
    path, start = f"{run_folder}/{LEASE}", now()
    content = read(path)
    watch = LeaseObserver(content, start)
    if content is not None:
        voice.show(
            f"{run_folder} has a driver: {owner_of(content) or 'unknown'}; waiting up to {EXPIRES_SECONDS:.0f} s to "
            "see whether it is alive"
        )
    while True:
        verdict = watch.verdict(content, now())
        if verdict == "alive":
            raise ValueError(
                f"{run_folder} has a live driver: {owner_of(content) or 'unknown'}, seen to renew its lease "
                f"{now() - start:.0f} s after this start. Stop it first (`ray job stop`, or SIGTERM to that process), "
                "or take another --name or another folder; the lease of a killed driver expires after "
                f"{EXPIRES_SECONDS:.0f} s"
            )
        if verdict == "free":
            new = owner.to_bytes()
            storage.write_if_unchanged(path, new, watch.content)
            if storage.is_remote(path):
                sleep(SETTLE_SECONDS)
            if (content := read(path)) == new:
                return new
            continue
        sleep(POLL_SECONDS)
        content = read(path)


def read(path: str) -> bytes | None:
    """Return the content of a lease, or None without one."""
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        return None


def owner_clause(run_folder: str) -> str:
    """Return a clause about the driver that holds the run's lease, to append to a sentence; empty without a lease."""
    owner = owner_of(read(f"{run_folder}/{LEASE}"))
    return f"; has a driver, {owner}, which renewed its lease at {owner.renewed}" if owner else ""


def refuse_other_owner(run_folder: str, owner_id: str) -> None:
    """Raise LeaseLostError unless `owner_id` still has the lease. For ranks, which do not renew it."""
    owner = owner_of(read(f"{run_folder}/{LEASE}"))
    if owner is None or owner.id != owner_id:
        raise lease_lost_error(run_folder, owner)


def lease_lost_error(run_folder: str, owner: Owner | None) -> LeaseLostError:
    taken = f"was taken over by {owner}" if owner else "has lost its lease, which somebody removed"
    return LeaseLostError(
        f"{run_folder} {taken}: this driver stops and writes no more. Let the other one go on, or stop it and give the "
        "same command again"
    )


class Lease:
    """The lease that this process has on a run's folder."""

    def __init__(
        self,
        run_folder: str,
        owner: Owner,
        content: bytes,
        *,
        now: Callable[[], float] = clock,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self.run_folder, self.path = run_folder, f"{run_folder}/{LEASE}"
        self.owner, self.content, self.now, self.on_loss = owner, content, now, on_loss
        self.renewed_at = now()
        self.lost: LeaseLostError | None = None
        self.changed = threading.Condition()
        self.is_closed = threading.Event()

    def renew(self) -> None:
        """Renew the lease once, or record that it is lost. OSError if the store does not answer."""
        start = self.now()
        renewals = self.owner.num_renewals + 1
        owner = dataclasses.replace(self.owner, renewed=utc_now(), num_renewals=renewals)
        is_ours = storage.write_if_unchanged(self.path, owner.to_bytes(), self.content)
        content = owner.to_bytes() if is_ours and not storage.is_remote(self.path) else read(self.path)
        with self.changed:
            if content == owner.to_bytes():
                self.owner, self.content, self.renewed_at = owner, content, start
            else:
                self.lost = lease_lost_error(self.run_folder, owner_of(content))
            self.changed.notify_all()
        if self.lost:
            self.on_loss()

    def check(self) -> None:
        """Block until this driver may write: not at all after a recent renewal, else until the next one.

        Raise LeaseLostError when another driver has the lease, or when the store was unreachable for too long.
        """
        with self.changed:
            deadline = self.now() + storage.OUTAGE_SECONDS
            while self.lost is None and self.now() - self.renewed_at > TRUSTED_SECONDS:
                if self.now() > deadline:
                    raise LeaseLostError(
                        f"the lease of {self.run_folder} could not be renewed for {storage.OUTAGE_SECONDS} s; give the "
                        "same command again when the store is back"
                    )
                self.changed.wait(POLL_SECONDS)
            if self.lost:
                raise self.lost

    def keep(self) -> None:
        """Renew the lease until it is closed or lost."""
        while self.lost is None and not self.is_closed.wait(RENEW_SECONDS):
            try:
                self.renew()
            except Exception as error:  # of any kind: if this thread died, the lease would expire
                log.warning("the lease of %s could not be renewed, trying again: %s", self.run_folder, error)

    def release(self) -> None:
        """Remove the lease if this process has it."""
        if self.lost is None and read(self.path) == self.content:
            storage.remove(self.path)


@contextlib.contextmanager
def held(run_folder: str) -> Iterator[Lease]:
    """Hold the lease of a run's folder; raise ValueError if another driver has it.

    If another driver takes it meanwhile, interrupt the main thread and raise LeaseLostError.
    """
    owner = this_process()
    content = acquire(run_folder, owner)
    thread, is_main = threading.get_ident(), threading.current_thread() is threading.main_thread()
    interrupt = functools.partial(signal.pthread_kill, thread, signal.SIGINT) if is_main else lambda: None
    if is_main and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background jobs ignore SIGINT
        signal.signal(signal.SIGINT, signal.default_int_handler)
    lease = Lease(run_folder, owner, content, on_loss=interrupt)
    keeper = threading.Thread(target=lease.keep, name="lease", daemon=True)
    keeper.start()
    try:
        yield lease
    except BaseException:  # Ray ends an interrupted run by SystemExit with status 0
        if lease.lost:
            raise lease.lost from None
        raise
    finally:
        lease.is_closed.set()
        keeper.join(EXPIRES_SECONDS)
        if not keeper.is_alive():
            lease.release()
