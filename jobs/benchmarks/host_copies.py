"""Copies of a clip's pixels on the way from the decoder to the tensor, detected by their addresses: `host-copies` of
`python jobs/benchmark.py`.

    decoder ─► memfd ─► object store ─► rank's square ─► tensor

Each change of address is a copy. Copies in between would need additional memory, so the benchmark also counts what
NumPy and Python allocate, in clips. For the costs, a decoder returns one picture for all frames.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from cluster.connection import connected_ray
from jobs.benchmarks.data_path import Clips, made_clips, source_of
from jobs.benchmarks.support.fixtures import cores
from pipeline.decode.codec import decode_frames
from pipeline.decode.pixels import PixelBuffer, SharedSlot, stacking_into
from pipeline.records import Kind
from pipeline.stream.collate import as_tensor
from pipeline.stream.loader import ClipSource, clip_rows, clip_stream, decode_block

CLIPS = Clips(count=12, seconds=2)
STILL = "jobs.benchmarks.support.invented_video:StillVideo"


def host_copies(folder: str = "corpora/benchmark", num_rounds: int = 7, num_repeats: int = 20) -> dict[str, Any]:
    """Return the copies of a clip's pixels, their bytes in the object store, and CPU milliseconds per clip after the
    decoder."""
    manifest = made_clips(CLIPS, folder)
    source, still = (
        source_of(manifest),
        source_of(manifest, decoder="jobs.benchmarks.support.invented_video:StillVideo"),
    )
    stages = {"decode process": copies_of_decoding(next(Path(manifest).parents[1].glob("videos/*.mp4")).read_bytes())}
    with tempfile.TemporaryDirectory() as scratch, connected_ray(num_cpus=cores() + 1):
        stream = clip_stream(
            source, start_step=0, stop_step=7, num_ranks=1, decode=partial(traced_block, folder=scratch)
        )
        tables = stream.iter_batches(batch_size=source.share(1), batch_format="pyarrow", prefetch_batches=1)
        in_rank = [copies_in_rank(table, source) for table in tables]
        worker = [json.loads(path.read_text()) for path in Path(scratch).glob("*.json")]
    for name in ("worker", "object store"):
        stages[name] = max(block[name] for block in worker)
    for name in ("batches of Ray", "square", "tensor"):
        stages[name] = max(copies[name] for copies in in_rank)
    return {
        "copies": sum(stages.values()),
        "stages": stages,
        "store_bytes_per_clip": max(block["bytes"] for block in worker),
        "pixel_bytes_per_clip": max(block["pixel_bytes"] for block in worker),
        "cpu_ms": cpu_ms(still, num_rounds, num_repeats),
    }


def copies_of_decoding(data: bytes) -> int:
    """Return the copies from the decoder's own pictures to the shared memory, as a decode process makes them."""
    settings = {"kind": Kind.VIDEO, "num_frames": 8, "size_px": 224, "decoder": "pyav"}
    clip_bytes = decode_frames(data, **settings).nbytes
    buffer = PixelBuffer(8 * 224 * 224 * 3).expecting(8, 224)
    assert buffer.fd is not None, "this system has no memfd"
    slot = SharedSlot(os.dup(buffer.fd), buffer.encode_slot())
    with stacking_into(slot), clips_allocated(clip_bytes) as more:
        frames = decode_frames(data, **settings)
    is_there = frames is slot.frames
    slot.close()
    return more[0] + (1 if is_there else 2)


