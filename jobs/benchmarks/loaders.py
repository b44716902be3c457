"""Other people's loaders on the clips of `ingest`, each in its best known setting, with decord on as many processes.

They decode straight to the size that ours has after its aspect ratio is kept, and pad nothing. A loader that is not
installed is listed under `not_run`; Streaming, whose pins clash with ours, may be given a Python of its own.
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


class Files:
    """A map-style dataset for torch's DataLoader."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return decode(Path(self.paths[index]).read_bytes())


def of_torch(dataset: Any, num_workers: int, num_passes: int) -> Iterator[Any]:
    """Yield batches of a DataLoader whose workers stay from pass to pass."""
    from torch.utils.data import DataLoader, IterableDataset

    shuffle = None if isinstance(dataset, IterableDataset) else True
    workers = {"num_workers": num_workers, "prefetch_factor": 4, "persistent_workers": True}
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=shuffle, **workers)
    for _ in range(num_passes):
        yield from loader


def dataloader(folder: str, num_workers: int, num_passes: int) -> Iterator[Any]:
    """Yield batches of torch.utils.data.DataLoader over the files."""
    yield from of_torch(Files(sorted(map(str, Path(folder, "videos").glob("*.mp4")))), num_workers, num_passes)


def webdataset(folder: str, num_workers: int, num_passes: int) -> Iterator[Any]:
    """Yield batches of WebDataset over tars of 25 clips."""
    wds: Any = importlib.import_module("webdataset")

    shards = sorted(map(str, Path(folder, "tars").glob("*.tar")))
    clips = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).map(lambda sample: decode(sample["mp4"]))
    loader = wds.WebLoader(clips, batch_size=BATCH, num_workers=num_workers, prefetch_factor=4, persistent_workers=True)
    for _ in range(num_passes):
        yield from loader


def streaming(folder: str, num_workers: int, num_passes: int) -> Iterator[Any]:
    """Yield batches of MosaicML Streaming over its own shards."""
    base: Any = importlib.import_module("streaming").StreamingDataset

    class Clips(base):
        def __getitem__(self, index: Any) -> Any:
            return decode(super().__getitem__(index)["mp4"])

    dataset = Clips(local=str(Path(folder, "mds")), batch_size=BATCH, shuffle=True)
    yield from of_torch(dataset, num_workers, num_passes)


def write_tars(folder: str) -> None:
    """Write the clips as tars."""
    paths, out = sorted(Path(folder, "videos").glob("*.mp4")), Path(folder, "tars")
    for start in range(0, 0 if out.exists() else len(paths), CLIPS_PER_SHARD):
        out.mkdir(exist_ok=True)
        with tarfile.open(out / f"{start:06}.tar", "w") as archive:
            for path in paths[start : start + CLIPS_PER_SHARD]:
                archive.add(path, path.name)


def write_mds(folder: str) -> None:
    """Write the clips as Streaming's shards."""
    out = Path(folder, "mds")
    if not out.exists():
        with importlib.import_module("streaming").MDSWriter(out=str(out), columns={"mp4": "bytes"}) as writer:
            for path in sorted(Path(folder, "videos").glob("*.mp4")):
                writer.write({"mp4": path.read_bytes()})


LOADERS = {"dataloader": dataloader, "webdataset": webdataset, "streaming": streaming}


def arrivals_of(
    loader: str, folder: str, python: str, num_workers: int, num_passes: int = 1
) -> list[tuple[float, int]]:
    """Return (time, clips) of each batch, from a process of its own. CalledProcessError if it fails."""
    from jobs.benchmarks.support.fixtures import json_of_child  # not at the top: Streaming's Python lacks Ray

    return json_of_child("jobs.benchmarks.loaders", loader, folder, num_workers, num_passes, python=python)


def loaders(
    folder: str = "corpora/benchmark",
    num_clips: int = 200,
    num_rounds: int = 5,
    num_passes: int = 3,
    streaming_python: str = sys.executable,
) -> dict[str, Any]:
    """Clips per second of Ray Data to a Train worker, and of each other loader; rounds take turns."""
    from jobs.benchmarks.data_path import Clips, cores, delivered, made_clips, source_of, steady_rate

    clips = Clips(count=num_clips)
    source = source_of(made_clips(clips, folder))
    files = f"{folder}/{clips.name}"
    write_tars(files)
    rates: dict[str, list[float]] = {name: [] for name in ("ray", *LOADERS)}
    not_run: dict[str, str] = {}
    for _ in range(num_rounds):
        with tempfile.TemporaryDirectory() as scratch:
            arrivals = delivered(source, num_passes * -(-num_clips // BATCH), scratch)["arrivals"]
        rates["ray"].append(steady_rate(arrivals))
        for name in [name for name in LOADERS if name not in not_run]:
            python = streaming_python if name == "streaming" else sys.executable
            try:
                rates[name].append(steady_rate(arrivals_of(name, files, python, cores(), num_passes)))
            except subprocess.CalledProcessError as error:
                not_run[name] = (error.stderr.strip().splitlines() or ["no message"])[-1]
        print({name: values[-1:] for name, values in rates.items()}, file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items() if values}
    best = max(value for name, value in medians.items() if name != "ray")
    result = {"ratio_to_best": medians["ray"] / best, "clips_per_second": medians}
    return result | {"all": rates, "not_run": not_run, "cores": cores()}


if __name__ == "__main__":
    loader, folder, num_workers, num_passes = sys.argv[1:]
    if loader == "streaming":
        write_mds(folder)
    batches = LOADERS[loader](folder, int(num_workers), int(num_passes))
    print(json.dumps([(time.perf_counter(), len(batch)) for batch in batches]))
