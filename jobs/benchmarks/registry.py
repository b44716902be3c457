"""Measurements: `python jobs/benchmark.py NAME` prints one JSON object, with date and hardware, on its last line."""

from __future__ import annotations

import datetime
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import ROOT
from jobs.benchmarks.compare_time import compare_runs
from jobs.benchmarks.control_plane import control_plane
from jobs.benchmarks.corruption import corruption
from jobs.benchmarks.data_path import cache, ingest, soak
from jobs.benchmarks.dedup import dedup
from jobs.benchmarks.downstream_scores import downstream, two_stage
from jobs.benchmarks.gpu_step import gpu_step
from jobs.benchmarks.kills import kills, restart
from jobs.benchmarks.loaders import loaders
from jobs.benchmarks.mining import mining
from jobs.benchmarks.s3_faults import s3_faults
from jobs.benchmarks.step_time import step
from jobs.benchmarks.support.processes import MARKER, bytes_spilled, pss_bytes
from jobs.benchmarks.sweep_cost import sweep
from jobs.experiments.child_runs import run_child
from jobs.experiments.statistics import over_seeds
from jobs.run import presets, run_files
from jobs.run.run_identity import with_values
from pipeline.corpus.manifest import make_manifest, read_manifest, write_manifest

MANIFEST = "corpora/embedded/manifest/manifest.parquet"
SAMPLE_SECONDS = 10.0


def retrieval(storage: str = "runs/benchmark", num_seeds: int = 3, num_steps: int | None = None) -> dict[str, Any]:
    """Zero-shot retrieval of `tiny`: seeds, a model trained on one frame, and one trained on shuffled captions.

    Runs that are finished in `storage` are read, not run again.
    """
    shuffled = f"{storage}/shuffled/manifest.parquet"
    shuffle_captions(MANIFEST, shuffled)
    seeds = {f"seed-{seed}": {"seed": seed} for seed in range(num_seeds)}
    variants = seeds | {"one-frame": {"data.num_frames": 1}, "shuffled-captions": {"data.manifest": shuffled}}
    found = {name: results_of_tiny(name, storage, changes, num_steps) for name, changes in variants.items()}
    keys = ("test/t2v/r1", "test/t2v/dual_r1", "test/t2v/cross_r1", "test/v2t/r1", "temporal/t2v/group_r1")
    keys += ("temporal/t2v/dual_group_r1", "test/t2v/r5", "test/t2v/r10", "test/t2v/median_rank")
    result: dict[str, Any] = {}
    for key in keys:
        spread = over_seeds([found[name][key] for name in seeds])
        result |= {key: spread["mean"], f"{key}/seeds": spread["seeds"], f"{key}/interval": spread["interval"]}
        result |= {f"one_frame/{key}": found["one-frame"][key], f"shuffled/{key}": found["shuffled-captions"][key]}
    result["ceilings"] = {k: v for k, v in found["seed-0"].items() if k.startswith("ceiling/")}
    result["seconds"] = {name: {k: round(v) for k, v in r.items() if "seconds/" in k} for name, r in found.items()}
    return result


def results_of_tiny(name: str, storage: str, changes: Mapping[str, Any], num_steps: int | None) -> dict[str, Any]:
    """Return the results of `tiny` with these fields set anew, run in a process of its own."""
    steps = {} if num_steps is None else {"optim.num_steps": num_steps}
    config = with_values(presets.tiny(), {**changes, **steps, "placement.storage": storage}, name=name)
    return dict(run_child(config, is_isolated=True).unwrap())


def main_job(storage: str = "runs/benchmark", name: str = "main-job") -> dict[str, Any]:
    """What `make pretrain` does, timed after installation, with the memory of all its processes and its spill."""
    marker = secrets.token_hex(8)
    command = [sys.executable, "-m", "jobs.local", "tiny", "--name", name, "--placement.storage", storage]
    start = time.perf_counter()
    with subprocess.Popen(command, env=os.environ | {MARKER: marker}, stdout=sys.stderr, cwd=ROOT) as process:
        peak_pss_bytes = spilled_bytes = 0
        while process.poll() is None:
            peak_pss_bytes = max(peak_pss_bytes, pss_bytes(marker))
            spilled_bytes = max(spilled_bytes, bytes_spilled())
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        sys.exit(f"the main job ended with status {process.returncode}")
    results = run_files.read_json(f"{storage}/{name}/results.json")
    kept = {key: value for key, value in results.items() if key.startswith(("test/t2v", "temporal/t2v", "seconds/"))}
    facts = {"seconds": time.perf_counter() - start, "peak_pss_gib": peak_pss_bytes / 2**30}
    return facts | {"spilled_bytes": spilled_bytes, "overhead": overhead_of(results)["fraction"]} | kept


def overhead(num_steps: int = 240, storage: str = "runs") -> dict[str, Any]:
    """Share of the time in steps that plan, telemetry, looks and checkpoints of `tiny` take beside them."""
    name = f"overhead-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    results = results_of_tiny(name, storage, {}, num_steps)
    return overhead_of(results) | {"num_steps": num_steps}


def overhead_of(results: dict[str, Any]) -> dict[str, Any]:
    """The same, from the results of a run."""
    parts = {part: results[f"seconds/{part}"] for part in ("plan", "telemetry", "look", "checkpoint")}
    in_steps = results["seconds/step"]
    return {"fraction": sum(parts.values()) / in_steps, "seconds": parts, "seconds_in_steps": in_steps}


def shuffle_captions(manifest_path: str, out_path: str) -> None:
    """A manifest whose training captions belong to other clips; all else is the same."""
    manifest = read_manifest(manifest_path)
    table = manifest.table
    is_train = np.array(table["split"].to_pylist()) == "train"
    order = np.arange(len(table))
    order[is_train] = np.random.default_rng(0).permutation(order[is_train])
    column = table["captions"].combine_chunks().take(pa.array(order))
    table = table.set_column(table.schema.get_field_index("captions"), table.schema.field("captions"), column)
    write_manifest(make_manifest(manifest.corpus, manifest.root, table), out_path)


BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {
    "retrieval": retrieval,
    "main-job": main_job,
    "step": step,
    "gpu-step": gpu_step,
    "ingest": ingest,
    "cache": cache,
    "soak": soak,
    "loaders": loaders,
    "s3-faults": s3_faults,
    "corruption": corruption,
    "mining": mining,
    "dedup": dedup,
    "kills": kills,
    "restart": restart,
    "overhead": overhead,
    "control-plane": control_plane,
    "two-stage": two_stage,
    "downstream": downstream,
    "compare": compare_runs,
    "sweep": sweep,
}
