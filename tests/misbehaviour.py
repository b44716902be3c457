"""What a decoder may do to the process it runs in, and two that behave. In a file of its own, quick to import."""

from __future__ import annotations

import ctypes
import os
import time

import numpy as np

from pipeline.records import DecodeError, Reason


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
