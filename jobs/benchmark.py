"""Measurements: `python jobs/benchmark.py NAME` prints one JSON object, with date and hardware, on its last line."""

from __future__ import annotations

import sys

from cluster.auth import use_private_token

if __name__ == "__main__":
    use_private_token()

from jobs.benchmarks.registry import main

if __name__ == "__main__":
    sys.exit(main())
