"""Pre-train one model and report on it.

ray job submit -- python jobs/pretrain.py PRESET --name NAME …

The same command again resumes from the last checkpoint. SIGTERM (as from `ray job stop`) asks the run to write a
checkpoint and end.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> int:
    """Return the exit status of the command line."""
    command = parsing.parse(argv)
    if (status := parsing.preflight_status(command)) is not None:
        return status

    from jobs.launch.driver import pretrain

    pretrain(command.config)
    return 0


if __name__ == "__main__":
    run_command(main)
