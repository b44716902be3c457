"""Measurements: `python jobs/benchmark.py NAME` prints one JSON object, with date and hardware, on its last line."""

from __future__ import annotations

import datetime
import json
import os
import sys

from jobs.command_line.entry import run_command


def main() -> None:
    """Runs the benchmark that the command line names."""
    import tyro

    from jobs import ROOT
    from jobs.benchmarks.registry import BENCHMARKS, benchmark
    from jobs.tracking.machine import hardware

    if len(sys.argv) < 2 or sys.argv[1] not in BENCHMARKS:
        sys.exit(f"usage: benchmark.py NAME [options]; NAME is one of {', '.join(BENCHMARKS)}")
    name = sys.argv[1]
    os.chdir(ROOT)
    result = tyro.cli(benchmark(name), args=sys.argv[2:], prog=f"benchmark.py {name}")
    facts = {"benchmark": name, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "hardware": hardware()}
    print(json.dumps(facts | result))


if __name__ == "__main__":
    sys.exit(run_command(main))
