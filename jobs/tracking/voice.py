"""The output of a command: a progress line, lines for people, and a log of everything else.

    our lines and warnings ──────────────► terminal or job log, without secrets
    Ray, MLflow, botocore, torch, workers ─► the log, whose path is printed when Ray is connected and at an error
    stderr of processes and of C++ ────────► the log

In a terminal, the progress line updates in place; elsewhere, a line is written every `PROGRESS_SECONDS`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from cluster.loggers import CONNECTS, PACKAGES, PROGRESS, PROGRESS_MARK, SAID
from pipeline.foreign_text import printable
from pipeline.redaction import without_secrets

PROGRESS_SECONDS = 30.0
LIVE = "SNPS3_PROGRESS_LIVE"
"""Environment variable, 1 if our output is piped to a process that shows it in a terminal. Then progress lines are
written every `LIVE_SECONDS`, each after `PROGRESS_MARK`."""
LIVE_SECONDS = 0.2
STDERR = 2
CLEAR = "\r\x1b[K"
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def cleaned(text: str) -> str:
    """Return `text` without secrets and with escaped control characters, for display and logs."""
    return printable(without_secrets(text))


class Terminal:
    """The writer of all lines for people."""

    def __init__(self, stream: TextIO, *, is_relayed: bool = False) -> None:
        self.stream, self.is_relayed = stream, is_relayed
        self.is_live = stream.isatty() and not is_relayed
        self.shown_at, self.is_open = float("-inf"), False
        self.lock = threading.RLock()

    def say(self, line: str) -> None:
        """Write a permanent line."""
        with self.lock:
            self.stream.write(f"{CLEAR if self.is_open else ''}{cleaned(line)}\n")
            self.stream.flush()
            self.is_open = False

    def show_progress(self, line: str, now: float, *, is_last: bool = False) -> None:
        """Replace the progress line if it is due at `now` (seconds, monotonic)."""
        pause = LIVE_SECONDS if self.is_live or self.is_relayed else PROGRESS_SECONDS
        line = cleaned(line)
        with self.lock:
            if not is_last and now - self.shown_at < pause:
                return
            self.shown_at = now
            if self.is_live:
                self.stream.write(CLEAR + line[: max(20, _columns() - 1)])
                self.is_open = True
            else:
                self.stream.write(f"{PROGRESS_MARK if self.is_relayed else ''}{line}\n")
            self.stream.flush()

    def clear(self) -> None:
        """Erase the progress line before other output is written to the terminal."""
        with self.lock:
            if self.is_open:
                self.stream.write(CLEAR)
                self.stream.flush()
                self.is_open = False


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.__stdout__.fileno() if sys.__stdout__ else 1).columns
    except (OSError, ValueError):
        return 120


class ToTerminal(logging.Handler):
    """Shows our warnings, said lines and progress; if `is_verbose`, also our info messages."""

    def __init__(self, terminal: Terminal, name_log: Callable[[], None]) -> None:
        super().__init__()
        self.terminal, self.name_log, self.is_verbose = terminal, name_log, False

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name == CONNECTS:
            self.name_log()
        elif record.name == PROGRESS or getattr(record, "is_progress", False):
            self.terminal.show_progress(message, time.monotonic())
        elif record.name == SAID:
            self.terminal.say(message)
        elif record.name.partition(".")[0] not in PACKAGES:
            return
        elif record.levelno >= logging.WARNING:
            self.terminal.say(f"{record.levelname.lower()}: {message}")
        elif self.is_verbose and record.levelno >= logging.INFO:
            self.terminal.say(message)


class Voice:
    """The output of one command: its terminal and its log."""

    def __init__(self, command: str, terminal: Terminal) -> None:
        self.terminal, self.is_named = terminal, False
        self.handler = ToTerminal(terminal, self.name_log)
        self.copy_path: str | None = None
        folder = private_folder(Path(tempfile.gettempdir(), f"snps3-logs-{os.getuid()}"))
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.path = str(folder / f"{command}-{stamp}-{os.getpid()}.log")
        self.file_descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def keep_in(self, folder: str) -> None:
        """Move the log to `folder` and print its path. For a folder in a store, `end` copies the log there.

        Do nothing if its path has been printed already.
        """
        from pipeline import storage

        if self.is_named:
            return
        name = Path(self.path).name
        if storage.is_remote(folder):
            self.copy_path = f"{folder}/{name}"
        else:
            os.makedirs(folder, exist_ok=True)
            before, self.path = self.path, os.path.join(folder, name)
            moved = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(moved, Path(before).read_bytes())
            for number in (self.file_descriptor, STDERR):
                os.dup2(moved, number)
            os.close(moved)
            os.unlink(before)
        self.name_log()

    def name_log(self) -> None:
        """Print the path of the log, once."""
        if not self.is_named:
            self.is_named = True
            later = f", at the end also {self.copy_path}" if self.copy_path else ""
            self.terminal.say(f"log: {self.path}{later}")

    def end(self) -> None:
        """Copy the log to its folder in a store; remove a log whose path was never printed."""
        self.terminal.clear()
        if self.copy_path:
            from pipeline import storage

            with contextlib.suppress(OSError):  # if the store is unreachable, the local log remains, as printed
                storage.write_bytes_atomic(self.copy_path, Path(self.path).read_bytes())
        if not self.is_named:
            Path(self.path).unlink(missing_ok=True)


class Cleaned(logging.Formatter):
    """Formats records and tracebacks without secrets and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return cleaned(super().format(record))


