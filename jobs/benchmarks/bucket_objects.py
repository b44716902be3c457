"""`bucket-objects` of `python jobs/benchmark.py`: `prepare` of a bucket of many small objects, undisturbed and killed.

The objects are eight short videos, each under many names, with a table of captions in WebVid's format. Everything runs
as in `snps3 prepare --in-parts` on a local Ray, with one exception: a process decodes each of the eight videos only
once, not for each object that holds it. With `--no-fetch` it does not read the objects either: their names identify the
video.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs import ROOT
from jobs.benchmarks.prepare_scale import write_captions
from jobs.benchmarks.support.bucket_run import PROGRESS
from jobs.benchmarks.support.faulty_store import store_endpoint
from jobs.benchmarks.support.prepare_run import name_of
from jobs.benchmarks.support.processes import MARKER, sampled, usage_by_process
from jobs.benchmarks.support.small_objects import upload
from jobs.corpus.preparation import PROBED
from pipeline import storage
from pipeline.corpus.manifest import open_manifest

KILLS = {"whole": (), "killed in listing": ("listing",), "killed in looking and writing": ("looking", "writing")}
"""Corpus → the stages in which its `prepare` is killed, one per attempt, before an undisturbed attempt."""
SAMPLE_SECONDS = 1.0
GONE_SECONDS = 60.0
"""Limit for which processes may outlive a killed driver."""


def bucket_objects(num_objects: int = 100_000, folder: str = "", fetch: bool = True) -> dict[str, Any]:
    """Compare the manifests of a bucket when `prepare` runs undisturbed, is killed while it lists, and is killed while
    it inspects objects and again while it writes. Return whether they are equal, the rows lost and doubled, and for
    each attempt seconds and CPU seconds of each stage, progress lines, and memory of the largest process.

    `folder`: holds exactly these objects and is kept; by default a bucket of the server of AWS_ENDPOINT_URL that is
    removed at the end.
    """
    store_endpoint()
    with objects_folder(folder) as place, tempfile.TemporaryDirectory() as local:
        started = time.perf_counter()
        num_uploaded = upload(root := f"{place}/videos", num_objects)
        uploading = time.perf_counter() - started
        write_captions(captions := Path(local, "captions.csv"), num_objects)
        storage.write_bytes_atomic(f"{place}/captions.csv", captions.read_bytes())
        corpora = {}
        for name, stages in KILLS.items():
            out = f"{place}/{uuid.uuid4().hex[:12]}"
            try:
                attempts = [attempt(place, out, num_objects, stage, fetch) for stage in (*stages, "")]
                corpora[name] = {"attempts": attempts} | compared(out, root, num_objects)
            finally:
                storage.remove_folder(out)
            print(json.dumps({name: corpora[name]}), file=sys.stderr, flush=True)
    hashes = {corpus["manifest_hash"] for corpus in corpora.values()}
    whole = corpora["whole"]["attempts"][0]
    largest = max(
        (entry for corpus in corpora.values() for entry in corpus["attempts"]), key=lambda entry: entry["largest_mib"]
    )
    return {
        "num_objects": num_objects,
        "is_fetched": fetch,
        "is_equal": len(hashes) == 1,
        "manifest_hashes": sorted(hashes),
        **{name: sum(corpus[name] for corpus in corpora.values()) for name in ("lost", "doubled")},
        **{name: whole[name] for name in ("seconds", "driver_cpu_seconds", "cpu_seconds", "num_progress_lines")},
        **{name: largest[name] for name in ("largest_mib", "largest")},
        "num_uploaded": num_uploaded,
        "seconds_of_upload": round(uploading, 1),
        "corpora": corpora,
    }


@contextlib.contextmanager
def objects_folder(folder: str) -> Iterator[str]:
    """Yield `folder`, or a bucket for this measurement."""
    if folder:
        yield storage.absolute(folder)
        return
    with storage.temporary_bucket(f"s3://snps3-objects-{uuid.uuid4().hex[:12]}") as bucket:
        yield bucket


def attempt(place: str, out: str, num_objects: int, stage: str, fetch: bool) -> dict[str, Any]:
    """Run `prepare` to its end, or until it is killed in `stage`; return its costs and the files that it left.

    Raise RuntimeError if it ends differently.
    """
    marker, started = os.urandom(8).hex(), time.perf_counter()
    arguments = (f"{place}/captions.csv", f"{place}/videos", out, num_objects, stage, fetch)
    command = [sys.executable, "-m", "jobs.benchmarks.support.bucket_run", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), MARKER: marker}
    with sampled(lambda: usage_by_process(marker), SAMPLE_SECONDS) as samples:
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, start_new_session=True
        )
    if ended.returncode != (-9 if stage else 0):
        raise RuntimeError(f"`prepare` ended with {ended.returncode}: {ended.stderr[-3000:]}")
    seconds = time.perf_counter() - started
    deadline = time.monotonic() + GONE_SECONDS
    while (alive := usage_by_process(marker)) and time.monotonic() < deadline:
        time.sleep(SAMPLE_SECONDS)
    result = {} if stage else json.loads(ended.stdout.splitlines()[-1])
    progress = [line for line in ended.stderr.splitlines() if line.startswith(PROGRESS)]
    return {
        "killed_in": stage or None,
        "seconds_in_all": round(seconds, 1),
        **result,
        "num_progress_lines": len(progress),
        "last_progress": progress[-1].removeprefix(PROGRESS) if progress else None,
        **used(samples),
        "num_processes_left": len(alive),
        "objects_there": objects_in(out),
    }


def used(samples: list[tuple[float, dict[int, tuple[str, int, float]]]]) -> dict[str, Any]:
    """Return the private MiB and the kind of the largest process, and CPU seconds by kind at their last sample."""
    memory: dict[str, int] = {}
    cpu: dict[int, tuple[str, float]] = {}
    for _, processes in samples:
        for pid, (kind, private, seconds) in processes.items():
            memory[kind] = max(memory.get(kind, 0), private)
            cpu[pid] = (cpu[pid][0] if kind == "IDLE" and pid in cpu else kind, seconds)
    by_kind: dict[str, float] = {}
    for kind, seconds in cpu.values():
        by_kind[kind] = by_kind.get(kind, 0.0) + seconds
    kind, private = max(memory.items(), key=lambda item: item[1])
    return {
        "largest_mib": round(private / 2**20, 1),
        "largest": kind,
        "cpu_seconds": {kind: round(seconds, 1) for kind, seconds in sorted(by_kind.items())},
    }


def objects_in(out: str) -> dict[str, int]:
    """Return how many parts of the manifest, indexes of it, and files of probe results are in a folder."""
    names = storage.list_files(out)
    return {
        "parts": sum(name.startswith("manifest/part-") for name in names),
        "index": names.count("manifest/index.json"),
        "kept": sum(name.startswith(f"{PROBED}/") for name in names),
    }


def compared(out: str, root: str, num_objects: int) -> dict[str, Any]:
    """Return the hash of a manifest, the number of objects without a row, and the number of duplicate rows."""
    listing = open_manifest(f"{out}/manifest")
    rows = Counter(uri for table in listing.batches() for uri in table["uri"].to_pylist())
    return {"manifest_hash": listing.hash} | lost_and_doubled(
        rows, {f"{root}/{name_of(n)}" for n in range(num_objects)}
    )


def lost_and_doubled(rows: Counter[str], expected: set[str]) -> dict[str, int]:
    """Return the number of expected rows that are missing, and of rows that are unexpected or repeated."""
    return {
        "lost": len(expected - rows.keys()),
        "doubled": rows.total() - len(expected & rows.keys()),
    }
