"""`index-scale` of `python jobs/benchmark.py`: the cost of an index of hours of video, each size in its own process.

The films are consecutive scenes of the embedded corpus, half an hour each.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from jobs.inference.index import EmbedConfig
from jobs.inference.index_files import num_windows, parts_in
from jobs.inference.local_index import embed_here
from pipeline.decode.codec import encode_video
from pipeline.synthetic.render import render_video
from pipeline.synthetic.splits import Richness, train_scenes

FILM_SECONDS, FPS, SIZE_PX = 1800, 6, 64
SCENE_SECONDS = 10


def index_scale(run: str = "runs/tiny", hours: tuple[float, ...] = (1.0, 2.5, 5.0)) -> dict[str, Any]:
    """Return CPU seconds and peak memory of an index of `hours`, the CPU seconds per additional hour (slope), and the
    cost of a second run: without new films, and with one new film, relative to the first run's cost of a film.

    Films last half an hour; raise ValueError if `hours` are not multiples of that.
    """
    counts = [round(3600 * length / FILM_SECONDS) for length in hours]
    if [FILM_SECONDS * count / 3600 for count in counts] != [*hours]:
        raise ValueError(f"--hours must be of films of half an hour, got {hours}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "film.mp4").write_bytes(film())
        with ThreadPoolExecutor() as at_once:  # CPU seconds and memory are those of each process
            first = at_once.map(functools.partial(first_run, root, run), counts)
            results = {f"{length:g}_hours": result for length, result in zip(hours, first, strict=True)}
        videos, index = folders(root, counts[-1])
        nothing = embedded(run, videos, index)
        shutil.copyfile(root / "film.mp4", f"{videos}/one-more.mp4")
        one_more = embedded(run, videos, index)
    cpu = [result["cpu_seconds"] for result in results.values()]
    slope, start = np.polyfit(hours, cpu, 1)
    memory = [result["peak_mib"] for result in results.values()]
    return {
        "cpu_seconds_per_hour": float(slope),
        "cpu_seconds_of_start": float(start),
        "peak_mib_of_most_over_least": memory[-1] / memory[0],
        "again_cpu_seconds": nothing["cpu_seconds"],
        "one_more_cpu_seconds": one_more["cpu_seconds"],
        "one_more_embedded": one_more["embedded"],
        "cpu_seconds_per_film": float(slope) * FILM_SECONDS / 3600,
    } | results


def film() -> bytes:
    """Return half an hour of scenes."""
    scenes = train_scenes(0, Richness(), FILM_SECONDS // SCENE_SECONDS)
    shots = [render_video(scene, num_frames=SCENE_SECONDS * FPS, size_px=SIZE_PX) for scene in scenes]
    return encode_video(np.concatenate(shots), fps=FPS)


def folders(root: Path, count: int) -> tuple[str, str]:
    """Return the folders of `count` films and of their index."""
    return str(root / f"videos-{count}"), str(root / f"index-{count}")


def first_run(root: Path, run: str, count: int) -> dict[str, Any]:
    """Index `count` films."""
    videos, index = folders(root, count)
    os.makedirs(videos)
    for number in range(count):
        shutil.copyfile(root / "film.mp4", f"{videos}/{number:02}.mp4")
    return embedded(run, videos, index) | {"windows": sum(map(num_windows, parts_in(index)))}


def embedded(run: str, videos: str, index: str) -> dict[str, Any]:
    """Bring an index up to date in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(embed_measured, run, videos, index).result()


def embed_measured(run: str, videos: str, index: str) -> dict[str, Any]:
    """Bring an index up to date; return the number of embedded files, CPU seconds and peak memory of this process and
    of its decode processes."""
    before = time_of_cpu()
    count = len(embed_here(EmbedConfig(run=run, videos=videos, out=index)))
    peaks = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"embedded": count, "cpu_seconds": time_of_cpu() - before, "peak_mib": peaks}


def time_of_cpu() -> float:
    """Return CPU seconds of this process and its children, including ended ones."""
    alive = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
    return sum(os.times()[:4]) + alive
