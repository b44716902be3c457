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
"""Replaces Ray's progress bars by our progress line and disables telemetry. The `MALLOC_` settings keep freed memory in
the process: features of a batch are megabytes each and short-lived, and glibc would request fresh pages from the kernel
each time, about a tenth of a step on a CPU."""
