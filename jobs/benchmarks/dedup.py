"""Planted copies among generated clips: how many `jobs/deduplicate.py` finds, and what it takes for a copy and is none.

Clips are drawn from a seed: things of some colours move over a texture, which is panned in half of the clips. Some are
made alike on purpose and are no copies: they share the texture, or things and motion, with another clip. A copy is cut
by up to 20 % of its length, scaled to between 50 and 150 % and encoded again at CRF 35, all three at once.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from jobs.corpus.deduplication import DeduplicateConfig, deduplicate
from pipeline.corpus import manifest
from pipeline.decode.codec import encode_video, open_video
from pipeline.records import Kind

FPS = 12
WIDTH_PX, HEIGHT_PX = 160, 120
LEAST_SECONDS, MOST_SECONDS = 3.0, 5.0
FAMILY = 10
"""Of so many clips the second to fourth share the texture of the first, the fifth shares its things and motion."""
COPY_CRF, LEAST_SCALE, MOST_SCALE, MOST_CUT = 35, 0.5, 1.5, 0.2


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An ellipse or a rectangle on its way; lengths in pixels."""

    is_round: bool
    colour: tuple[int, int, int]
    size: tuple[float, float]
    start: tuple[float, float]
    speed: tuple[float, float]
    """Per second; it turns around at the border."""
    swing: float
    swings_per_second: float

    def box(self, seconds: float) -> tuple[float, float, float, float]:
        """Left, top, right and bottom at a time."""
        swing = self.swing * np.sin(2 * np.pi * self.swings_per_second * seconds)
        x = _bounced(self.start[0] + self.speed[0] * seconds, WIDTH_PX)
        y = _bounced(self.start[1] + self.speed[1] * seconds, HEIGHT_PX) + swing
        return x - self.size[0], y - self.size[1], x + self.size[0], y + self.size[1]


def _bounced(position: float, length: float) -> float:
    return length - abs(position % (2 * length) - length)


def drawn_thing(rng: np.random.Generator) -> Thing:
    """A thing of random looks on a random way."""
    red, green, blue = rng.integers(0, 256, 3).tolist()
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(10, 90)
    return Thing(
        is_round=bool(rng.integers(2)),
        colour=(red, green, blue),
        size=(rng.uniform(7, 22), rng.uniform(7, 22)),
        start=(rng.uniform(0, WIDTH_PX), rng.uniform(0, HEIGHT_PX)),
        speed=(speed * np.cos(angle), speed * np.sin(angle)),
        swing=rng.uniform(0, 15),
        swings_per_second=rng.uniform(0.2, 1.0),
    )


def drawn_texture(rng: np.random.Generator) -> Image.Image:
    """Coloured noise of three sizes of grain, larger than the picture by the way it can be panned."""
    size = (2 * WIDTH_PX, 2 * HEIGHT_PX)
    sum_ = np.zeros((size[1], size[0], 3)) + rng.uniform(60, 195, 3)
    for cells, strength in ((rng.integers(4, 9), 30), (rng.integers(12, 24), 20), (rng.integers(40, 80), 12)):
        grid = rng.normal(0, strength, (cells, cells, 3))
        planes = [
            Image.fromarray(grid[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC) for c in range(3)
        ]
        sum_ += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return Image.fromarray(sum_.clip(0, 255).astype(np.uint8))


def frames_of(seed: int, index: int) -> UInt8[np.ndarray, "T 120 160 3"]:
    """The frames of one clip."""
    first, place = index - index % FAMILY, index % FAMILY
    of_texture = np.random.default_rng([seed, 0, first if place in (1, 2, 3) else index])
    of_things = np.random.default_rng([seed, 1, first if place == 4 else index])
    num_frames = int(FPS * np.random.default_rng([seed, 2, index]).uniform(LEAST_SECONDS, MOST_SECONDS))
    texture = drawn_texture(of_texture)
    pan = of_texture.uniform(-25, 25, 2) * of_texture.integers(2)
    things = [drawn_thing(of_things) for _ in range(of_things.integers(1, 4))]
    frames = []
    for seconds in np.arange(num_frames) / FPS:
        left, top = (
            (np.array((WIDTH_PX, HEIGHT_PX)) / 2 + pan * (seconds - MOST_SECONDS / 2)).round().astype(int).tolist()
        )
        frame = texture.crop((left, top, left + WIDTH_PX, top + HEIGHT_PX))
        pen = ImageDraw.Draw(frame)
        for thing in things:
            (pen.ellipse if thing.is_round else pen.rectangle)(thing.box(seconds), fill=thing.colour)
        frames.append(np.asarray(frame))
    return np.stack(frames)


def copied(data: bytes, rng: np.random.Generator) -> bytes:
    """A video cut, scaled and encoded again."""
    with open_video(data) as video:
        frames = video.frames(range(video.info.num_frames))
    num_cut = rng.uniform(0, MOST_CUT) * len(frames)
    start = int(rng.uniform(0, num_cut))
    scale = rng.uniform(LEAST_SCALE, MOST_SCALE)
    size = (2 * round(WIDTH_PX * scale / 2), 2 * round(HEIGHT_PX * scale / 2))
    kept = frames[start : len(frames) - int(num_cut - start)]
    scaled = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in kept]
    return encode_video(np.stack(scaled), fps=FPS, crf=COPY_CRF)


