"""Measure: print one JSON object, with date and hardware, on the last line.

python jobs/benchmark.py NAME [--OPTION VALUE …]
"""

from __future__ import annotations

import sys

from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    import datetime
    import json
    import os

    import tyro

    from jobs import WORKPLACE
    from jobs.benchmarks.registry import BENCHMARKS, benchmark
    from jobs.tracking.machine import hardware
    from pipeline.nearest import did_you_mean

    usage = f"usage: benchmark.py NAME [options]; NAME is one of {', '.join(BENCHMARKS)}"
    name, *options = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(usage)
        return
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}; {did_you_mean(name, BENCHMARKS) or 'name one'} ({usage})")
    os.chdir(WORKPLACE)
    result = tyro.cli(benchmark(name), args=options, prog=f"benchmark.py {name}")
    facts = {"benchmark": name, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "hardware": hardware()}
    print(json.dumps(facts | result))


if __name__ == "__main__":
    run_command(main, has_log=False)
