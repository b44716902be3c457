"""`scale` of `python jobs/benchmark.py`: the cost of `pretrain` up to its first batch, by rows of the manifest.

Manifests are synthetic (`synthetic_manifest`), and so are pixels; the rest is that of a run. The processes of a run are
sampled every second: memory is the highest private memory of a process minus that of its imports; shared pages are
listed separately.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs import ROOT
from jobs.benchmarks.support.processes import MARKER, memory_by_process, sampled
from jobs.benchmarks.support.synthetic_manifest import write_synthetic, write_videos
from jobs.run import run_files
from pipeline import storage
from pipeline.corpus.manifest import open_manifest, read_manifest, write_manifest

SAMPLE_SECONDS = 1.0
MIB = 2**20
KINDS = {"worker": "ReadRange", "rank": ("_RayTrainWorker", "RayTrainWorker")}
"""Kind of process → prefixes of the names of its tasks or actors."""
IMPORTS = {
    "worker": "import ray.data, pipeline.stream.loader",
    "rank": "import ray.data, ray.train, jobs.training.trainer, torch._dynamo",
    "driver": "import jobs.launch.driver",
}
"""Imports of each process; torch imports the last of a rank's, 66 MiB, when it creates an optimizer."""
PRIVATE = "from jobs.benchmarks.support.processes import private_and_shared_bytes as of; print(of()[0] / 2**20)"


def scale(
    rows: tuple[int, ...] = (100_000,),
    folder: str = "",
    num_steps: int = 1000,
    batch: int = 1024,
    num_workers: int = 8,
    one_file_rows: int = 0,
) -> dict[str, Any]:
    """Return memory and seconds of `pretrain` up to its first batch, and the cost of looking up a planned row.

    `folder`: keeps the manifests; by default a bucket of the S3 server of AWS_ENDPOINT_URL that is removed at the end.
    `num_steps` of `batch` clips are looked up. `one_file_rows`: rows of a manifest in one file, measured too.
    """
    with tempfile.TemporaryDirectory() as local, manifests_folder(folder, local) as place:
        by_rows = {}
        for size in rows:
            by_rows[str(size)] = measured_run(manifest_of(place, size, local), Path(local, str(size)))
            print(json.dumps({size: by_rows[str(size)]}), file=sys.stderr, flush=True)
        largest = manifest_of(place, max(rows), local)
        lookup = {"manifest": largest, "num_steps": num_steps, "batch": batch}
        result = {
            **by_rows[str(max(rows))],
            **child("planned_rows", **lookup),
            "one_worker_of": {str(num_workers): child("planned_rows", **lookup, num_workers=num_workers)},
            "ten_times_the_rows": child("planned_rows", **lookup, num_repeats=10),
            "imports_mib": imports_mib(),
            "by_rows": by_rows,
            "is_in_bucket": storage.is_remote(place),
        }
        if one_file_rows:
            write_manifest(read_manifest(manifest_of(place, one_file_rows, local)), path := f"{local}/one.parquet")
            result["one_file"] = {str(one_file_rows): measured_run(path, Path(local, "one"))}
        return result


@contextlib.contextmanager
def manifests_folder(folder: str, local: str) -> Iterator[str]:
    """Yield the folder of manifests: `folder`, or a new bucket, or without a server a local folder."""
    if folder or not os.environ.get("AWS_ENDPOINT_URL"):
        yield storage.absolute(folder or local)
        return
    with storage.temporary_bucket(f"s3://snps3-scale-{uuid.uuid4().hex[:12]}") as bucket:
        yield bucket


def manifest_of(place: str, num_rows: int, local: str) -> str:
    """Return the manifest of `num_rows` training clips, which is written if it does not exist."""
    path = storage.join(place, f"{num_rows}/manifest")
    if not storage.exists(f"{path}/index.json"):
        write_synthetic(path, num_rows, str(Path(tempfile.gettempdir(), "snps3-scale", "videos.bin")))
    if not Path(videos := open_manifest(path).root).exists():
        write_videos(videos)
    Path(local).mkdir(exist_ok=True)
    return path


def measured_run(manifest: str, runs: Path) -> dict[str, Any]:
    """Run to the first batches; then resume from there as if from step 10, and as if from step 100,000; twice each, and
    keep the quicker one, since other work on the machine only adds time."""
    runs.mkdir()
    child("write_words", manifest=manifest, storage=str(runs))
    first = run_with_memory(manifest, runs)
    resumed: dict[str, list[float]] = {}
    for step in (10, 100_000, 100_000, 10):
        relabel(runs / "scale", step)
        run = run_with_memory(manifest, runs)
        assert run["first_step"] == step + 1, run
        resumed.setdefault(str(step), []).append(run["seconds_to_first_batch"])
    return first | {"resumed_seconds": {step: min(seconds) for step, seconds in resumed.items()}}


def relabel(run_folder: Path, step: int) -> None:
    """Change the step in the last checkpoint of a run to `step`."""
    path = run_folder / str(run_files.committed_checkpoint(str(run_folder))) / run_files.PROGRESS
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": step}))


def run_with_memory(manifest: str, runs: Path) -> dict[str, Any]:
    """Return the output of the run, and the highest memory of the largest process of each kind, in MiB."""
    marker = os.urandom(8).hex()
    for path in (runs / "scale").glob("first-*.json"):
        path.unlink()
    with sampled(lambda: memory_by_process(marker), SAMPLE_SECONDS) as samples:
        result = child("first_batch", marker, manifest=manifest, storage=str(runs))
    kinds: defaultdict[int, set[str]] = defaultdict(set)
    highest: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for _, processes in samples:
        for pid, (kind, private, shared) in processes.items():
            kinds[pid].add(kind)
            highest[pid] = max(highest[pid], (private, shared))
    groups = {
        name: [pid for pid in kinds if any(kind.startswith(begins) for kind in kinds[pid])]
        for name, begins in KINDS.items()
    }
    groups["driver"] = [result.pop("driver_pid")]
    for name, pids in groups.items():
        assert pids, f"no {name} was seen among {sorted(set().union(*kinds.values()))}"
        private, shared = max(highest[pid] for pid in pids)
        result |= {f"{name}_mib": private / MIB, f"{name}_shared_mib": shared / MIB}
    return result


def imports_mib() -> dict[str, float]:
    """Return the private MiB of each kind of process after its imports, before any work."""
    commands = {name: [sys.executable, "-c", f"{imports}; {PRIVATE}"] for name, imports in IMPORTS.items()}
    return {name: float(subprocess.check_output(command, cwd=ROOT, text=True)) for name, command in commands.items()}


def child(function: str, marker: str = "", **arguments: Any) -> Any:
    """Run a function of `scale_run` in a separate process, and return its result."""
    command = [sys.executable, "-m", "jobs.benchmarks.support.scale_run", function, json.dumps(arguments)]
    environment = os.environ | WORKER_ENVIRONMENT | {MARKER: marker}
    ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(ended.stdout.splitlines()[-1])
