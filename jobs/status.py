"""Say where a run is: step, rate, time left, checkpoint, rejected clips, what was lost.

python jobs/status.py NAME [--storage FOLDER_OR_BUCKET]         or the run's folder, as s3://bucket/runs/first

Reads the run's folder only, so any machine that reaches it may ask.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.launch.run_status import RunConfig, describe, folder_of, read_run

    config = parsing.read(RunConfig, argv, program="status.py", description=__doc__)
    print(describe(read_run(folder_of(config))))


if __name__ == "__main__":
    run_command(main)
