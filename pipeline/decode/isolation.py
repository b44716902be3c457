"""Work on hostile files in a process of its own: a crash, a hang or a leak costs one sample and one process.

    worker ──once──► nursery (imported, never decodes) ──fork──► decode process ──► answer
       └─────────────── function, arguments, bytes ─────────────────▲   │
       └─────────────── value or array, no pickle ◄─────────────────────┘

The worker waits for the answer and watches time and memory. A process that breaks a limit is killed; the nursery has
the next one ready within milliseconds. What comes back from a process that has read a stranger's file is never
unpickled.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import logging
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.media import EncodedFrames, Media
from pipeline.decode.config import Limits
from pipeline.records import DecodeError, Reason

log = logging.getLogger(__name__)

WATCH_EVERY_SECONDS = 0.05
"""How often a process that has not answered yet is looked at."""
PRELOADED = "pipeline.decode.codec"
"""What the nursery imports, so that no decode process has to."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
_LENGTHS = struct.Struct("!QQ")


def isolated(function: Callable[..., Any], data: Media, *, limits: Limits, **arguments: Any) -> Any:
    """`function(data, **arguments)`, an array or a value that JSON can hold, computed in another process.

    Frames that are kept as images are decoded here: Pillow refuses what is too large and does not hang, and the way to
    another process would cost as much as they do.

    DecodeError as the function raised it, or with the reason timeout, crashed or out_of_memory; any other exception is
    a RuntimeError with its traceback. A process that fails is followed by a fresh one, which tries once more: a busy
    machine, or a leak of earlier clips, costs no sample.
    """
    if isinstance(data, EncodedFrames):
        return function(data, **arguments)
    request = pickle.dumps((function, arguments))
    try:
        answer, content = _attempt(request, data, limits)
    except _LimitError as error:
        log.info("%s: once more in a fresh process", error)
        answer, content = _attempt(request, data, limits)
    if "shape" in answer:
        return np.frombuffer(content, answer["dtype"]).reshape(answer["shape"])
    if "traceback" in answer:
        raise RuntimeError(answer["traceback"])
    if "reason" in answer:
        raise DecodeError(Reason(answer["reason"]), answer["detail"])
    return answer["value"]


def _attempt(request: bytes, data: bytes, limits: Limits) -> tuple[dict[str, Any], bytearray]:
    """The answer of this thread's process, which is killed if it gives none."""
    process, _local.process = getattr(_local, "process", None) or DecodeProcess(), None
    try:
        answer = process.call(request, data, limits)
    except BaseException:
        process.kill()
        raise
    _local.process = process
    return answer


class _LimitError(DecodeError):
    """A process did not answer within the limits."""


class DecodeProcess:
    """A process that computes one thing at a time. Without an answer to the last one it is of no use."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            _fork(theirs)
        self._channel, self._answered = ours, select.poll()
        self._answered.register(ours, select.POLLIN)
        try:
            self.pid = int(_receive(ours)[0])
        except (EOFError, OSError) as error:
            raise RuntimeError("no decode process starts on this machine: see what it has printed") from error
        self._handle = os.pidfd_open(self.pid)  # by the time of a kill, the number could be another's

    def call(self, request: bytes, data: bytes, limits: Limits) -> tuple[dict[str, Any], bytearray]:
        """The answer to a request, and the pixels of an array."""
        stop = time.monotonic() + limits.seconds
        try:
            _send(self._channel, request, data)
            while not self._answered.poll(1000 * WATCH_EVERY_SECONDS):
                if self._resident_bytes() > limits.memory_gib * 2**30:
                    raise _LimitError(Reason.OUT_OF_MEMORY, f"decoding took more than {limits.memory_gib:g} GiB")
                if time.monotonic() > stop:
                    raise _LimitError(Reason.TIMEOUT, f"decoding took longer than {limits.seconds:g} s")
            answer, content = _receive(self._channel)
            return json.loads(answer), content
        except (EOFError, OSError) as error:
            raise _LimitError(Reason.CRASHED, "the process that decoded it ended") from error

    def kill(self) -> None:
        """The process is gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def __del__(self) -> None:
        os.close(self._handle)
        self._channel.close()

    def _resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES


