"""Ask a run to write a checkpoint and end; the same command that started it goes on from there.

python jobs/stop.py NAME [--storage FOLDER_OR_BUCKET]           or the run's folder, as s3://bucket/runs/first

The request is a file in the run's folder, so any machine that may write there may ask.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.launch.run_status import RunConfig, folder_of, request_stop

    config = parsing.read(RunConfig, argv, program="stop.py", description=__doc__)
    print(request_stop(folder_of(config)))


if __name__ == "__main__":
    run_command(main)
