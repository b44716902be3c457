"""The benchmarks by name. Each is imported when it runs, so that it does not wait for the libraries of all others."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

BENCHMARKS = {
    "retrieval": "tiny_runs:retrieval",
    "main-job": "tiny_runs:main_job",
    "step": "step_time:step",
    "gpu-step": "gpu_step:gpu_step",
    "memory": "step_memory:memory",
    "switches": "switches:switches",
    "decode": "decode_cost:decode",
    "mutations": "mutations:mutations",
    "ingest": "data_path:ingest",
    "host-copies": "host_copies:host_copies",
    "host-cost": "host_cost:host_cost",
    "cache": "data_path:cache",
    "soak": "data_path:soak",
    "loaders": "loaders:loaders",
    "s3-faults": "s3_faults:s3_faults",
    "ranges": "ranges:ranges",
    "annotations": "annotation_inputs:annotation_inputs",
    "conformance": "conformance:conformance",
    "corruption": "corruption:corruption",
    "mining": "mining:mining",
    "dedup": "dedup:dedup",
    "dedup-scale": "dedup_scale:dedup_scale",
    "kills": "kills:kills",
    "restart": "kills:restart",
    "hosts": "hosts:hosts",
    "image": "image:image",
    "lease": "lease:lease",
    "log-lines": "log_lines:log_lines",
    "planted-faults": "planted_faults:planted_faults",
    "cli-start": "cli_start:cli_start",
    "structure": "structure:structure",
    "overhead": "tiny_runs:overhead",
    "control-plane": "control_plane:control_plane",
    "two-stage": "two_stage:two_stage",
    "moments": "moments:moments",
    "downstream": "downstream_scores:downstream",
    "compare": "compare_time:compare_runs",
    "sweep": "sweep_cost:sweep",
    "scale": "scale:scale",
    "prepare-scale": "prepare_scale:prepare_scale",
    "bucket-objects": "bucket_objects:bucket_objects",
    "corpus-report-scale": "corpus_scale:corpus_report_scale",
    "search-scale": "search_scale:search_scale",
    "demo": "demo_start:demo",
    "serve": "serve_load:serve",
    "index-scale": "index_scale:index_scale",
    "retrieval-memory": "retrieval_memory:retrieval_memory",
    "split": "shot_detection:split",
    "filters": "filter_scores:filters",
}
"""Name → module of this folder and its function, whose parameters are the options of the command line."""


def benchmark(name: str) -> Callable[..., dict[str, Any]]:
    """Import and return the function of a measurement."""
    return pkgutil.resolve_name(f"jobs.benchmarks.{BENCHMARKS[name]}")
