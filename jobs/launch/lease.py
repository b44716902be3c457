"""The lease of a folder, of a run or a corpus: one driver at a time, on local disks and on S3.

    driver ──driver.lease, renewed every 5 s──► folder ◄──watches the content for 30 s── second driver
                                                                changed: refuse · unchanged or gone: take over

Nobody compares clocks: a second driver measures on its own clock how long the content has stood still, and the owner
on its own how long ago it began its last renewal. The owner stops to trust its lease before anybody may take it.
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
"""No `.json` or `.pkl`: Ray Tune copies such files of a sweep that it resumes, and writes its stale copies back."""
RENEW_SECONDS = 5.0
EXPIRES_SECONDS = 30.0
"""A lease whose content has stood still for so long may be taken."""
TRUSTED_SECONDS = 20.0
"""The owner writes for so long after it began a renewal; what it then has begun may last until the lease expires."""
POLL_SECONDS = 1.0
SETTLE_SECONDS = 1.0
"""Pause before a lease in a store is read again: not every store has conditional writes."""
log = logging.getLogger(__name__)


def clock() -> float:
    """Return seconds of a clock that goes on while the machine sleeps, which `time.monotonic` does not on Linux."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class LeaseLostError(RuntimeError):
    """Another driver has taken over the run: this one must not write to its folder any more."""


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
    """Return a new owner: this process, under an id of its own."""
    return Owner(id=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), started=utc_now(), renewed=utc_now())


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def owner_of(content: bytes | None) -> Owner | None:
    """Return the owner that a lease names; None for no lease, and for one that cannot be read."""
    try:
        return Owner(**json.loads(content)) if content else None
    except (ValueError, TypeError):
        return None


@dataclass
class Watch:
    """What another driver has seen of a lease: its first content, and since when it stands still."""

    content: bytes | None
    since: float

    def verdict(self, content: bytes | None, now: float) -> Literal["free", "alive", "wait"]:
        """Judge a lease with this content now, on the observer's clock alone."""
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
    """Return the content of the lease that `owner` now has, after waiting for an owner that is silent to expire.

    Raise ValueError naming the owner, its age and the remedy as soon as it is seen to renew its lease.
    """
    path, start = f"{run_folder}/{LEASE}", now()
    content = read(path)
    watch = Watch(content, start)
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
    """Return the content of a lease, None where there is none."""
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        return None


def note(run_folder: str) -> str:
    """Return what a run's lease says of its driver, in words that may follow others; nothing without a lease."""
    owner = owner_of(read(f"{run_folder}/{LEASE}"))
    return f"; has a driver, {owner}, which renewed its lease at {owner.renewed}" if owner else ""


def refuse_other_owner(run_folder: str, owner_id: str) -> None:
    """Raise LeaseLostError unless the lease is still that of `owner_id`; for ranks, which do not renew it."""
    owner = owner_of(read(f"{run_folder}/{LEASE}"))
    if owner is None or owner.id != owner_id:
        raise lost_to(run_folder, owner)


def lost_to(run_folder: str, owner: Owner | None) -> LeaseLostError:
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
        """Renew the lease once, or note that it is lost. OSError where the store does not answer."""
        start = self.now()
        renewals = self.owner.num_renewals + 1
        owner = dataclasses.replace(self.owner, renewed=utc_now(), num_renewals=renewals)
        is_ours = storage.write_if_unchanged(self.path, owner.to_bytes(), self.content)
        content = owner.to_bytes() if is_ours and not storage.is_remote(self.path) else read(self.path)
        with self.changed:
            if content == owner.to_bytes():
                self.owner, self.content, self.renewed_at = owner, content, start
            else:
                self.lost = lost_to(self.run_folder, owner_of(content))
            self.changed.notify_all()
        if self.lost:
            self.on_loss()

    def check(self) -> None:
        """Return when this driver may write: at once after a renewal, else when the next one is done.

        Raise LeaseLostError when another driver has the lease, or the store was gone for too long.
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
            except Exception as error:  # of whatever kind: a dead thread would give the run away
                log.warning("the lease of %s could not be renewed, trying again: %s", self.run_folder, error)

    def release(self) -> None:
        """Remove the lease if this process has it."""
        if self.lost is None and read(self.path) == self.content:
            storage.remove(self.path)


@contextlib.contextmanager
def held(run_folder: str) -> Iterator[Lease]:
    """Hold the lease of a run's folder; raise ValueError if another driver has it.

    When another driver takes it meanwhile, the main thread is interrupted, and LeaseLostError raised.
    """
    owner = this_process()
    content = acquire(run_folder, owner)
    thread, is_main = threading.get_ident(), threading.current_thread() is threading.main_thread()
    interrupt = functools.partial(signal.pthread_kill, thread, signal.SIGINT) if is_main else lambda: None
    if is_main and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background
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
