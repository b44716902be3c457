"""The environment variables of every process of a run."""

from __future__ import annotations

WORKER_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
}
"""Of every process of a run: one line of progress of our own, and nobody is told. The features of a batch are megabytes
each and live for a moment; glibc would ask the kernel for fresh pages each time, about a tenth of a step on a CPU."""
