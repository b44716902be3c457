"""What every command does before and after its own work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.auth import use_private_token
from jobs import ROOT

if TYPE_CHECKING:
    from jobs.command_line.parsing import Command


def run_command(main: Callable[[], int | None]) -> int:
    """The exit status of a command that is started as a program.

    Ray reads its way of authentication when it is imported, so a command imports what imports Ray inside `main`.
    """
    if (
        sys.path and Path(sys.path[0]).resolve() == ROOT / "jobs"
    ):  # `python jobs/x.py` would let our rooms hide packages
        sys.path[0] = str(ROOT)
    use_private_token()
    return main() or 0


def run_training(command: Command, *, program: str) -> int:
    """Exit status of pre-training or fine-tuning: 0 done or stopped, 1 lost or diverged, 2 refused."""
    from cluster.run import LostError
    from jobs.command_line.parsing import answered
    from jobs.launch.driver import pretrain
    from jobs.launch.lease import LeaseLostError
    from jobs.tracking.mlflow_runs import refuse_unreachable
    from jobs.training.step import RunError

    if (status := answered(command)) is not None:
        return status
    try:
        refuse_unreachable(command.config.placement.storage)
        pretrain(command.config)
    except (ValueError, FileNotFoundError, PermissionError, ConnectionError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except (RunError, LostError, LeaseLostError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0
