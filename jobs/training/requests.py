"""Requests from outside the train loop: a user stops the run, or a cloud preempts a node.

A poll is an all-reduce, so the loop polls only at some steps, the same on all ranks: at each log the ranks agree on the
interval, from the duration of their steps. Between logs no rank waits for another: a poll returns the result of the
one before, which has arrived by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

from cluster.run import Runtime
from pipeline import storage

STOP_FILE = "stop"
"""A file of this name in the run's folder asks the run to write a checkpoint and end."""
POLL_SECONDS = 2.0
"""Approximate time between polls: the first rank checks the storage for the stop file, and all ranks exchange."""


class StopRequest(IntEnum):
    """The result of a poll: the highest request that any rank has received."""

    NONE = 0
    CHECKPOINT = 1
    STOP = 2


class Requests:
    """Polls of one rank. `interval` and `due_step` are the same on all ranks."""

    def __init__(self, run_folder: str, runtime: Runtime, first_step: int) -> None:
        self.path, self.runtime, self.world = f"{run_folder}/{STOP_FILE}", runtime, runtime.world
        self.interval, self.due_step = 1, first_step + 1
        self.paced_step, self.paced_seconds = first_step, time.monotonic()
        self.asked_seconds = float("-inf")
        self.has_answered_preemption = False
        self.pending: Callable[[], int] = lambda: StopRequest.NONE
        """Waits for the result of the previous poll."""

    def microseconds_per_step(self, step: int) -> int:
        """Return the mean wall time of this rank's steps since the last call, in µs."""
        now, num_steps = time.monotonic(), max(1, step - self.paced_step)
        elapsed = now - self.paced_seconds
        self.paced_step, self.paced_seconds = step, now
        return max(1, int(1e6 * elapsed / num_steps))

    def set_pace(self, microseconds_per_step: int) -> None:
        """Set the interval to as many steps as take `POLL_SECONDS`. All ranks must pass the same number."""
        self.interval = max(1, int(1e6 * POLL_SECONDS / microseconds_per_step))
        self.due_step = self.paced_step + self.interval

    def poll(self, step: int, *, may_wait: bool = True) -> StopRequest:
        """Return the request after `step` steps, the same on all ranks. A request of this poll is returned by the next
        one, unless the ranks `may_wait` for each other."""
        self.due_step = step + self.interval
        answers, self.pending = [self.pending], self.world.highest(self._local_request())
        if may_wait or self.world.size == 1:
            answers, self.pending = [*answers, self.pending], lambda: StopRequest.NONE
        request = StopRequest(max(answer() for answer in answers))
        if request == StopRequest.CHECKPOINT and self.has_answered_preemption:
            return StopRequest.NONE
        self.has_answered_preemption |= request == StopRequest.CHECKPOINT
        return request

    def _local_request(self) -> StopRequest:
        if self._is_stop_requested():
            return StopRequest.STOP
        is_new = not self.has_answered_preemption and self.runtime.is_preempted()
        return StopRequest.CHECKPOINT if is_new else StopRequest.NONE

    def _is_stop_requested(self) -> bool:
        now = time.monotonic()
        if not self.world.is_first or now - self.asked_seconds < POLL_SECONDS:  # logs can be less than that apart
            return False
        self.asked_seconds = now
        return storage.exists(self.path)
