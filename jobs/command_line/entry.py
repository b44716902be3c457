"""The frame of every command: authentication, log, error messages, exit status."""

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
"""Exceptions of a command for invalid input."""
DISTRIBUTION = "snps3-ray"
JOBS = Path(__file__).parent.parent
TRACEBACKS = logging.getLogger("traceback")
"""Its name is outside our packages, so that its records go only to the log."""


class StoppedError(Exception):
    """Raised when a command stops on request; the same command resumes."""


def run_command(main: Callable[[], int | None], name: str | None = None, *, has_log: bool = True) -> NoReturn:
    """Run a command that is started as a program, and exit with its status. `name`: by default that of its file.

    `has_log` redirects stderr to a log. Benchmarks leave it on the terminal.

    Ray reads its authentication settings at import, so commands import Ray inside `main`.
    """
    if sys.path and Path(sys.path[0]).resolve() == JOBS:  # with `python jobs/x.py`, our rooms would shadow packages
        sys.path[0] = str(JOBS.parent)
    use_private_token()
    if not has_log:
        sys.exit(exit_status(main))
    output = voice.begin(name or Path(sys.argv[0]).stem)
    try:
        status = exit_status(main)
    except Exception as error:
        status = _say_bug(error)
    finally:
        output.end()
    sys.exit(status)


def exit_status(main: Callable[[], int | None]) -> int:
    """Run `main` and return its exit status; report expected errors in one line.

    Any other exception, such as a RuntimeError of a library, is a bug and is raised.
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
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"]([\w-]+)", requirement)
        if name and extra and name[0].replace("-", "_").lower() == package:
            return f"the package {package} is not installed; pip install '{DISTRIBUTION}[{extra[1]}]' brings it"
    return None


def log_progress() -> None:
    """Show the info messages of a job on a corpus, without those of Ray."""
    if output := voice.current():
        output.handler.is_verbose = True


def _say(error: object, status: int) -> int:
    """Print an expected error and return `status`; if the log is named, write the traceback there."""
    voice.say(f"error: {error}")
    output = voice.current()
    if output and output.is_named:
        TRACEBACKS.error("%s", error, exc_info=isinstance(error, BaseException))
        voice.say(f"log: {output.path}")
    return status


def _say_bug(error: Exception) -> int:
    """Print an unexpected error with its place in our code; write the traceback to the log and print its path."""
    TRACEBACKS.error("%s", error, exc_info=error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(ROOT)]
    place = f" at {Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else ""
    voice.say(f"error: {type(error).__name__}{place}: {lines[-1]}")
    voice.say("this is unexpected: report it with the log, which has the traceback")
    if output := voice.current():
        output.is_named = True
        voice.say(f"log: {output.path}")
    return FAILED
