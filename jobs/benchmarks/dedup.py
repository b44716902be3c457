"""Recall and false positives of `jobs/deduplicate.py` on planted copies among generated clips.

Clips are drawn from a seed: coloured objects move over a texture, which is panned in half of the clips. Some clips are
similar on purpose without being copies: they share the texture, or objects and motion, with another clip. A copy is cut
by up to 20 % of its length, scaled to 50–150 % and encoded again at CRF 35, all three at once.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from jobs.benchmarks.support.fixtures import manifest_row, process_pool
from jobs.corpus.deduplication import DeduplicateConfig, deduplicate
from pipeline.corpus import manifest
from pipeline.decode.codec import encode_video, open_video

FPS = 12
WIDTH_PX, HEIGHT_PX = 160, 120
MIN_SECONDS, MAX_SECONDS = 3.0, 5.0
FAMILY = 10
"""In each group of ten clips, the second to fourth share the texture of the first; the fifth shares its objects and
motion."""
COPY_CRF, MIN_SCALE, MAX_SCALE, MAX_CUT = 35, 0.5, 1.5, 0.2


def drawn_thing(rng: np.random.Generator) -> Callable[[ImageDraw.ImageDraw, float], None]:
    """Draw the appearance and the path of an ellipse or a rectangle; return a function that paints it at a time."""
    red, green, blue = rng.integers(0, 256, 3).tolist()
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(10, 90)
    is_round = bool(rng.integers(2))
    size, start = rng.uniform(7, 22, 2), rng.uniform((0, 0), (WIDTH_PX, HEIGHT_PX))
    velocity = speed * np.array([np.cos(angle), np.sin(angle)])
    swing, swings_per_second = rng.uniform(0, 15), rng.uniform(0.2, 1.0)

    def paint(pen: ImageDraw.ImageDraw, seconds: float) -> None:
        border = np.array([WIDTH_PX, HEIGHT_PX])
        centre = border - abs((start + velocity * seconds) % (2 * border) - border)  # it bounces off the border
        centre[1] += swing * np.sin(2 * np.pi * swings_per_second * seconds)
        (left, top), (right, bottom) = (centre - size).tolist(), (centre + size).tolist()
        (pen.ellipse if is_round else pen.rectangle)((left, top, right, bottom), fill=(red, green, blue))

    return paint


def drawn_texture(rng: np.random.Generator) -> Image.Image:
    """Draw coloured noise of three grain sizes, twice as large as the picture so that it can be panned."""
    size = (2 * WIDTH_PX, 2 * HEIGHT_PX)
    texture = np.zeros((size[1], size[0], 3)) + rng.uniform(60, 195, 3)
    for cells, strength in ((rng.integers(4, 9), 30), (rng.integers(12, 24), 20), (rng.integers(40, 80), 12)):
        grid = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            plane = Image.fromarray(grid[..., channel]).resize(size, Image.Resampling.BICUBIC)
            texture[..., channel] += np.asarray(plane)
    return Image.fromarray(texture.clip(0, 255).astype(np.uint8))


def frames_of(seed: int, index: int) -> UInt8[np.ndarray, "T 120 160 3"]:
    """Draw the frames of one clip."""
    first, place = index - index % FAMILY, index % FAMILY
    of_texture = np.random.default_rng([seed, 0, first if place in (1, 2, 3) else index])
    of_things = np.random.default_rng([seed, 1, first if place == 4 else index])
    num_frames = int(FPS * np.random.default_rng([seed, 2, index]).uniform(MIN_SECONDS, MAX_SECONDS))
    texture = drawn_texture(of_texture)
    pan = of_texture.uniform(-25, 25, 2) * of_texture.integers(2)
    things = [drawn_thing(of_things) for _ in range(of_things.integers(1, 4))]
    frames = []
    for seconds in np.arange(num_frames) / FPS:
        corner = np.array((WIDTH_PX, HEIGHT_PX)) / 2 + pan * (seconds - MAX_SECONDS / 2)
        left, top = corner.round().astype(int).tolist()
        frame = texture.crop((left, top, left + WIDTH_PX, top + HEIGHT_PX))
        for paint in things:
            paint(ImageDraw.Draw(frame), seconds)
        frames.append(np.asarray(frame))
    return np.stack(frames)


def copied(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, scale and encode a video again."""
    with open_video(data) as video:
        frames = video.frames(range(video.info.num_frames))
    num_cut = rng.uniform(0, MAX_CUT) * len(frames)
    start = int(rng.uniform(0, num_cut))
    scale = rng.uniform(MIN_SCALE, MAX_SCALE)
    size = (2 * round(WIDTH_PX * scale / 2), 2 * round(HEIGHT_PX * scale / 2))
    kept = frames[start : len(frames) - int(num_cut - start)]
    scaled = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in kept]
    return encode_video(np.stack(scaled), fps=FPS, crf=COPY_CRF)


