"""Pre-train one model and report on it: `ray job submit -- python jobs/pretrain.py PRESET --name NAME …`.

The same command again goes on from the last checkpoint. SIGTERM (as from `ray job stop`) asks the run to write a
checkpoint and end.
"""

from __future__ import annotations

import sys

from jobs.command_line.entry import run_command, run_training


def main(argv: list[str] | None = None) -> int:
    """Exit status of the command line."""
    from jobs.command_line import parsing

    return run_training(parsing.parse(argv), program="pretrain")


if __name__ == "__main__":
    sys.exit(run_command(main))