def traced_block(numbers: pa.Table, *, source: ClipSource, folder: str, **settings: Any) -> pa.Table:
    """Return `decode_block`, and write to `folder` the copies of its pixels in this process and after it."""
    decode_block(numbers, source=source, **settings)  # warm up: the imports and reads of the first block do not count
    with clips_allocated(source.clip_bytes // 2) as more:
        table = decode_block(numbers, source=source, **settings)
    frames = table["frames"]
    is_shared = frames.num_chunks == 1 and "memfd:pixels" in region_of(address_of(frames.chunk(0)))
    pixel_bytes = frames.chunk(0).buffers()[2].size
    figures = {
        "worker": more[0] + (0 if is_shared else 1),
        "object store": 1,
        "bytes": stored_bytes(table) / len(table),
        "pixel_bytes": pixel_bytes / len(table),
    }
    Path(folder, f"{numbers['id'][0].as_py()}.json").write_text(json.dumps(figures))
    return table


def copies_in_rank(table: pa.Table, source: ClipSource) -> dict[str, int]:
    """Return the copies from the object store to the tensor."""
    frames = table["frames"]
    is_store = frames.num_chunks == 1 and "plasma" in region_of(address_of(frames.chunk(0)))
    with clips_allocated(len(table) * source.clip_bytes) as squares:
        rows = clip_rows(table, source=source, epoch=0)
    tensor = as_tensor(rows.frames)
    is_same = tensor.data_ptr() == rows.frames.__array_interface__["data"][0]
    return {"batches of Ray": 0 if is_store else 1, "square": squares[0], "tensor": 0 if is_same else 1}


@contextmanager
def clips_allocated(clip_bytes: int) -> Iterator[list[int]]:
    """Yield a list that receives at the end the peak of new memory within the context, of NumPy and Python, in
    clips."""
    tracemalloc.start()
    peaks: list[int] = []
    try:
        yield peaks
        peaks.append(tracemalloc.get_traced_memory()[1] // clip_bytes)
    finally:
        tracemalloc.stop()


def address_of(array: pa.Array) -> int:
    """Return the address of the data of an array of bytes."""
    return array.buffers()[2].address


def region_of(address: int) -> str:
    """Return the name of the mapping that contains an address of this process; empty for anonymous memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, name = line.split(maxsplit=5) if line.count("/") else (*line.split()[:1], "")
        start, stop = (int(edge, 16) for edge in place.split("-"))
        if start <= address < stop:
            return name
    raise ValueError(f"address {address:#x} is not mapped")


def stored_bytes(table: pa.Table) -> int:
    """Return the bytes that a table takes in the object store."""
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(table, protocol=5, buffer_callback=buffers.append)
    return sum(buffer.raw().nbytes for buffer in buffers)


def cpu_ms(source: ClipSource, num_rounds: int, num_repeats: int) -> dict[str, float]:
    """Return the median CPU milliseconds of a clip in the worker, the decode process and the rank, without Ray."""
    block = pa.table({"id": [2]})
    decode = partial(decode_block, source=source, start_step=0, stop_step=100, num_ranks=1)
    table, share = decode(block), source.share(1)
    assert min(table["weight"].to_pylist()) == 1, table["detail"].to_pylist()
    store, tensors = np.zeros(2 * stored_bytes(table), np.uint8), {}

    def work() -> None:
        put(decode(block), store)

    def read() -> None:
        for first in range(0, len(table), share):
            rows = clip_rows(table.slice(first, share), source=source, epoch=0)
            tensors.update(frames=as_tensor(rows.frames), frame_pad_mask=as_tensor(rows.frame_pad_mask))

    seconds: dict[str, list[float]] = {"worker": [], "decode process": [], "rank": []}
    for _ in range(num_rounds):
        for names, run in ((("worker", "decode process"), work), (("rank",), read)):
            before = own_and_children()
            for _ in range(num_repeats):
                run()
            used = [after - start for after, start in zip(own_and_children(), before, strict=True)]
            for name, value in zip(names, used, strict=False):
                seconds[name].append(value / num_repeats / len(table))
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def put(table: pa.Table, store: np.ndarray) -> None:
    """Copy a table's buffers as an object store would."""
    buffers: list[pickle.PickleBuffer] = []
    pickle.Pickler(io.BytesIO(), protocol=5, buffer_callback=buffers.append).dump(table)
    place = 0
    for buffer in buffers:
        raw = np.frombuffer(buffer.raw(), np.uint8)
        store[place : place + raw.size] = raw
        place += raw.size


def own_and_children() -> tuple[float, float]:
    """Return the CPU seconds of this process, and of its living children."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time(), sum(child_times.user + child_times.system for child_times in times)
