"""Third-party loaders on the clips of `ingest`, each in its best known setting, with decord and equally many processes.

They decode directly to our size with the aspect ratio kept, and do not pad. A loader that is not installed is listed
under `not_run`; Streaming and SPDL, whose pins or libraries conflict with ours, may get a separate Python. SPDL decodes
with its own reader, on threads, as intended by its authors.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NUM_FRAMES, BATCH, SIZE = 8, 4, (224, 126)
CLIPS_PER_SHARD = 25


def decode(data: bytes) -> Any:
    """Return 8 frames, one drawn from each eighth, as uint8 (8, 126, 224, 3)."""
    import decord

    reader = decord.VideoReader(io.BytesIO(data), num_threads=1, width=SIZE[0], height=SIZE[1])
    edges = np.linspace(0, len(reader), NUM_FRAMES + 1).astype(int)
    return reader.get_batch([int(np.random.randint(a, b)) for a, b in itertools.pairwise(edges)]).asnumpy()


def collate(samples: list[Any]) -> Any:
    """Decode a batch of clips in the loading process. A sample is a file, or holds one as "mp4"."""
    from torch.utils.data import default_collate

    return default_collate([decode(s.read_bytes() if isinstance(s, Path) else s["mp4"]) for s in samples])


def files(folder: str) -> list[Path]:
    """Return the files, for torch's DataLoader."""
    return sorted(Path(folder, "videos").glob("*.mp4"))


def tars(folder: str) -> Any:
    """Return the dataset of WebDataset over tars of 25 clips, which are written if they do not exist."""
    paths, out = files(folder), Path(folder, "tars")
    for start in range(0, 0 if out.exists() else len(paths), CLIPS_PER_SHARD):
        out.mkdir(exist_ok=True)
        with tarfile.open(out / f"{start:06}.tar", "w") as archive:
            for path in paths[start : start + CLIPS_PER_SHARD]:
                archive.add(path, path.name)
    shards = sorted(map(str, out.glob("*.tar")))
    return importlib.import_module("webdataset").WebDataset(shards, shardshuffle=len(shards), seed=0)


def mds(folder: str) -> Any:
    """Return the dataset of MosaicML Streaming over its own shards, which are written if they do not exist."""
    library, out = importlib.import_module("streaming"), str(Path(folder, "mds"))
    if not Path(out).exists():
        with library.MDSWriter(out=out, columns={"mp4": "bytes"}) as writer:
            for path in files(folder):
                writer.write({"mp4": path.read_bytes()})
    return library.StreamingDataset(local=out, batch_size=BATCH, shuffle=True)


def spdl_decode(path: Path) -> Any:
    """Decode as `decode` does, with SPDL's own reader, which skips groups of pictures without a sampled frame."""
    spdl_io = importlib.import_module("spdl.io")
    packets = spdl_io.demux_video(str(path))
    edges = np.linspace(0, len(packets), NUM_FRAMES + 1).astype(int)
    indices = [int(np.random.randint(a, b)) for a, b in itertools.pairwise(edges)]
    scaled = spdl_io.get_video_filter_desc(scale_width=SIZE[0], scale_height=SIZE[1], pix_fmt="rgb24")
    frames = spdl_io.sample_decode_video(packets, indices, filter_desc=scaled)
    return spdl_io.to_numpy(spdl_io.convert_frames(frames))


def spdl_batches(paths: list[Path], num_workers: int, num_passes: int) -> Iterator[Any]:
    """Yield batches of SPDL's pipeline of threads."""
    import torch

    def source() -> Iterator[Path]:
        for seed in range(num_passes):
            yield from (paths[index] for index in np.random.default_rng(seed).permutation(len(paths)))

    builder = importlib.import_module("spdl.pipeline").PipelineBuilder()
    decoded = builder.add_source(source()).pipe(spdl_decode, concurrency=num_workers).aggregate(BATCH)
    pipeline = decoded.pipe(lambda clips: torch.from_numpy(np.stack(clips))).add_sink(4)
    with (built := pipeline.build(num_threads=num_workers + 1)).auto_stop():
        yield from built


LOADERS = {"dataloader": files, "webdataset": tars, "streaming": mds, "spdl": files}


def batches(dataset: Any, num_workers: int, num_passes: int) -> Iterator[Any]:
    """Yield batches of torch's DataLoader, whose workers stay from pass to pass."""
    from torch.utils.data import DataLoader, IterableDataset

    shuffle = None if isinstance(dataset, IterableDataset) else True
    workers = {"num_workers": num_workers, "prefetch_factor": 4, "persistent_workers": True}
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=shuffle, collate_fn=collate, **workers)
    for _ in range(num_passes):
        yield from loader


def loaders(
    folder: str = "corpora/benchmark",
    num_clips: int = 200,
    num_rounds: int = 5,
    num_passes: int = 3,
    other_python: str = sys.executable,
) -> dict[str, Any]:
    """Return the clips per second of Ray Data to a Train worker, and of each other loader, in alternating rounds.

    `other_python`: an interpreter with Streaming and SPDL.
    """
    # not at the top: Streaming's Python lacks Ray
    from jobs.benchmarks.data_path import Clips, cores, delivered, made_clips, source_of, steady_rate
    from jobs.benchmarks.support.fixtures import json_of_child

    clips = Clips(count=num_clips)
    source = source_of(made_clips(clips, folder))
    rates: dict[str, list[float]] = {name: [] for name in ("ray", *LOADERS)}
    not_run: dict[str, str] = {}
    for _ in range(num_rounds):
        with tempfile.TemporaryDirectory() as scratch:
            arrivals = delivered(source, num_passes * -(-num_clips // BATCH), scratch)["arrivals"]
        rates["ray"].append(steady_rate(arrivals))
        for name in [name for name in LOADERS if name not in not_run]:
            python = other_python if name in ("streaming", "spdl") else sys.executable
            try:
                arguments = (name, f"{folder}/{clips.name}", cores(), num_passes)
                rates[name].append(steady_rate(json_of_child("jobs.benchmarks.loaders", *arguments, python=python)))
            except subprocess.CalledProcessError as error:
                not_run[name] = (error.stderr.strip().splitlines() or ["no message"])[-1]
        print({name: values[-1:] for name, values in rates.items()}, file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items() if values}
    best = max(value for name, value in medians.items() if name != "ray")
    result = {"ratio_to_best": medians["ray"] / best, "clips_per_second": medians}
    return result | {"all": rates, "not_run": not_run, "cores": cores()}


if __name__ == "__main__":
    loader, folder, num_workers, num_passes = sys.argv[1:]
    loaded = (spdl_batches if loader == "spdl" else batches)(LOADERS[loader](folder), int(num_workers), int(num_passes))
    print(json.dumps([(time.perf_counter(), len(batch)) for batch in loaded]))
