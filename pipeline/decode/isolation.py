"""Process untrusted files in an isolated process: a crash, a hang or a leak costs one sample and one process.

    worker ──once──► fork server (imported, never decodes) ──fork──► decode process ──► answer
       └─────────────── function, arguments, bytes ─────────────────────▲   │
       └─────────────── value or array, no pickle; frames in shared memory ◄┘

The worker waits for the answer and monitors time and memory. A process that exceeds a limit is killed; the fork server
provides the next one within milliseconds.

A decode process has only the environment variables of `_INHERITED_VARIABLES`, so no cloud credentials; a working
directory that no longer exists, so that no relative path resolves; and, once it has imported what its first request
needs, access only to its memory and libraries (`sandbox.py`). Therefore a process serves a single decoder.

Why not `multiprocessing` with the start method forkserver, or a process pool:
- They unpickle results, from a process that has read an untrusted file.
- Their processes run the main script again, which imports Ray in a Ray worker, and needs a guard in a user's script.
- Their fork server is shared by the whole process, with the environment of its first user; see `_ForkServer`.
- RLIMIT_AS limits address space, of which decoders reserve gigabytes that they never touch.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.decode import decoders, sandbox
from pipeline.decode.config import Limits
from pipeline.decode.info import first_line
from pipeline.decode.pixels import PixelBuffer, SharedSlot, stacking_into
from pipeline.decode.transport import Read, Shape, deserialise, part_of, serialise
from pipeline.records import DecodeError, DistantFile, Media, Reason

log = logging.getLogger(__name__)

WATCH_EVERY_SECONDS = 0.05
"""Interval at which the memory of a process is measured while it works."""
ANSWERS_PER_PROCESS = 1_000
"""A process is replaced after this many answers: FFmpeg's heap grows by some kilobytes with each clip."""
PRELOADED = "pipeline.decode.codec"
"""Module that the fork server imports once for all decode processes."""
PROC = Path("/proc")
_INHERITED_VARIABLES = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONHOME"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "DECORD_EOF_RETRY_MAX"),
)
"""Environment variables that a decode process inherits."""
_DEVICE_DECODERS = frozenset({"torchcodec-cuda"})
"""Decoders that need access to devices."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1


def isolated(
    function: Callable[..., Any], data: Media, *, limits: Limits, pixels: PixelBuffer | None = None, **arguments: Any
) -> Any:
    """Compute `function(data, **arguments)`, an array or a JSON value, in a decode process.

    DecodeError as the function raised it, or with the reason timeout, crashed or out_of_memory; any other exception
    becomes a DecodeError with the reason `failed`, its type, first line and place, and its traceback is logged. If a
    process fails, a fresh one retries once, so that a busy machine or a leak of earlier clips costs no sample.
    `pixels`: receives the frames, and their shape (T, H, W, 3) is returned.
    """
    needs = (function.__module__, arguments.get("decoder"))
    content, shape = serialise(data)
    request = pickle.dumps(_Request(function, arguments, shape, needs[1]))
    file = data if isinstance(data, DistantFile) else None
    try:
        answer, content = _attempt(needs, request, content, limits, pixels, file)
    except _LimitError as error:
        log.info("%s: once more in a fresh process", error)
        answer, content = _attempt(needs, request, content, limits, pixels, file)
    if "shape" in answer and pixels:
        return pixels.add(answer["shape"], content)
    if "shape" in answer:
        return np.frombuffer(content, answer["dtype"]).reshape(answer["shape"])
    if "traceback" in answer:
        log.warning("%s: %s", answer["detail"], answer["traceback"])
    if "reason" in answer:
        raise DecodeError(Reason(answer["reason"]), answer["detail"])
    return answer["value"]


def reachable_from_sandbox(limits: Limits) -> list[str]:
    """Return which of network, programs and files a decode process on this machine can reach; ideally none."""
    return isolated(sandbox.reachable_resources, b"", limits=limits)


@dataclass(frozen=True)
class _Request:
    function: Callable[..., Any]
    arguments: dict[str, Any]
    shape: Shape
    decoder: str | None


def _attempt(
    needs: tuple[str, str | None],
    request: bytes,
    data: bytes,
    limits: Limits,
    pixels: PixelBuffer | None,
    file: DistantFile | None,
) -> tuple[dict[str, Any], bytes]:
    """Return the answer of this thread's process. A process that fails, or that serves other `needs`, is killed."""
    process, _local.process = getattr(_local, "process", None), None
    if process is not None and process.needs != needs:
        process.kill()
        process = None
    process = process or DecodeProcess(needs)
    try:
        answer = process.call(request, data, limits, pixels, file)
    except BaseException:
        process.kill()
        if pixels:
            pixels.renew()
        raise
    process.num_answers += 1
    if process.num_answers == ANSWERS_PER_PROCESS:
        process.kill()
    else:
        _local.process = process
    return answer