class _Nursery:
    """A process that has everything imported and only ever forks.

    What makes malloc good for training (`cluster/run.py`) makes decord a fifth slower, so it is not inherited.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        command = f"from pipeline.decode.isolation import nurse; nurse({theirs.fileno()})"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OPENBLAS_NUM_THREADS": "1",  # a process with threads must not fork
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", command],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for the run, which then ends this by closing the socket
            )
        self._control = ours
        atexit.register(self.close)

    def fork(self, channel: socket.socket) -> None:
        """A new process listens at the other end of `channel`."""
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(self._control, [b"f"], [channel.fileno()])

    def is_alive(self) -> bool:
        """Whether it can still fork."""
        return self._process.poll() is None

    def close(self) -> None:
        """The nursery has ended, and takes its processes with it."""
        self._process.kill()
        self._process.wait()
        self._control.close()


_local = threading.local()
"""`process`: the decode process of a thread that has one waiting."""


_lock = threading.Lock()
_nurseries: list[_Nursery] = []


def _fork(channel: socket.socket) -> None:
    """A new process, of this worker's only nursery, listens at the other end of `channel`."""
    with _lock:
        if not _nurseries or not _nurseries[-1].is_alive():
            _nurseries.append(_Nursery())
        _nurseries[-1].fork(channel)


def nurse(control_fd: int) -> None:
    """The life of a nursery: a fork for each channel that is sent, until the worker is gone."""
    importlib.import_module(PRELOADED)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    control, nursery_pid = socket.socket(fileno=control_fd), os.getpid()
    while True:
        message, channels, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        if not os.fork():
            control.close()
            _serve(socket.socket(fileno=channels[0]), nursery_pid)
        os.close(channels[0])


def _serve(channel: socket.socket, nursery_pid: int) -> None:
    """The life of a decode process, in which strangers' files are opened."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # even a hanging process ends with the nursery
    try:
        if os.getppid() != nursery_pid:
            return
        _send(channel, str(os.getpid()).encode())
        while True:
            request, data = _receive(channel)
            function, arguments = pickle.loads(request)
            answer, content = _answer(function, bytes(data), arguments)
            _send(channel, json.dumps(answer).encode(), content)
    except (EOFError, OSError):
        pass  # the worker is gone
    finally:
        os._exit(0)


def _answer(function: Callable[..., Any], data: bytes, arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What is said of the outcome, and the pixels of an array."""
    try:
        value = function(data, **arguments)
    except DecodeError as error:
        return {"reason": str(error.reason), "detail": error.detail}, b""
    except MemoryError:
        return {"reason": str(Reason.OUT_OF_MEMORY), "detail": "the machine has no more memory"}, b""
    except Exception:
        return {"traceback": traceback.format_exc()}, b""
    if not isinstance(value, np.ndarray):
        return {"value": value}, b""
    return {"dtype": value.dtype.str, "shape": value.shape}, np.ascontiguousarray(value).data.cast("B")


def _send(channel: socket.socket, head: bytes, body: Any = b"") -> None:
    """A message of two parts is on its way."""
    channel.sendall(_LENGTHS.pack(len(head), len(body)) + head)
    channel.sendall(body)


def _receive(channel: socket.socket) -> tuple[bytearray, bytearray]:
    """The two parts of the next message. EOFError if the other side is gone."""
    head, body = (_exactly(channel, length) for length in _LENGTHS.unpack(_exactly(channel, _LENGTHS.size)))
    return head, body


def _exactly(channel: socket.socket, num_bytes: int) -> bytearray:
    received = bytearray(num_bytes)
    left = memoryview(received)
    while left:
        if not (count := channel.recv_into(left, flags=socket.MSG_WAITALL)):
            raise EOFError
        left = left[count:]
    return received
