"""Whole runs of `tiny`: `retrieval`, `main-job` and `overhead` of `python jobs/benchmark.py`."""

from __future__ import annotations

import datetime
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import ROOT
from jobs.benchmarks.support.processes import MARKER, bytes_spilled, pss_bytes, sampled
from jobs.experiments.child_runs import run_child
from jobs.experiments.statistics import over_seeds
from jobs.run import presets, run_files
from jobs.run.run_identity import with_values
from pipeline.corpus.manifest import make_manifest, read_manifest, write_manifest

MANIFEST = "corpora/embedded/manifest/manifest.parquet"
SAMPLE_SECONDS = 10.0
KEYS = tuple(f"test/t2v/{name}" for name in ("r1", "dual_r1", "cross_r1", "r5", "r10", "median_rank"))
KEYS += ("test/v2t/r1", "temporal/t2v/group_r1", "temporal/t2v/dual_group_r1")
"""Results that `retrieval` reports for each run."""


def retrieval(storage: str = "runs/benchmark", num_seeds: int = 3, num_steps: int | None = None) -> dict[str, Any]:
    """Return zero-shot retrieval of `tiny`: over seeds, trained on one frame, and trained on shuffled captions.

    Finished runs in `storage` are reused.
    """
    shuffled = f"{storage}/shuffled/manifest.parquet"
    shuffle_captions(MANIFEST, shuffled)
    seeds = {f"seed-{seed}": {"seed": seed} for seed in range(num_seeds)}
    variants = seeds | {"one-frame": {"data.num_frames": 1}, "shuffled-captions": {"data.manifest": shuffled}}
    runs = {name: results_of_tiny(name, storage, changes, num_steps) for name, changes in variants.items()}
    result: dict[str, Any] = {}
    for key in KEYS:
        spread = over_seeds([runs[name][key] for name in seeds])
        result |= {key: spread["mean"], f"{key}/seeds": spread["seeds"], f"{key}/interval": spread["interval"]}
        result |= {f"one_frame/{key}": runs["one-frame"][key], f"shuffled/{key}": runs["shuffled-captions"][key]}
    result["ceilings"] = {k: v for k, v in runs["seed-0"].items() if k.startswith("ceiling/")}
    result["seconds"] = {name: {k: round(v) for k, v in r.items() if "seconds/" in k} for name, r in runs.items()}
    return result


def results_of_tiny(name: str, storage: str, changes: Mapping[str, Any], num_steps: int | None) -> dict[str, Any]:
    """Run `tiny` with changed fields in a separate process, and return its results."""
    steps = {} if num_steps is None else {"optim.num_steps": num_steps}
    config = with_values(presets.tiny(), {**changes, **steps, "placement.storage": storage}, name=name)
    return dict(run_child(config, is_isolated=True).unwrap())


def main_job(storage: str = "runs/benchmark", name: str = "main-job") -> dict[str, Any]:
    """Run what `make pretrain` runs after installation; return its time, the memory of all processes, and the spill."""
    marker = secrets.token_hex(8)
    command = [sys.executable, "-m", "jobs.local", "tiny", "--name", name, "--placement.storage", storage]
    start = time.perf_counter()
    with sampled(lambda: (pss_bytes(marker).total(), bytes_spilled()), SAMPLE_SECONDS) as samples:
        status = subprocess.run(command, env=os.environ | {MARKER: marker}, stdout=sys.stderr, cwd=ROOT).returncode
    if status:
        sys.exit(f"the main job ended with status {status}")
    seconds = time.perf_counter() - start
    results = run_files.read_json(f"{storage}/{name}/results.json")
    peak_pss_bytes, spilled_bytes = np.max([[0, 0], *(sizes for _, sizes in samples)], axis=0).tolist()
    facts = {"seconds": seconds, "peak_pss_gib": peak_pss_bytes / 2**30, "spilled_bytes": spilled_bytes}
    kept = {key: value for key, value in results.items() if key.startswith(("test/t2v", "temporal/t2v", "seconds/"))}
    return facts | {"overhead": overhead_of(results)["fraction"]} | kept


def overhead(num_steps: int = 240, storage: str = "runs") -> dict[str, Any]:
    """Return the time of plan, telemetry, stop and preemption checks and checkpoints of `tiny` as a share of the time
    in steps."""
    name = f"overhead-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    results = results_of_tiny(name, storage, {}, num_steps)
    return overhead_of(results) | {"num_steps": num_steps}


def overhead_of(results: dict[str, Any]) -> dict[str, Any]:
    """Return `overhead` from the results of a run."""
    parts = {part: results[f"seconds/{part}"] for part in ("plan", "telemetry", "look", "checkpoint")}
    in_steps = results["seconds/step"]
    return {"fraction": sum(parts.values()) / in_steps, "seconds": parts, "seconds_in_steps": in_steps}


def shuffle_captions(manifest_path: str, out_path: str) -> None:
    """Write a manifest with training captions shuffled among clips, otherwise unchanged."""
    manifest = read_manifest(manifest_path)
    table = manifest.table
    is_train = np.array(table["split"].to_pylist()) == "train"
    order = np.arange(len(table))
    order[is_train] = np.random.default_rng(0).permutation(order[is_train])
    column = table["captions"].combine_chunks().take(pa.array(order))
    table = table.set_column(table.schema.get_field_index("captions"), table.schema.field("captions"), column)
    write_manifest(make_manifest(manifest.corpus, manifest.root, table), out_path)