class _LimitError(DecodeError):
    """Raised if a process did not answer within the limits."""


@contextlib.contextmanager
def _ended_process() -> Iterator[None]:
    """Turn the errors of a connection to a dead process into `_LimitError`."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise _LimitError(Reason.CRASHED, "the process that decoded it ended") from error


class DecodeProcess:
    """A process that serves one request at a time. If a request gets no answer, the process must be killed."""

    def __init__(self, needs: tuple[str, str | None]) -> None:
        self.needs, self.num_answers = needs, 0
        self._channel, theirs = _channel()
        with theirs:
            _fork(theirs)
        try:
            self.pid = int(self._channel.recv_bytes())
        except (EOFError, OSError) as error:
            raise RuntimeError("no decode process starts on this machine: see what it has printed") from error
        self._handle = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None

    def call(
        self,
        request: bytes,
        data: bytes,
        limits: Limits,
        pixels: PixelBuffer | None = None,
        file: DistantFile | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """Return the answer to a request, and the bytes of an array unless they are in `pixels`.

        Meanwhile the process may request parts of a distant `file`; the time to read them does not count.
        """
        stop = time.monotonic() + limits.seconds
        with _ended_process():
            self._channel.send_bytes(request)
            self._channel.send_bytes(data)
            self._channel.send_bytes(pixels.encode_slot() if pixels else b"")
            if pixels and pixels.fd is not None:
                with socket.fromfd(self._channel.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as channel:
                    socket.send_fds(channel, [b"m"], [pixels.fd])
        while True:
            answer, content = self._received(limits, stop)
            if file is None or "part" not in answer:
                return answer, content
            requested_at = time.monotonic()
            part = part_of(file, answer["part"])
            stop += time.monotonic() - requested_at
            with _ended_process():
                self._channel.send_bytes(part)

    def _received(self, limits: Limits, stop: float) -> tuple[dict[str, Any], bytes]:
        with _ended_process():
            while not self._channel.poll(WATCH_EVERY_SECONDS):
                if self._resident_bytes() > limits.memory_gib * 2**30:
                    raise _LimitError(Reason.OUT_OF_MEMORY, f"decoding took more than {limits.memory_gib:g} GiB")
                if time.monotonic() > stop:
                    raise _LimitError(Reason.TIMEOUT, f"decoding took longer than {limits.seconds:g} s")
            return json.loads(self._channel.recv_bytes()), self._channel.recv_bytes()

    def kill(self) -> None:
        """Kill the process."""
        with contextlib.suppress(ProcessLookupError):
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            else:  # outside Linux; the pid could only be reused if all pids were used since the process just ended
                os.kill(self.pid, signal.SIGKILL)

    def __del__(self) -> None:
        if (handle := getattr(self, "_handle", None)) is not None:
            os.close(handle)

    def _resident_bytes(self) -> int:
        """Return the process's resident memory; 0 if the system does not report it, so that only time is limited.

        ProcessLookupError or FileNotFoundError if the process has ended.
        """
        if (PROC / "self").exists():
            return int((PROC / str(self.pid) / "statm").read_text().split()[1]) * _PAGE_BYTES
        try:  # macOS
            listed = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, check=False).stdout
        except FileNotFoundError:
            return 0
        if not listed.strip():
            raise ProcessLookupError
        return int(listed) * 1024


class _ForkServer:
    """A process that has everything imported and only forks.

    The malloc settings for training (`cluster/worker_environment.py`) make decord 20 % slower, so they are not
    inherited either.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        command = f"from pipeline.decode.isolation import serve_forks; serve_forks({theirs.fileno()})"
        environment = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ} | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OPENBLAS_NUM_THREADS": "1",  # a process with threads must not fork
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", command],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C must only reach the run, which ends this process by closing the socket
            )
        self._control = ours
        atexit.register(self.close)

    def fork(self, channel: Connection) -> None:
        """Fork a process that serves requests from `channel`."""
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(self._control, [b"f"], [channel.fileno()])

    def is_alive(self) -> bool:
        """Return whether the fork server still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """Kill the fork server; its processes die with it."""
        self._process.kill()
        self._process.wait()
        self._control.close()


_local = threading.local()
"""`process`: the idle decode process of a thread, or None."""
_lock = threading.Lock()
_fork_servers: list[_ForkServer] = []


def _channel() -> tuple[Connection, Connection]:
    """Return both ends of a channel for byte messages. `send` and `recv`, which pickle, are never used."""
    ours, theirs = socket.socketpair()
    return Connection(ours.detach()), Connection(theirs.detach())


def _fork(channel: Connection) -> None:
    """Fork a process that serves requests from `channel`, from this worker's only fork server."""
    with _lock:
        if not _fork_servers or not _fork_servers[-1].is_alive():
            _fork_servers.append(_ForkServer())
        _fork_servers[-1].fork(channel)


