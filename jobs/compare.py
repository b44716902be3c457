"""Show runs beside each other on one page.

python jobs/compare.py RUN RUN …                 by their names or ids in MLflow
python jobs/compare.py --filter "metrics.`test/t2v/r1` > 0.3"

What differs in their configurations, their scores with intervals, their curves, and what they cost. Reads an SQLite
file or a tracking server (MLFLOW_TRACKING_URI).
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.reports.comparison import CompareConfig, compare

    config = parsing.read(CompareConfig, argv, program="compare.py", description=__doc__)
    print(compare(config))


if __name__ == "__main__":
    run_command(main)
