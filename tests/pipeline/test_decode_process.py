"""What answers at the other end of the channel, as a thread of this process: it says what a decode process says."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from misbehaviour import blunder, describe, doubled, look_at_images, refuse

from pipeline.decode import decoders, isolation, sandbox
from pipeline.decode.codec import decode_frames, encode_video, index_packets
from pipeline.decode.config import Limits
from pipeline.decode.groups import CutVideo
from pipeline.decode.isolation import DecodeProcess, isolated
from pipeline.decode.packets import PacketIndex
from pipeline.decode.pixels import PixelBuffer
from pipeline.decode.transport import part_of
from pipeline.records import DecodeError, DistantFile, EncodedFrames, EncodedPackets, Kind, Media

LIMITS = Limits(seconds=60.0, memory_gib=64.0)
VIDEO = encode_video(np.random.default_rng(0).integers(0, 255, (24, 32, 48, 3), np.uint8), fps=8, gop=6)
DISTANT = DistantFile(len(VIDEO), lambda start, stop: VIDEO[start:stop])
CLIP: dict[str, Any] = {"kind": Kind.VIDEO, "num_frames": 3, "size_px": 32, "decoder": "pyav"}


def exhaust(data: bytes) -> None:
    raise MemoryError


def show_cut(data: EncodedPackets) -> np.ndarray:
    return CutVideo(data).frames([13, 14])


def packets() -> EncodedPackets:
    return PacketIndex.from_bytes(bytes(index_packets(VIDEO))).cut([13, 14], DISTANT.read)


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], Media], dict[str, Any]]] = {
    "a value": (describe, lambda: b"x" * 100, {"number": 3}),
    "an array that is not contiguous": (doubled, lambda: bytes(range(100)), {}),
    "images": (look_at_images, lambda: EncodedFrames((b"one", b"", b"three")), {}),
    "packets": (show_cut, packets, {}),
    "an error of the file": (refuse, lambda: b"", {}),
    "an error of ours": (blunder, lambda: b"", {}),
    "no memory": (exhaust, lambda: b"", {}),
    "frames": (decode_frames, lambda: VIDEO, CLIP),
    "the index of a distant file": (index_packets, lambda: DISTANT, {}),
}


class InThread:
    """Starts the decode processes."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def fork(self, channel: Connection) -> None:
        arguments = (Connection(os.dup(channel.fileno())), os.getppid())
        self.threads.append(threading.Thread(target=isolation._serve_requests, args=arguments, daemon=True))
        self.threads[-1].start()


@contextlib.contextmanager
def in_threads() -> Iterator[InThread]:
    """Within it, decode processes are threads, which end with their worker."""
    made = InThread()
    nothing = SimpleNamespace(CDLL=lambda _: SimpleNamespace(prctl=lambda *_: 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "_fork", made.fork)
        patch.setattr(isolation, "_local", threading.local())
        patch.setattr(isolation, "ctypes", nothing)
        patch.setattr(isolation.os, "_exit", lambda _: None)
        patch.setattr(sandbox, "seal", lambda *, may_use_devices: None)
        patch.setattr(DecodeProcess, "kill", lambda process: process._channel.close())
        yield made
        if process := isolation._local.__dict__.get("process"):
            process.kill()
        for thread in made.threads:
            thread.join(20)
            assert not thread.is_alive()


def answer(name: str, pixels: PixelBuffer | None = None) -> tuple[str, Any]:
    """Say what comes of a call, so that it can be compared."""
    function, data, arguments = CALLS[name]
    try:
        value = isolated(function, data(), limits=LIMITS, pixels=pixels, **arguments)
    except DecodeError as error:
        return str(error.reason), error.detail
    if isinstance(value, np.ndarray):
        return "array", (value.dtype.str, value.shape, value.tobytes())
    return "value", value if isinstance(value, tuple) else {key: item for key, item in value.items() if key != "pid"}


@pytest.mark.parametrize("name", CALLS)
def test_a_thread_answers_as_a_process_does(name: str) -> None:
    with in_threads():
        here = answer(name)
    assert here == answer(name)


def test_frames_come_by_shared_memory_from_a_thread_too() -> None:
    shapes, contents = [], []
    for where in (contextlib.nullcontext(), in_threads()):
        pixels = PixelBuffer(2 * 3 * 32 * 32 * 3)
        with where:
            shapes.append([answer("frames", pixels.expecting(3, 32)) for _ in range(2)])
        contents.append(bytes(pixels.memory()))
    assert shapes[0] == shapes[1] == [("value", (3, 21, 32, 3))] * 2
    assert contents[0] == contents[1]
    assert len(contents[0]) == 2 * 3 * 21 * 32 * 3


def note(data: bytes, decoder: str | None) -> list[str]:
    NOTED.append(f"sees {data.decode()}")
    return NOTED


NOTED: list[str] = []
"""What happened in a process that is a thread of this one."""


@pytest.mark.parametrize(("decoder", "devices"), [("pyav", False), ("torchcodec-cuda", True), (None, False)])
def test_a_process_loads_its_decoder_and_is_sealed_before_it_sees_its_first_file(decoder, devices) -> None:
    with in_threads(), pytest.MonkeyPatch.context() as patch:  # undone before those of `in_threads`
        patch.setattr(decoders, "load", lambda name: NOTED.append(f"loads {name}"))
        patch.setattr(sandbox, "seal", lambda *, may_use_devices: NOTED.append(f"sealed, {may_use_devices}"))
        NOTED.clear()
        for content in (b"one", b"two"):
            isolated(note, content, limits=LIMITS, decoder=decoder)
    assert [*([f"loads {decoder}"] if decoder else []), f"sealed, {devices}", "sees one", "sees two"] == NOTED


def test_a_process_whose_fork_server_is_gone_does_not_begin() -> None:
    with in_threads(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation.os, "getppid", iter([1, 2]).__next__)  # another one when it looks
        with pytest.raises(RuntimeError, match="no decode process starts on this machine"):
            DecodeProcess(("misbehaviour", None))
    assert isolated(describe, b"x", limits=LIMITS)["length"] == 1


@pytest.mark.parametrize("asked", [[0, len(VIDEO) + 1], [-1, 5], [5, 5], [0, 2**25], [0], "all", [0.0, 1.0], None])
def test_a_process_that_asks_for_what_is_no_part_of_its_file_gets_nothing(asked: object) -> None:
    with pytest.raises(DecodeError, match="failed: the decoder asked for something else than a part of the file"):
        part_of(DISTANT, asked)
    assert part_of(DISTANT, [3, 9]) == VIDEO[3:9]