def serve_forks(control_fd: int) -> None:
    """Fork for each channel received, until the worker is gone."""
    importlib.import_module(PRELOADED)
    decoders.load(decoders.AUTO)
    Image.init()  # import all of Pillow's formats, which are otherwise imported on demand
    _leave_folder()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    control, server_pid = socket.socket(fileno=control_fd), os.getpid()
    while True:
        message, channels, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        if not os.fork():
            control.close()
            _serve_requests(Connection(channels[0]), server_pid)
        os.close(channels[0])


def _serve_requests(channel: Connection, server_pid: int) -> None:
    """Answer requests in a decode process, which opens untrusted files, until the worker is gone."""
    with contextlib.suppress(AttributeError):  # Linux only: even a hanging process dies with the fork server
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if os.getppid() != server_pid:
            return
        channel.send_bytes(str(os.getpid()).encode())
        is_sealed, read = False, functools.partial(_request_part, channel)
        while True:
            request, data = channel.recv_bytes(), channel.recv_bytes()
            slot = _receive_slot(channel)
            answer, content = _answer(request, data, slot, is_sealed, read)
            if slot:
                slot.close()
            is_sealed = True
            channel.send_bytes(json.dumps(answer).encode())
            channel.send_bytes(content)
    except (EOFError, OSError):
        pass  # the worker is gone
    finally:
        os._exit(0)


def _request_part(channel: Connection, start: int, stop: int) -> bytes:
    """Request a part of a distant file from the worker."""
    channel.send_bytes(json.dumps({"part": [start, stop]}).encode())
    channel.send_bytes(b"")
    return channel.recv_bytes()


def _receive_slot(channel: Connection) -> SharedSlot | None:
    """Receive the place for the frames in shared memory; None if memory is not shared."""
    if not (place := channel.recv_bytes()):
        return None
    with socket.fromfd(channel.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        _, (fd,), _, _ = socket.recv_fds(stream, 1, 1)
    return SharedSlot(fd, place)


def _answer(
    request: bytes, data: bytes, slot: SharedSlot | None, is_sealed: bool, read: Read
) -> tuple[dict[str, Any], Any]:
    """Execute a request; return the description of its result, and the bytes of an array unless they are in `slot`."""
    try:
        call: _Request = pickle.loads(request)  # imports the function's module
        if not is_sealed:
            if call.decoder is not None:
                decoders.load(call.decoder)
            sandbox.seal(may_use_devices=call.decoder in _DEVICE_DECODERS)
        with stacking_into(slot):
            value = call.function(deserialise(data, call.shape, read), **call.arguments)
        if slot and isinstance(value, np.ndarray):
            slot.ensure_written(value)
            return {"shape": value.shape}, b""
    except DecodeError as error:
        return {"reason": str(error.reason), "detail": error.detail}, b""
    except MemoryError:
        return {"reason": str(Reason.OUT_OF_MEMORY), "detail": "the machine has no more memory"}, b""
    except Exception as error:
        detail = f"{type(error).__name__}: {first_line(error)} ({_place(error)})"
        return {"reason": str(Reason.FAILED), "detail": detail, "traceback": traceback.format_exc()}, b""
    if not isinstance(value, np.ndarray):
        return {"value": value}, b""
    return {"dtype": value.dtype.str, "shape": value.shape}, np.ascontiguousarray(value).data.cast("B")


def _place(error: Exception) -> str:
    """Return function and line where an exception was raised."""
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}, line {line}"


def _leave_folder() -> None:
    """Change to a folder that no longer exists, so that relative paths resolve nowhere."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)
