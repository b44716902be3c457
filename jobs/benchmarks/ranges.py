"""Bytes that an epoch of short clips of one long video reads from a store: `ranges` of `python jobs/benchmark.py`.

The video has 426×240 pixels at 25 frames per second and sound, in x264's defaults with a preset, so a key frame in 250
frames. Needed are the bytes of the packets from the key frame before each clip's first frame to its last frame; if that
is in another group of pictures, from its key frame on. A proxy before the store counts the fetched bytes: the bodies of
all responses to GET, including the manifest, the index, truncated responses and retries.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import av
import numpy as np

from cluster.connection import connected_ray
from jobs.benchmarks.support.faulty_store import ENDPOINT, Faults, faulty_store, store_endpoint
from jobs.benchmarks.support.fixtures import NUM_FRAMES, SIZE_PX, clip_source
from jobs.corpus.preparation import PrepareConfig, prepare
from pipeline import storage
from pipeline.corpus.manifest import read_manifest
from pipeline.decode.clip_media import index_at
from pipeline.decode.codec import clip_indices, fit_long_side
from pipeline.decode.video import PyavVideo
from pipeline.records import Kind
from pipeline.stream.loader import ClipSource, clip_stream, sampling_arguments
from pipeline.stream.source import split_rows

BATCH, FPS, WIDTH, HEIGHT = 8, 25, 426, 240
KEPT = ["clip_id", "weight", "reason", "num_retries", "frames"]


def ranges(
    num_minutes: int = 60,
    num_clips: int = 300,
    clip_seconds: float = 5.0,
    slow_down_every: int = 10,
    cut_every: int = 50,
    latency_seconds: float = 0.2,
    container: str = "mp4",
    film: str | None = None,
) -> dict[str, Any]:
    """Return the bytes fetched over bytes needed in an epoch, from the plain store and from one with faults; whether
    the pixels equal those decoded from the whole file; and the clips lost.

    The film is created in `container`, or read from the file `film`, and uploaded to a new bucket of the server in
    AWS_ENDPOINT_URL, which is removed at the end.
    """
    endpoint = store_endpoint()
    faults = Faults(slow_down_every=slow_down_every, cut_every=cut_every, latency_seconds=latency_seconds)
    with (
        tempfile.TemporaryDirectory() as folder,
        storage.temporary_bucket(f"s3://snps3-{uuid.uuid4().hex[:12]}") as bucket,
    ):
        data = Path(film or write_film(Path(folder, f"film.{container}"), num_minutes)).read_bytes()
        captions = upload(bucket, data, container, num_clips, clip_seconds)
        config = PrepareConfig(
            corpus="ranges", root=f"{bucket}/videos", annotations=(captions,), out=bucket, decoder="pyav"
        )
        started = time.perf_counter()
        with connected_ray():
            manifest_path = prepare(config).manifest_path
        prepare_seconds = time.perf_counter() - started
        source = clip_source(manifest_path, num_frames=NUM_FRAMES, size_px=SIZE_PX, batch=BATCH, decoder="pyav")
        whole, num_needed = of_whole_file(source, data)
        direct, faulty = epoch(source, endpoint, Faults(), whole), epoch(source, endpoint, faults, whole)
        index_bytes = len(storage.read_bytes(read_manifest(manifest_path).table["packets"][0].as_py()))
    return {
        "bytes_over_needed": direct["num_bytes"] / num_needed,
        "bytes_over_needed_faulty": faulty["num_bytes"] / num_needed,
        "pixels_equal": direct["pixels_equal"] and faulty["pixels_equal"],
        "num_lost": direct["num_lost"] + faulty["num_lost"],
        "needed_bytes": num_needed,
        "file_bytes": len(data),
        "index_bytes": index_bytes,
        "clips": num_clips,
        "retries": faulty["num_retries"],
        "faults": faulty["faults"],
        "seconds_prepare": prepare_seconds,
        "seconds_direct": direct["seconds"],
        "seconds_faulty": faulty["seconds"],
    }


def write_film(path: Path, num_minutes: int) -> Path:
    """Write a film whose frames all differ, and return its path."""
    rng, seconds = np.random.default_rng(0), 60 * num_minutes
    coarse = rng.integers(0, 256, (64, 128, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    canvas = (coarse * 0.8 + rng.integers(0, 50, coarse.shape)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        picture: Any = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "threads": "2"})
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound: Any = container.add_stream("aac", rate=16000, layout="mono")
        for second in range(seconds):
            for number in range(second * FPS, (second + 1) * FPS):
                x = int((0.5 + 0.5 * np.sin(number / 311)) * (canvas.shape[1] - WIDTH))
                y = int((0.5 + 0.5 * np.sin(number / 173 + number / 9000)) * (canvas.shape[0] - HEIGHT))
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(canvas[y : y + HEIGHT, x : x + WIDTH]), "rgb24")
                container.mux(picture.encode(frame))
            heard = av.AudioFrame.from_ndarray(rng.normal(0, 0.1, (1, 16000)).astype(np.float32), "fltp", "mono")
            heard.rate, heard.pts = 16000, second * 16000
            container.mux(sound.encode(heard))
        container.mux(picture.encode())
        container.mux(sound.encode())
    return path


def upload(bucket: str, data: bytes, container: str, num_clips: int, clip_seconds: float) -> str:
    """Upload the film and captions of clips at random places of it; return the path of the captions."""
    storage.write_bytes_atomic(f"{bucket}/videos/film.{container}", data)
    with PyavVideo(data) as video:
        length = video.timeline.end
    starts = np.random.default_rng(1).uniform(0, length - clip_seconds, num_clips).round(3).tolist()
    rows = [
        {
            "clip_name": f"film.{container}",
            "caption": f"clip number {number}",
            "start": start,
            "end": start + clip_seconds,
        }
        for number, start in enumerate(starts)
    ]
    storage.write_bytes_atomic(f"{bucket}/captions.jsonl", "\n".join(map(json.dumps, rows)).encode())
    return f"{bucket}/captions.jsonl"


def of_whole_file(source: ClipSource, data: bytes) -> tuple[dict[int, str], int]:
    """Return a digest of each clip's pixels, decoded from the whole file, and the bytes of the packets needed."""
    table, digests, num_needed = split_rows(source.manifest_path, source.split)[Kind.VIDEO], {}, 0
    with PyavVideo(data) as video:
        size = fit_long_side(video.info.width, video.info.height, SIZE_PX)
        for step in range(num_steps(source)):
            planned = source.planned(step)
            for place in planned.rows[planned.rows >= 0].tolist():
                row = table.slice(place, 1).to_pylist()[0]
                frames = clip_indices(video.timeline, **sampling_arguments(source, planned, row))
                digests[row["clip_id"]] = digest_of(video.frames(frames, size).tobytes())
                num_needed += len(
                    index_at(row["packets"]).cut(frames, lambda start, stop: data[start:stop], num_extra_groups=0)
                )
    return digests, num_needed


