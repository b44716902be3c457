"""Many small objects in a bucket, copies of a few videos under other names, and their probe results in `prepare`.

few videos ──under many names──► bucket ──► list · fetch · checksum ──► rows, each video decoded once in a process
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.benchmarks.support.prepare_run import name_of
from pipeline import storage
from pipeline.corpus import manifest
from pipeline.corpus.fetching import fetch_start
from pipeline.decode.codec import encode_video
from pipeline.decode.config import Limits
from pipeline.offline.probing import ProbedFile
from pipeline.offline.stages import ClipProbe, probe_files
from pipeline.records import Stored

NUM_VIDEOS = 8
NUM_THREADS = 32


@functools.cache
def videos() -> tuple[bytes, ...]:
    """Return the few videos, each of twelve frames of 64 × 48 pixels in H.264."""
    rng = np.random.default_rng(0)
    noise = (rng.integers(64, 256, (12, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2) for _ in range(NUM_VIDEOS))
    return tuple(encode_video(frames, fps=8, gop=6) for frames in noise)


def video_of(name: str) -> bytes:
    """Return the content of the object with a name from `name_of`."""
    return videos()[int(name.rpartition("/")[2].removesuffix(".mp4")) % NUM_VIDEOS]


def upload(folder: str, num_objects: int) -> int:
    """Upload the missing objects below `folder`, and return how many. Raise ValueError if there are other objects."""
    there, names = {path for path, _ in storage.iter_versions(folder)}, [*map(name_of, range(num_objects))]
    if others := there.difference(names):
        raise ValueError(f"{folder} has {len(others)} more objects than {num_objects}, as {min(others)}: name another")
    missing = [name for name in names if name not in there]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in pool.map(lambda name: storage.write_bytes_atomic(storage.join(folder, name), video_of(name)), missing):
            pass
    return len(missing)


def probe_known(
    batch: pa.Table, decoder: str, limits: Limits, packets_folder: str | None = None, *, is_fetched: bool
) -> pa.Table:
    """Replace `probe_batch`: a process decodes each of the few videos only once.

    `is_fetched`: read objects from their bucket; otherwise their names identify the video.
    """
    del packets_folder  # unused: nothing is written for short videos of one clip
    keys = [field for field in batch.schema if field.name == "key"]

    def make_probe(uri: str, data: Stored | Any) -> ClipProbe:
        del uri
        return lambda clip: dict(found_in(data, clip["kind"], decoder, limits))

    fetch: Callable[[str], Any] = fetch_start if is_fetched else video_of
    return probe_files(batch, make_probe, pa.schema([*manifest.SCHEMA, *keys]), fetch)


@functools.cache
def found_in(data: bytes, kind: str, decoder: str, limits: Limits) -> dict[str, Any]:
    """Return the columns of a manifest that `prepare` finds in a video of one clip."""
    clip = {"start_seconds": None, "end_seconds": None, "kind": kind}
    return ProbedFile("a.mp4", data, decoder, limits, None).columns(clip)
