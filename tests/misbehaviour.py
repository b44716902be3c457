"""What a decoder may do to the process it runs in, and two that behave. In a file of its own, quick to import."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.records import DecodeError, EncodedFrames, Reason


def describe(data: bytes, *, number: int = 0) -> dict[str, int]:
    return {"length": len(data), "number": number, "pid": os.getpid()}


def doubled(data: bytes) -> np.ndarray:
    return 2 * np.frombuffer(data, np.uint8).reshape(2, -1)[:, ::-1]


def hang(data: bytes) -> None:
    while True:
        pass


def leave(data: bytes) -> None:
    os._exit(0)


def fall(data: bytes) -> None:
    ctypes.string_at(0)


def devour(data: bytes) -> None:
    eaten = []
    while True:
        eaten.append(b"x" * 2**24)


def refuse(data: bytes) -> None:
    raise DecodeError(Reason.TRUNCATED, "cut")


def blunder(data: bytes) -> None:
    raise KeyError("no such thing")


def hang_until(data: bytes) -> str:
    """Hangs, as on a machine that is busy for a while: until a time of `time.monotonic`."""
    if time.monotonic() < float(data):
        time.sleep(60)
    return "done"


def reach(data: bytes) -> dict[str, str]:
    """Says of network, programs, files, other processes and variables what this process got hold of.

    `data`: a port of this machine and a folder with a file `secret`, apart by a blank.
    """
    port, folder = data.decode().split(" ", 1)
    attempts: dict[str, Callable[[], object]] = {
        "network": lambda: socket.create_connection(("127.0.0.1", int(port)), 5).close(),
        "a program": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        "a file": lambda: Path(folder, "secret").read_text(),
        "a relative path": lambda: Path("secret").write_text("x"),
        "writing": lambda: Path(folder, "written").write_text("x"),
        "removing": lambda: Path(folder, "secret").unlink(),
        "a folder": lambda: os.listdir(folder),
        "another process": lambda: os.kill(os.getppid(), 0),
        "the parent's variables": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "the working directory": os.getcwd,
        "a key": lambda: os.environ["AWS_SECRET_ACCESS_KEY"],
        "a token": lambda: os.environ["RAY_AUTH_TOKEN"],
    }
    found = {}
    for name, attempt in attempts.items():
        with contextlib.suppress(OSError, KeyError):
            found[name] = str(attempt())
    return found


def look_at_images(data: EncodedFrames) -> dict[str, object]:
    return {"pid": os.getpid(), "images": [image.decode() for image in data.images]}
