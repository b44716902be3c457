"""Several processes that answer from one index: a request goes to the least busy one, and is retried on another.

request ── thread of the server ── Ray actor with a `Library` ──┬─► answer
                 ▲                                              │
                 └── actor died: retry on another; Ray restarts it ◄─┘

Requests only read, so it is safe to retry them.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from jobs.inference.indexed_files import IndexedFiles
from jobs.serving.library import Library

PATIENCE_SECONDS = 60.0
"""Limit for which a request waits while no replica is available, and for a lost replica to return."""
RETRY_SECONDS = 0.5
"""Pause between two probes of a lost replica."""
Ask = Callable[..., Any]
log = logging.getLogger(__name__)


class GoneError(Exception):
    """Raised when the process of a replica has ended."""


class Replica:
    """A library in a separate process."""

    def __init__(self, index: str, run: str, rerank: int) -> None:
        self.library = Library.open(index, run, rerank=rerank)

    def answer(self, method: str, *args: Any, **options: Any) -> Any:
        """Return the result of a library method; for `process_id`, the id of this process."""
        if method == "process_id":
            return os.getpid()
        return getattr(self.library, method)(*args, **options)


def start_replicas(index: str, run: str, *, count: int, num_cpus: float, rerank: int) -> list[Any]:
    """Start replicas on the connected Ray; return them when all have opened the index."""
    actor = ray.remote(num_cpus=num_cpus, max_restarts=-1, max_task_retries=0)(Replica)
    actors = [actor.remote(index, run, rerank) for _ in range(count)]
    ray.get([replica.answer.remote("facts") for replica in actors])
    return actors


def ask_actor(replica: Any, method: str, *args: Any, **options: Any) -> Any:
    """Send a request to a replica and wait for the answer. Raise GoneError if its process has ended, and any error of
    the library."""
    try:
        return ray.get(replica.answer.remote(method, *args, **options))
    except RayActorError as error:
        raise GoneError(str(error)) from error
    except RayTaskError as error:
        raise error.cause from error


class Replicas:
    """The interface of a `Library`, backed by several replicas."""

    def __init__(self, files: IndexedFiles, replicas: Sequence[Any], ask: Ask = ask_actor) -> None:
        self.files, self.ask = files, ask
        self.num_asked = dict.fromkeys(replicas, 0)
        """Number of pending requests of each available replica."""
        self.changed = threading.Condition()

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Return the answer of a replica. Raise TimeoutError if none is available for `PATIENCE_SECONDS`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            replica = self.take(deadline)
            try:
                return self.ask(replica, method, *args, **options)
            except GoneError as error:
                self.lose(replica, error)
            finally:
                with self.changed:
                    if replica in self.num_asked:
                        self.num_asked[replica] -= 1

    by_text = functools.partialmethod(call, "by_text")
    like = functools.partialmethod(call, "like")
    like_media = functools.partialmethod(call, "like_media")
    around = functools.partialmethod(call, "around")
    strip = functools.partialmethod(call, "strip")
    facts = functools.partialmethod(call, "facts")

    def take(self, deadline: float) -> Any:
        """Return the replica with the fewest pending requests, and count one more for it."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.num_asked, deadline - time.monotonic()):
                raise TimeoutError("no replica answers")
            replica = min(self.num_asked, key=self.num_asked.__getitem__)
            self.num_asked[replica] += 1
            return replica

    def lose(self, replica: Any, error: Exception) -> None:
        """Take a replica out of service until it answers again."""
        with self.changed:
            if self.num_asked.pop(replica, None) is None:
                return
        log.warning("a replica is gone, %d are left: %s", len(self.num_asked), str(error).partition("\n")[0])
        threading.Thread(target=self.await_return, args=(replica,), daemon=True).start()

    def await_return(self, replica: Any) -> None:
        """Put a replica back into service when it answers; give up after `PATIENCE_SECONDS`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                self.ask(replica, "facts")
            except GoneError:
                time.sleep(RETRY_SECONDS)
                continue
            with self.changed:
                self.num_asked[replica] = 0
                self.changed.notify_all()
            return
        log.error("a replica stays away; %d are left", len(self.num_asked))