def private_folder(path: Path) -> Path:
    """Return a folder that only this user can read: `path`, or a new one if `path` is not private."""
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
        return path
    return Path(tempfile.mkdtemp(prefix=f"{path.name}-", dir=path.parent))


_voice: Voice | None = None


def begin(command: str) -> Voice:
    """Set up the output of this command: from here on, stderr goes to the log, and `say` writes to the terminal."""
    global _voice
    sys.stderr.flush()
    stream = os.fdopen(os.dup(STDERR), "w", buffering=1, encoding="utf-8", errors="replace")
    voice = _voice = Voice(command, Terminal(stream, is_relayed=os.environ.get(LIVE) == "1"))
    os.dup2(voice.file_descriptor, STDERR)
    to_file = logging.StreamHandler(os.fdopen(voice.file_descriptor, "w", encoding="utf-8", errors="replace"))
    to_file.setFormatter(log_formatter())
    logging.basicConfig(level=logging.INFO, handlers=[to_file, voice.handler], force=True)
    logging.captureWarnings(True)
    return voice


def log_formatter() -> logging.Formatter:
    """Return the formatter of the log."""
    return Cleaned(FORMAT)


def current() -> Voice | None:
    """Return the voice of this command; None if `begin` was not called."""
    return _voice


def keep_log_in(folder: str) -> None:
    """Move the command's log to `folder` and print its path. Do nothing if `begin` was not called."""
    if _voice:
        _voice.keep_in(folder)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which takes an s in the plural: 1 rank, 2 ranks."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def say(line: str) -> None:
    """Print a line for the person who started the command."""
    if _voice:
        _voice.terminal.say(line)
    else:
        print(cleaned(line), file=sys.stderr, flush=True)


def show_progress(line: str, *, is_last: bool = False) -> None:
    """Update the progress line if it is due, and always if it `is_last`."""
    if _voice:
        _voice.terminal.show_progress(line, time.monotonic(), is_last=is_last)
    else:
        print(cleaned(line), file=sys.stderr, flush=True)


def show(line: str) -> None:
    """Print a line of a result to stdout, or relay a line of another command; relay its progress lines as progress."""
    terminal = _voice.terminal if _voice else None
    if terminal and line.startswith(PROGRESS_MARK):
        terminal.show_progress(line.removeprefix(PROGRESS_MARK), time.monotonic())
        return
    if terminal:
        terminal.clear()
    print(cleaned(line), flush=True)


def relayed_environment() -> dict[str, str]:
    """Return the environment variables of a command whose output is relayed by `show`."""
    return {LIVE: "1"} if _voice and _voice.terminal.is_live else {}


def terminal_stream() -> TextIO:
    """Return the stream for libraries that write to the user on our behalf, such as the parser of options."""
    return _voice.terminal.stream if _voice else sys.stderr
