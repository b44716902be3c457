"""`dedup-scale` of `python jobs/benchmark.py`: the cost of the search for copies, by number of clips.

Clips are drawn thumbnails (`drawn_prints`); one in a hundred has a copy. Nothing is decoded. The tasks of the search
run sequentially in one process, without Ray: its private memory is an upper bound for any process of a cluster.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.benchmarks.dedup import HEIGHT_PX, WIDTH_PX, scored
from jobs.benchmarks.support import drawn_prints
from jobs.benchmarks.support.fixtures import json_of_child, process_pool
from pipeline import storage
from pipeline.corpus.content import checksum
from pipeline.corpus.manifest import make_manifest
from pipeline.corpus.parts import write_parts
from pipeline.dedup.candidates import NUM_BANDS, SKETCH_BITS, Banding, candidates, entries_of, unique_pairs
from pipeline.dedup.fingerprints import SCHEMA, cache_path, print_parts, write_prints
from pipeline.records import Kind

CHUNK = 4000
"""Clips that are drawn together, for one part of fingerprints."""
COPIED = 100
"""One in this many clips has a copy."""


def dedup_scale(
    sizes: tuple[int, ...] = (100_000, 300_000, 1_000_000),
    folder: str = "",
    alike_sizes: tuple[int, ...] = (5_000, 20_000, 80_000),
    seed: int = 0,
) -> dict[str, Any]:
    """Return CPU time, memory and recall of `deduplicate` by number of clips, and the number of similar clips.

    `folder` keeps the drawn thumbnails, which are removed by default. `alike_per_clip` counts pairs with two frames
    whose hashes differ in at most 8 bits, whether or not their sketches match.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(storage.absolute(folder or temporary))
        by_size = {}
        for size in sizes:
            by_size[str(size)] = measured(place, size, seed)
            print(json.dumps({size: by_size[str(size)]}), file=sys.stderr, flush=True)
        alike = {str(size): alike_per_clip(size, seed) for size in alike_sizes}
    costs = [by_size[str(size)]["cpu_seconds"] for size in sizes]
    largest = by_size[str(sizes[-1])]
    return {
        "exponent": math.log(costs[-1] / costs[0]) / math.log(sizes[-1] / sizes[0]) if len(sizes) > 1 else None,
        "cpu_minutes": costs[-1] / 60,
        "recall": largest["recall"],
        "false_positive_rate": largest["false_positive_rate"],
        "private_mib": largest["private_mib"],
        "alike_per_clip": alike,
        "by_size": by_size,
    }


def measured(place: Path, num_clips: int, seed: int) -> dict[str, Any]:
    """Search the first `num_clips` clips and their copies; return costs and results."""
    manifest = write_drawn(place, num_clips, seed)
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as in Ray's tasks
    module, out = "jobs.benchmarks.support.search_run", str(place / f"{num_clips}/out")
    taken = json_of_child(module, manifest, out, environment=threads)
    rows = storage.read_table(taken.pop("pairs_path"), ["uri", "other_uri"]).to_pylist()
    names = [(Path(row["uri"]).name, Path(row["other_uri"]).name) for row in rows]
    return taken | scored(names, num_clips=num_clips, num_copies=-(-num_clips // COPIED))


def write_drawn(place: Path, num_clips: int, seed: int) -> str:
    """Return a manifest in parts of the first `num_clips` clips and their copies, with their fingerprints beside it;
    reuse existing drawings."""
    manifest, drawn = str(place / f"{num_clips}/manifest"), place / f"drawn-{seed}"
    chunks = [(start, min(start + CHUNK, num_clips)) for start in range(0, num_clips, CHUNK)]
    with process_pool() as pool:
        list(pool.map(functools.partial(write_chunk, str(drawn), seed), chunks))
    prints = Path(cache_path(manifest))
    prints.mkdir(parents=True, exist_ok=True)
    for start, stop in chunks:
        for file in (drawn / f"{start}-{stop}").iterdir():
            if not (prints / file.name).exists():
                os.link(file, prints / file.name)
    tables = (table_of(range(*chunk)) for chunk in chunks)
    write_parts(manifest, tables, corpus="drawn", root="/")
    return manifest


def names_of(index: int) -> Iterator[tuple[int, str]]:
    """Yield id and name of a clip and, if it has one, of its copy."""
    yield 2 * index, f"{index}.mp4"
    if index % COPIED == 0:
        yield 2 * index + 1, f"{index}-copy.mp4"


def table_of(indices: range) -> pa.Table:
    """Return the rows of clips and copies in a manifest."""
    known = {"captions": ["a clip"], "kind": str(Kind.VIDEO), "split": "train", "num_frames": 48, "bytes": 1}
    known |= {"width": WIDTH_PX, "height": HEIGHT_PX}
    return make_manifest(
        "drawn",
        "/",
        [
            known | {"clip_id": clip_id, "uri": f"/{name}", "checksum": checksum(name.encode())}
            for index in indices
            for clip_id, name in names_of(index)
        ],
    ).table


def write_chunk(folder: str, seed: int, chunk: tuple[int, int]) -> None:
    """Write the fingerprints of clips and copies, if they are not there."""
    path = f"{folder}/{chunk[0]}-{chunk[1]}"
    if not any(print_parts(path)):
        write_prints(path, [drawn_table(range(*chunk), seed)], max_bytes=2**40)


def drawn_table(indices: range, seed: int) -> pa.Table:
    """Return the fingerprints of clips and copies."""
    rows = []
    for index in indices:
        for draw, (clip_id, name) in zip((drawn_prints.original, drawn_prints.copy), names_of(index), strict=False):
            rows.append((clip_id, checksum(name.encode()), draw(seed, index).tobytes()))
    return pa.Table.from_pydict(dict(zip(SCHEMA.names, zip(*rows, strict=True), strict=True)), schema=SCHEMA)


def alike_per_clip(num_clips: int, seed: int) -> float:
    """Return the pairs per clip with two frames whose hashes are nearly equal."""
    shown = [drawn_prints.original(seed, index) for index in range(num_clips)]
    lengths = list(map(len, shown))
    entries = entries_of(np.concatenate(shown), np.repeat(np.arange(num_clips), lengths))
    banding = replace(Banding.of(sum(lengths), 1.0), max_sketch_distance=SKETCH_BITS)
    pairs = [candidates(entries, banding, band) for band in range(NUM_BANDS)]
    return len(unique_pairs(np.concatenate(pairs))) / num_clips
