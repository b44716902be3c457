"""What every command does before and after its own work."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from cluster.auth import use_private_token
from jobs import ROOT


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


class ExitStatus(contextlib.AbstractContextManager["ExitStatus"]):
    """Within it, an error of pre-training or fine-tuning becomes a line on stderr and a `value`: 1 for a run that is
    lost or diverged, 2 for one that is refused. A context, so that it is no frame between a command and its run."""

    def __init__(self, program: str) -> None:
        self.program, self.value = program, 0

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        from cluster.run import LostError
        from jobs.launch.lease import LeaseLostError
        from jobs.training.step import RunError

        if isinstance(error, RunError | LostError | LeaseLostError):
            self.value = 1
        elif isinstance(error, ValueError | FileNotFoundError | PermissionError | ConnectionError):
            self.value = 2
        if self.value:
            print(f"{self.program}: {error}", file=sys.stderr)
        return bool(self.value)
