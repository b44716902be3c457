"""Pixels in memory that a worker shares with its decode processes: equal, unpadded, copied once, and safe from them."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from misbehaviour import hang, refuse

from pipeline.corpus.manifest import make_manifest, write_manifest
from pipeline.decode import pixels
from pipeline.decode.codec import decode_clip, decode_frames, encode_video
from pipeline.decode.config import Limits
from pipeline.decode.isolation import isolated
from pipeline.decode.pixels import PixelBuffer, SharedSlot, stack, stacking_into
from pipeline.records import DecodeError, Kind, Reason
from pipeline.stream.collate import as_tensor
from pipeline.stream.loader import ClipSource, clip_rows, decode_block

SIZE_PX, NUM_FRAMES = 96, 4
CLIP_BYTES = NUM_FRAMES * SIZE_PX**2 * 3
SETTINGS = {"kind": Kind.VIDEO, "num_frames": NUM_FRAMES, "size_px": SIZE_PX, "decoder": "pyav"}
SIZES = [(96, 64), (64, 96), (128, 128), (130, 66)]
HAS_MEMFD = hasattr(os, "memfd_create")
needs_memfd = pytest.mark.skipif(not HAS_MEMFD, reason="this system has no memfd")


def video(number: int, size: tuple[int, int] = SIZES[0]) -> bytes:
    width, height = size
    coarse = np.random.default_rng(number).integers(0, 256, (8, height // 2, width // 2, 3), np.uint8)
    return encode_video(coarse.repeat(2, 1).repeat(2, 2), fps=8)


@pytest.fixture(params=["shared", "through the channel"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "shared":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not HAS_MEMFD:
        pytest.skip("this system has no memfd")
    return request.param


def decode_into(buffer: PixelBuffer, data: bytes, function: Any = decode_frames, **changes: Any) -> tuple[int, ...]:
    limits = changes.pop("limits", Limits())
    settings = SETTINGS if function is decode_frames else {}
    pixels = buffer.expecting(NUM_FRAMES, SIZE_PX)
    return isolated(function, data, limits=limits, pixels=pixels, **settings | changes)


def test_clips_lie_behind_one_another_without_padding(transport: str) -> None:
    buffer, expected = PixelBuffer(len(SIZES) * CLIP_BYTES), b""
    assert (buffer.fd is not None) == (transport == "shared")
    for number, size in enumerate(SIZES):
        frames = decode_frames(video(number, size), **SETTINGS)
        assert decode_into(buffer, video(number, size)) == frames.shape
        expected += frames.tobytes()
        assert buffer.used == len(expected)
    assert bytes(buffer.memory()) == expected


def test_a_clip_that_fails_leaves_the_others_and_takes_no_room(transport: str) -> None:
    buffer = PixelBuffer(3 * CLIP_BYTES)
    decode_into(buffer, video(0))
    used = buffer.used
    with pytest.raises(DecodeError, match="truncated: cut"):
        decode_into(buffer, b"", refuse)
    with pytest.raises(DecodeError, match="timeout"):
        decode_into(buffer, b"", hang, limits=Limits(seconds=0.3))
    assert buffer.used == used
    decode_into(buffer, video(1))
    expected = [decode_frames(video(number), **SETTINGS).tobytes() for number in (0, 1)]
    assert bytes(buffer.memory()) == b"".join(expected)


@needs_memfd
def test_a_process_that_was_killed_keeps_its_memory_to_itself() -> None:
    buffer = PixelBuffer(2 * CLIP_BYTES)
    decode_into(buffer, video(0))
    assert buffer.fd is not None
    kept = os.dup(buffer.fd)  # as a process that has not ended yet
    buffer.renew()
    os.pwrite(kept, bytes(CLIP_BYTES), 0)
    os.close(kept)
    assert bytes(buffer.memory()) == decode_frames(video(0), **SETTINGS).tobytes()


@needs_memfd
def test_no_decode_process_can_take_memory_away_or_fill_the_machine_with_it() -> None:
    buffer = PixelBuffer(CLIP_BYTES)
    assert buffer.fd is not None
    for size in (0, 2**40):
        with pytest.raises(PermissionError):
            os.ftruncate(buffer.fd, size)


@pytest.mark.parametrize(
    "shape",
    [
        [NUM_FRAMES, SIZE_PX, SIZE_PX + 1, 3],
        [NUM_FRAMES + 1, 1, 1, 3],
        [NUM_FRAMES, 8, 8, 4],
        [NUM_FRAMES, 8, 0, 3],
        [NUM_FRAMES, 8, -8, 3],
        [NUM_FRAMES, 8.0, 8, 3],
        [NUM_FRAMES, True, 8, 3],
        [NUM_FRAMES, 8, 8],
        [[NUM_FRAMES], 8, 8, 3],
        "four",
        7,
        None,
    ],
)
def test_a_decode_process_cannot_lie_about_its_frames(shape: Any) -> None:
    buffer = PixelBuffer(CLIP_BYTES).expecting(NUM_FRAMES, SIZE_PX)
    with pytest.raises(DecodeError, match=f"failed: the decoder gave something else than {NUM_FRAMES} frames of at"):
        buffer.add(shape, b"")
    assert buffer.used == 0


def test_fewer_pixels_than_their_shape_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    buffer = PixelBuffer(CLIP_BYTES).expecting(NUM_FRAMES, SIZE_PX)
    with pytest.raises(DecodeError, match="the decoder gave fewer pixels than it says"):
        buffer.add([NUM_FRAMES, 8, 8, 3], bytes(5))


def test_frames_larger_than_asked_for_are_the_decoders_failure(transport: str) -> None:
    buffer = PixelBuffer(9 * CLIP_BYTES)
    with pytest.raises(DecodeError) as caught:
        decode_into(buffer, video(0), size_px=2 * SIZE_PX)
    assert caught.value.reason == Reason.FAILED
    assert buffer.used == 0


@needs_memfd
def test_memory_is_reused_when_nothing_refers_to_it() -> None:
    gc.collect()  # what errors of other tests still refer to
    pixels._idle.clear()
    buffer = PixelBuffer(CLIP_BYTES)
    decode_into(buffer, video(0))
    column = pa.py_buffer(buffer.memory())
    other = PixelBuffer(CLIP_BYTES)
    decode_into(other, video(1))
    assert column.to_pybytes() == decode_frames(video(0), **SETTINGS).tobytes()
    assert not pixels._idle
    del column, buffer
    assert len(pixels._idle) == 1
    again = PixelBuffer(CLIP_BYTES)
    assert not pixels._idle
    decode_into(again, video(2))
    assert bytes(again.memory()) == decode_frames(video(2), **SETTINGS).tobytes()


@needs_memfd
def test_memory_of_unusual_size_is_not_kept() -> None:
    gc.collect()  # what errors of other tests still refer to
    pixels._idle.clear()
    del (buffer := [PixelBuffer(pixels.REUSABLE_BYTES + 1)])[:]
    assert not buffer
    assert not pixels._idle


@pytest.fixture
def slot() -> Iterator[SharedSlot]:
    buffer = PixelBuffer(CLIP_BYTES + 1)
    if buffer.fd is None:
        pytest.skip("this system has no memfd")
    buffer.used = 1  # no page begins here
    slot = SharedSlot(os.dup(buffer.fd), buffer.expecting(NUM_FRAMES, SIZE_PX).encode_slot())
    yield slot
    slot.close()


def test_the_first_frames_go_to_the_room_and_later_ones_do_not_touch_them(slot: SharedSlot) -> None:
    first, second = (np.random.default_rng(n).integers(0, 256, (3, 5, 7, 3), np.uint8) for n in (0, 1))
    with stacking_into(slot):
        kept, other = stack([*first]), stack([*second])
    assert kept is slot.frames
    np.testing.assert_array_equal(kept, first)
    np.testing.assert_array_equal(other, second)
    slot.ensure_written(kept)
    np.testing.assert_array_equal(kept, first)
    slot.ensure_written(other)  # it is what the function returns
    np.testing.assert_array_equal(kept, second)
    assert stack([*first]) is not slot.frames
    with pytest.raises(ValueError, match="one shape were expected"):
        slot.write([first[0], first[0, :2]])
    with pytest.raises(ValueError, match="uint8"):
        slot.write([first[0].astype(np.float32)])


def block_of(folder: Path, sizes: list[tuple[int, int]]) -> tuple[ClipSource, pa.Table]:
    """A source that reads each file once, and a block of its first step and padding."""
    rows = []
    for number, (width, height) in enumerate(sizes):
        path = folder / f"{number}.mp4"
        path.write_bytes(video(number, (width, height)))
        known = {"width": width, "height": height, "fps": 8.0, "duration_seconds": 1.0, "num_frames": 8}
        row = {"clip_id": number, "uri": str(path), "captions": ["a"], "kind": "video", "split": "val", **known}
        rows.append(row | {"bytes": path.stat().st_size, "checksum": ""})
    write_manifest(make_manifest("noise", str(folder), rows), str(folder / "manifest.parquet"))
    source = ClipSource(
        manifest_path=str(folder / "manifest.parquet"),
        split="val",
        num_frames=NUM_FRAMES,
        frame_size_px=4 * SIZE_PX,
        decoder="pyav",
        seed=0,
        plan=None,
        batch=len(sizes) + 1,
    )
    return source, pa.table({"id": [0]})


@needs_memfd
def test_a_block_is_one_buffer_of_shared_memory_and_the_rank_copies_it_once(tmp_path: Path) -> None:
    sizes = [(4 * width, 4 * height) for width, height in SIZES]  # far more bytes than the rows have beside them
    large: dict[str, Any] = SETTINGS | {"size_px": 4 * SIZE_PX}
    source, number = block_of(tmp_path, sizes)
    settings: dict[str, Any] = {"source": source, "start_step": 0, "stop_step": 1, "num_ranks": 1}
    decode_block(number, **settings)
    tracemalloc.start()
    block = decode_block(number, **settings)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    frames = block["frames"]
    (_, stops, data) = frames.chunk(0).buffers()
    assert frames.num_chunks == 1
    assert "/memfd:pixels" in mapping_of(data.address)
    expected = [decode_frames(video(number, size), **large) for number, size in enumerate(sizes)]
    assert data.size == sum(clip.nbytes for clip in expected)
    assert np.frombuffer(stops, np.int64).tolist()[-2:] == [data.size, data.size], "an empty slot has no pixels"
    assert peak_bytes < min(clip.nbytes for clip in expected), "no clip lies in memory of Python or NumPy"

    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    rows = clip_rows(block, source=source, epoch=0)
    tensor = as_tensor(rows.frames)
    copied_bytes = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert rows.frames.nbytes <= copied_bytes < rows.frames.nbytes * 1.25
    assert tensor.data_ptr() == rows.frames.__array_interface__["data"][0]
    for number, size in enumerate(sizes):
        clip = decode_clip(video(number, size), **large)
        np.testing.assert_array_equal(rows.frames[number], clip.frames)
        np.testing.assert_array_equal(rows.frame_pad_mask[number], clip.pad_mask)
    assert not rows.frames[-1].any()
    assert not rows.frame_pad_mask[-1].any()


def mapping_of(address: int) -> str:
    """The line of this process's memory map that holds an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(edge, 16) for edge in line.split()[0].split("-"))
        if start <= address < stop:
            return line
    raise AssertionError(f"{address:#x} is not mapped")
