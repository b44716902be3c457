"""What a decode process does to itself costs one sample: the worker lives on, and the next clip decodes."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from misbehaviour import blunder, describe, devour, doubled, fall, hang, hang_until, leave, look_at_images, refuse

from pipeline.decode import isolation
from pipeline.decode.codec import decode_clip, decode_frames, encode_video, letterbox
from pipeline.decode.config import Limits
from pipeline.decode.isolation import isolated
from pipeline.decode.sampling import Policy
from pipeline.records import DecodeError, EncodedFrames, Kind, Reason
from pipeline.stream.randomness import Purpose, clip_rng

LIMITS = Limits(seconds=60.0, memory_gib=0.75)
TIGHT = Limits(seconds=0.5)


def run(function: Callable[..., Any], data: bytes = b"", limits: Limits = LIMITS, **arguments: Any) -> Any:
    return isolated(function, data, limits=limits, **arguments)


def test_values_and_arrays_come_back_from_another_process() -> None:
    found = run(describe, bytes(3_000_000), number=7)
    assert (found["length"], found["number"]) == (3_000_000, 7)
    assert found["pid"] != os.getpid()
    assert run(describe)["pid"] == found["pid"]
    data = np.random.default_rng(0).integers(0, 128, 2_000_000, np.uint8).tobytes()
    np.testing.assert_array_equal(run(doubled, data), doubled(data))


def test_a_process_is_renewed_before_its_heap_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "ANSWERS_PER_PROCESS", 3)
    isolation._local.__dict__.pop("process").kill()
    pids = [run(describe)["pid"] for _ in range(7)]
    assert [pids.index(pid) for pid in pids] == [0, 0, 0, 3, 3, 3, 6]


@pytest.mark.parametrize(
    ("function", "limits", "reason"),
    [
        (hang, TIGHT, Reason.TIMEOUT),
        (devour, LIMITS, Reason.OUT_OF_MEMORY),
        (leave, LIMITS, Reason.CRASHED),
        (fall, LIMITS, Reason.CRASHED),
    ],
)
def test_a_process_that_breaks_a_limit_costs_its_sample_only(function, limits: Limits, reason: Reason) -> None:
    before = run(describe)["pid"]
    with pytest.raises(DecodeError) as caught:
        run(function, b"a file", limits)
    assert caught.value.reason == reason
    after = run(describe, b"the next")
    assert after["length"] == 8
    assert after["pid"] != before
    deadline = time.monotonic() + 30  # the kernel may be late on a busy machine
    while time.monotonic() < deadline and Path(f"/proc/{before}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{before}").exists()


@pytest.mark.parametrize(
    ("function", "limits", "reason", "detail"),
    [
        (hang, TIGHT, Reason.TIMEOUT, "decoding took longer than 0.5 s"),
        (devour, LIMITS, Reason.OUT_OF_MEMORY, "decoding took more than 0.75 GiB"),
        (leave, LIMITS, Reason.CRASHED, "the process that decoded it ended"),
    ],
)
def test_limits_hold_on_a_system_without_pidfd_and_proc(
    function, limits: Limits, reason: Reason, detail: str, monkeypatch, tmp_path: Path
) -> None:
    """As on macOS: the numbers of processes are used, and `ps` tells their memory."""
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(isolation, "PROC", tmp_path / "none")
    monkeypatch.setattr(isolation, "_local", threading.local())
    before = run(describe)["pid"]
    with pytest.raises(DecodeError) as caught:
        run(function, b"a file", limits)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)
    assert run(describe)["pid"] != before
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and Path(f"/proc/{before}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{before}").exists()


def test_without_a_way_to_measure_memory_only_time_is_limited(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(isolation, "PROC", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DecodeError, match=r"timeout: decoding took longer than 0.5 s"):
        run(hang, limits=TIGHT)


def test_a_machine_that_was_busy_for_a_while_costs_no_sample() -> None:
    assert run(hang_until, str(time.monotonic() + TIGHT.seconds).encode(), TIGHT) == "done"


def test_errors_of_the_file_and_errors_of_ours_are_told_apart_and_cost_no_process(caplog) -> None:
    before = run(describe)["pid"]
    with pytest.raises(DecodeError, match="truncated: cut"):
        run(refuse)
    with pytest.raises(DecodeError) as caught:
        run(blunder)
    assert caught.value.reason == Reason.FAILED
    assert re.fullmatch(r"KeyError: 'no such thing' \(misbehaviour\.blunder, line \d+\)", caught.value.detail)
    assert "in blunder" in caplog.text
    assert run(describe)["pid"] == before


def test_each_thread_has_a_process_of_its_own() -> None:
    found: list[dict[str, int]] = []
    thread = threading.Thread(target=lambda: found.append(run(describe, number=1)))
    thread.start()
    found.append(run(describe, number=2))
    thread.join()
    assert len({one["pid"] for one in found}) == 2


def test_a_worker_that_is_interrupted_never_reads_the_answer_to_an_earlier_question(monkeypatch) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.decode.isolation.DecodeProcess._resident_bytes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(hang)
    assert run(describe, number=3)["number"] == 3


def test_a_clip_decoded_apart_is_the_clip_decoded_here() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    data = encode_video(frames, fps=10)

    def settings() -> dict[str, Any]:
        rng = clip_rng(1, 2, 3, Purpose.FRAMES)
        return {"kind": Kind.VIDEO, "num_frames": 5, "size_px": 40, "policy": Policy.RANDOM, "rng": rng}

    apart = letterbox(run(decode_frames, data, **settings()), 40)
    here = decode_clip(data, **settings())
    np.testing.assert_array_equal(apart.frames, here.frames)
    np.testing.assert_array_equal(apart.pad_mask, here.pad_mask)


@pytest.mark.parametrize("limit", ["seconds", "memory_gib"])
def test_limits_that_nothing_can_keep_are_refused(limit: str) -> None:
    with pytest.raises(ValueError, match=f"the limit {limit} must be above 0, got 0"):
        Limits(**{limit: 0.0})


def test_frames_kept_as_images_are_looked_at_apart() -> None:
    found = isolated(look_at_images, EncodedFrames((b"one", b"", b"three")), limits=LIMITS)
    assert found["images"] == ["one", "", "three"]
    assert found["pid"] != os.getpid()
