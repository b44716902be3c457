"""Put the scores of runs beside published ones.

python jobs/table.py RUN [RUN …] [--out table.md]

Every protocol card in the runs' folders is a row, under its benchmark. A card belongs to a benchmark if the name of its
corpus says so (`msrvtt`, `didemo`, `msvd`); others stand under their own. Benchmarks without a card say "not run".
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.evaluation.leaderboard import TableConfig, table
    from pipeline import storage

    config = parsing.read(TableConfig, argv, program="table.py", description=__doc__)
    text = table(config)
    if config.out:
        storage.write_bytes_atomic(storage.absolute(config.out), text.encode())
    else:
        print(text)


if __name__ == "__main__":
    run_command(main)
