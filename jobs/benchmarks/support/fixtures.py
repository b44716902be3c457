"""Corpora, clip sources and child processes that several measurements share."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jobs import ROOT
from pipeline import storage
from pipeline.corpus.manifest import checksum, clip_id
from pipeline.decode.codec import encode_video, open_video
from pipeline.records import Kind
from pipeline.stream.epoch_plan import Plan
from pipeline.stream.loader import ClipSource
from pipeline.stream.source import split_rows

NUM_FRAMES, SIZE_PX = 8, 224
"""Frames and side of the clips in measurements of the data path."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_pool() -> ProcessPoolExecutor:
    """Return a pool with a process per core. Processes are spawned: a fork would inherit Ray and the threads of
    torch."""
    return ProcessPoolExecutor(cores(), mp_context=multiprocessing.get_context("spawn"))


def json_of_child(
    module: str, *arguments: Any, python: str = sys.executable, environment: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """Run a module with `arguments` in a separate process and return the JSON of its last line of output.

    Raise CalledProcessError with the output in a note if it fails.
    """
    command = [python, "-m", module, *map(str, arguments)]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment)
    try:
        process = subprocess.run(command, check=True, cwd=ROOT, env=variables, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr[-3000:])
        raise
    return json.loads(process.stdout.splitlines()[-1])


def data_folder(named: str | None, what: str) -> Path:
    """Return the folder `named`, or that of SNPS3_TEST_DATA. Raise FileNotFoundError if neither names a folder."""
    folder = named or os.environ.get("SNPS3_TEST_DATA")
    if not folder:
        raise FileNotFoundError(f"{what} are read from a folder: name it with --data or SNPS3_TEST_DATA")
    return Path(folder)


def write_small_clips(folder: str, num_clips: int) -> str:
    """Write clips of bright blocks into `folder`/videos, local or in a bucket; return the path of their captions."""
    rng, lines = np.random.default_rng(0), []
    for number in range(num_clips):
        frames = rng.integers(64, 256, (12, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        storage.write_bytes_atomic(f"{folder}/videos/{number:05}.mp4", encode_video(frames, fps=8, gop=6))
        lines.append(json.dumps({"caption": f"clip number {number}", "clip_name": f"{number:05}", "type": "video"}))
    storage.write_bytes_atomic(f"{folder}/captions.jsonl", "\n".join(lines).encode())
    return f"{folder}/captions.jsonl"


def embedded_corpus(root: Path, *, name: str | None = None, num_test: int = 12, num_processes: int = 1) -> str:
    """Create and prepare a small embedded corpus in `root` if it does not exist; return the path of its manifest.

    `name` enters the ids of its clips; by default the name of the folder.
    """
    from jobs.corpus.preparation import PrepareConfig, prepare
    from pipeline.synthetic.clips import CorpusConfig
    from pipeline.synthetic.corpus import make_corpus

    path = root / "manifest" / "manifest.parquet"
    if not path.exists():
        sizes = CorpusConfig(
            num_train_videos=70, num_train_images=10, num_val=8, num_test=num_test, num_temporal_groups=2
        )
        make_corpus(sizes, root, num_processes=num_processes)
        annotations = tuple(sorted(str(file) for file in (root / "annotations").glob("*.jsonl")))
        prepare(PrepareConfig(corpus=name or root.name, root=str(root), out=str(path.parent), annotations=annotations))
    return str(path)


def manifest_row(corpus: str, path: Path, caption: str, split: str = "train") -> dict[str, Any]:
    """Return the row of a video file in the manifest of `corpus`."""
    data = path.read_bytes()
    with open_video(data) as video:
        known = dataclasses.asdict(video.info)
    named = {"clip_id": clip_id(corpus, path.name), "uri": str(path), "captions": [caption], "split": split}
    return known | named | {"kind": str(Kind.VIDEO), "bytes": len(data), "checksum": checksum(data)}


def small_corpus(folder: str) -> str:
    """Return the path of the manifest of a small embedded corpus in `folder`/corpus."""
    return embedded_corpus(Path(folder, "corpus"), name="small")


def clip_source(manifest: str, *, num_frames: int, size_px: int, batch: int, **changes: Any) -> ClipSource:
    """Return a source of all training videos of a manifest in the order of training, epoch after epoch."""
    num_videos = len(split_rows(manifest, "train")[Kind.VIDEO])
    plan = Plan(seed=0, num_videos=num_videos, num_images=0, global_batch=batch)
    settings = {"split": "train", "decoder": "decord", "seed": 0, "plan": plan, "batch": batch} | changes
    return ClipSource(manifest_path=manifest, num_frames=num_frames, frame_size_px=size_px, **settings)