def epoch(source: ClipSource, endpoint: str, faults: Faults, whole: dict[int, str]) -> dict[str, Any]:
    """Return the bytes fetched, the clips lost and the time of an epoch through a store with `faults`."""
    with faulty_store(endpoint, faults) as store, connected_ray(worker_environment={ENDPOINT: store.endpoint}):
        stream = clip_stream(source, start_step=0, stop_step=num_steps(source), num_ranks=1)
        started, rows = time.perf_counter(), []
        tables: Any = stream.select_columns(KEPT).iter_batches(batch_size=None, batch_format="pyarrow")
        for table in tables:
            rows += [row | {"frames": digest_of(row["frames"])} for row in table.to_pylist()]
        seconds = time.perf_counter() - started
    shown = {row["clip_id"]: row["frames"] for row in rows if row["weight"]}
    return {
        "num_bytes": store.num_bytes,
        "num_lost": len(whole.keys() - shown.keys()),
        "pixels_equal": all(whole[clip_id] == digest for clip_id, digest in shown.items()) and bool(shown),
        "num_retries": sum(row["num_retries"] for row in rows),
        "faults": dict(store.counts),
        "seconds": seconds,
    }


def num_steps(source: ClipSource) -> int:
    """Return the steps of an epoch."""
    return -(-len(split_rows(source.manifest_path, source.split)[Kind.VIDEO]) // BATCH)


def digest_of(pixels: bytes) -> str:
    """Return a hex digest of pixels."""
    return hashlib.blake2b(pixels, digest_size=16).hexdigest()