def write_clip(folder: Path, seed: int, is_copied: bool, index: int) -> list[dict[str, Any]]:
    """The manifest rows of a clip and, if it is copied, of its copy; their files lie in `folder`."""
    files = {f"{index:05d}.mp4": encode_video(frames_of(seed, index), fps=FPS)}
    if is_copied:
        files[f"{index:05d}-copy.mp4"] = copied(files[f"{index:05d}.mp4"], np.random.default_rng([seed, 3, index]))
    rows = []
    for name, data in files.items():
        (folder / name).write_bytes(data)
        with open_video(data) as video:
            known = dataclasses.asdict(video.info)
        rows.append(
            known
            | {
                "clip_id": manifest.clip_id("planted", name),
                "uri": str(folder / name),
                "captions": [f"clip {name}"],
                "kind": str(Kind.VIDEO),
                "split": "train",
                "bytes": len(data),
                "checksum": manifest.checksum(data),
            }
        )
    return rows


def write_corpus(folder: Path, *, seed: int, num_clips: int, num_copies: int) -> str:
    """The manifest of the clips and copies in `folder`. Copies are of clips spread over all."""
    is_copied = np.zeros(num_clips, bool)
    is_copied[np.random.default_rng([seed, 4]).choice(num_clips, num_copies, replace=False)] = True
    write = functools.partial(write_clip, folder, seed)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = [row for rows in pool.map(write, is_copied.tolist(), range(num_clips), chunksize=16) for row in rows]
    path = str(folder / "manifest.parquet")
    manifest.write_manifest(manifest.make_manifest("planted", str(folder), rows), path)
    return path


def scored(pairs: Iterable[tuple[str, str]], *, num_clips: int, num_copies: int) -> dict[str, Any]:
    """Recall of the planted pairs, and the share of the generated clips that are in any other pair.

    A pair is of two file names; the copy of `x.mp4` is called `x-copy.mp4`.
    """
    stems = [tuple(name.removesuffix(".mp4").removesuffix("-copy") for name in pair) for pair in pairs]
    num_found = len({one for one, other in stems if one == other})
    flagged = {stem for pair in stems if pair[0] != pair[1] for stem in pair}
    return {
        "recall": num_found / num_copies,
        "false_positive_rate": len(flagged) / num_clips,
        "num_found": num_found,
        "num_flagged": len(flagged),
    }


def dedup(num_clips: int = 2000, num_copies: int = 200, seed: int = 0, folder: str | None = None) -> dict[str, Any]:
    """Planted copies found and clips wrongly flagged. `folder` keeps the corpus, which is removed by default."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(folder or temporary)
        root.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        path = write_corpus(root, seed=seed, num_clips=num_clips, num_copies=num_copies)
        made = time.perf_counter()
        done = deduplicate(DeduplicateConfig(manifest=path, out=str(root / "out")))
        searched = time.perf_counter()
        rows = pq.read_table(done.pairs_path).to_pylist()
    names = [(Path(row["uri"]).name, Path(row["other_uri"]).name) for row in rows]
    return scored(names, num_clips=num_clips, num_copies=num_copies) | {
        "num_clips": num_clips,
        "num_copies": num_copies,
        "num_compared": done.num_compared,
        "seconds_to_generate": made - started,
        "seconds_to_search": searched - made,
        "seconds_per_clip": (searched - made) / done.num_clips,
    }
