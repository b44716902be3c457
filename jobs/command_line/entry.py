"""What every command does before and after its own work: authentication, refusals, exit status."""

from __future__ import annotations

import importlib.metadata
import logging
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cluster.auth import use_private_token
from jobs import ROOT
from jobs.tracking import voice

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 130
"""Exit statuses: done; failed while running; refused before anything ran; stopped on request."""
REFUSALS = (
    *(ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError),
    ConnectionError,
)
"""What a command raises for input that cannot work."""
DISTRIBUTION = "snps3-ray"
JOBS = Path(__file__).parent.parent
TRACEBACKS = logging.getLogger("traceback")
"""Of no package of ours: what it logs is in the log alone."""


class StoppedError(Exception):
    """Raised when a command stops on request; the same command resumes."""


def run_command(main: Callable[[], int | None], name: str | None = None, *, has_log: bool = True) -> NoReturn:
    """Run a command that is started as a program, and exit with its status. `name`: by default that of its file.

    `has_log`: what others write to stderr is logged. A measurement leaves it in sight.

    Ray reads its authentication settings at import, so commands import Ray inside `main`.
    """
    if sys.path and Path(sys.path[0]).resolve() == JOBS:  # `python jobs/x.py` would let our rooms hide packages
        sys.path[0] = str(JOBS.parent)
    use_private_token()
    if not has_log:
        sys.exit(exit_status(main))
    said = voice.begin(name or Path(sys.argv[0]).stem)
    try:
        status = exit_status(main)
    except Exception as error:
        status = _say_bug(error)
    finally:
        said.end()
    sys.exit(status)


def exit_status(main: Callable[[], int | None]) -> int:
    """Run `main` and return its exit status; report a refusal in one line on stderr.

    A RuntimeError that is not the run's own, and every other exception, is a bug and is raised.
    """
    try:
        return main() or DONE
    except REFUSALS as error:
        return _say(error, REFUSED)
    except OSError as error:  # a full disk, say
        return _say(error, FAILED)
    except KeyboardInterrupt:
        return STOPPED
    except StoppedError as error:
        voice.say(f"{str(error) or 'stopped'}; the same command resumes from here")
        return STOPPED
    except ModuleNotFoundError as error:
        if (remedy := missing_extra(error.name or "")) is None:
            raise
        return _say(remedy, FAILED)
    except RuntimeError as error:
        from cluster.run import LostError
        from jobs.launch.lease import LeaseLostError
        from jobs.training.step import RunError
        from pipeline.corpus.ledger import TooManyRejectedError

        if not isinstance(error, (LostError, LeaseLostError, RunError, TooManyRejectedError)):
            raise
        return _say(error, FAILED)


def missing_extra(module: str) -> str | None:
    """Return a message naming the missing package and the extra that installs it; None if no extra does."""
    package = module.partition(".")[0]
    for requirement in importlib.metadata.requires(DISTRIBUTION) or ():
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"](\w+)", requirement)
        if name and extra and name[0].replace("-", "_").lower() == package:
            return f"the package {package} is not installed; pip install '{DISTRIBUTION}[{extra[1]}]' brings it"
    return None


def log_progress() -> None:
    """Show what a job on a corpus logs as it goes, without Ray's own lines."""
    if said := voice.current():
        said.handler.is_verbose = True


def _say(error: object, status: int) -> int:
    """Say what a command refuses, or what stopped it; its traceback is in the log if there is one."""
    voice.say(f"error: {error}")
    said = voice.current()
    if said and said.is_named:
        TRACEBACKS.error("%s", error, exc_info=isinstance(error, BaseException))
        voice.say(f"log: {said.path}")
    return status


def _say_bug(error: Exception) -> int:
    """Say what nobody expected: what, where, and that the log has the traceback."""
    TRACEBACKS.error("%s", error, exc_info=error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(ROOT)]
    place = f" at {Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else ""
    voice.say(f"error: {type(error).__name__}{place}: {lines[-1]}")
    voice.say("this is unexpected: report it with the log, which has the traceback")
    if said := voice.current():
        said.is_named = True
        voice.say(f"log: {said.path}")
    return FAILED
