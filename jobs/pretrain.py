"""Pre-train one model and report on it: `ray job submit -- python jobs/pretrain.py PRESET --name NAME …`.

The same command again goes on from the last checkpoint. SIGTERM (as from `ray job stop`) asks the run to write a
checkpoint and end.
"""

from __future__ import annotations

import sys

from jobs.command_line.entry import ExitStatus, run_command


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0 done or stopped, 1 lost or diverged, 2 refused."""
    from jobs.command_line import parsing
    from jobs.launch import driver

    command = parsing.parse(argv)
    if (answer := parsing.answered(command)) is not None:
        return answer
    with ExitStatus("pretrain") as status:
        driver.pretrain(command.config)
    return status.value


if __name__ == "__main__":
    sys.exit(run_command(main))
