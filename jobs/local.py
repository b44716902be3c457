"""Make the embedded corpus on this machine, start a Ray head, submit prepare and pretrain to it.

python -m jobs.local [PRESET] [--FIELD VALUE …]        what `make pretrain` runs
"""

from __future__ import annotations

import sys

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> int:
    """Return the exit status of the command line; 130 after Ctrl-C."""
    from jobs.corpus.generation import progress_printer
    from jobs.launch.local_run import run_locally

    arguments = list(sys.argv[1:] if argv is None else argv) or ["tiny"]
    command = parsing.parse(arguments, program="jobs.local")
    if command.dry_run:
        return parsing.preflight_status(command) or 0
    storage, name = command.config.placement.storage, command.config.name
    return run_locally(arguments, storage=storage, name=name, progress=progress_printer())


if __name__ == "__main__":
    run_command(main)