def write_clip(folder: Path, seed: int, is_copied: bool, index: int) -> list[dict[str, Any]]:
    """Write a clip and, if it is copied, its copy into `folder`; return their rows of the manifest."""
    files = {f"{index:05d}.mp4": encode_video(frames_of(seed, index), fps=FPS)}
    if is_copied:
        files[f"{index:05d}-copy.mp4"] = copied(files[f"{index:05d}.mp4"], np.random.default_rng([seed, 3, index]))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [manifest_row("planted", folder / name, f"clip {name}") for name in files]


def write_corpus(folder: Path, *, seed: int, num_clips: int, num_copies: int) -> str:
    """Write clips and copies into `folder`; return the path of their manifest. Copied clips are drawn at random."""
    is_copied = np.zeros(num_clips, bool)
    is_copied[np.random.default_rng([seed, 4]).choice(num_clips, num_copies, replace=False)] = True
    write = functools.partial(write_clip, folder, seed)
    with process_pool() as pool:
        rows = [row for rows in pool.map(write, is_copied.tolist(), range(num_clips), chunksize=16) for row in rows]
    path = str(folder / "manifest.parquet")
    manifest.write_manifest(manifest.make_manifest("planted", str(folder), rows), path)
    return path


def scored(pairs: Iterable[tuple[str, str]], *, num_clips: int, num_copies: int) -> dict[str, Any]:
    """Return the recall of the planted pairs, and the share of the generated clips that are in any other pair.

    A pair is of two file names; the copy of `x.mp4` is called `x-copy.mp4`.
    """
    stems = [tuple(name.removesuffix(".mp4").removesuffix("-copy") for name in pair) for pair in pairs]
    num_found = len({stem for stem, other in stems if stem == other})
    flagged = {stem for pair in stems if pair[0] != pair[1] for stem in pair}
    return {
        "recall": num_found / num_copies,
        "false_positive_rate": len(flagged) / num_clips,
        "num_found": num_found,
        "num_flagged": len(flagged),
    }


def dedup(num_clips: int = 2000, num_copies: int = 200, seed: int = 0, folder: str | None = None) -> dict[str, Any]:
    """Return the recall of planted copies, and the share of wrongly flagged clips. `folder` keeps the corpus, which is
    removed by default."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(folder or temporary)
        root.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        path = write_corpus(root, seed=seed, num_clips=num_clips, num_copies=num_copies)
        generated = time.perf_counter()
        search = deduplicate(DeduplicateConfig(manifest=path, out=str(root / "out")))
        seconds_to_search = time.perf_counter() - generated
        rows = pq.read_table(search.pairs_path).to_pylist()
    names = [(Path(row["uri"]).name, Path(row["other_uri"]).name) for row in rows]
    return scored(names, num_clips=num_clips, num_copies=num_copies) | {
        "num_clips": num_clips,
        "num_copies": num_copies,
        "num_compared": search.num_compared,
        "seconds_to_generate": generated - start,
        "seconds_to_search": seconds_to_search,
        "seconds_per_clip": seconds_to_search / search.num_clips,
    }
