"""What a command says: its lines to the terminal, all others to the log, an error with what, where and what to do."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster import connection, loggers, ray_internals, worker_lines
from cluster.run import Runtime
from cluster.world import World
from jobs.launch import driver
from jobs.run.config import OptimConfig
from jobs.tracking import voice
from jobs.tracking.journal import read_journals
from jobs.tracking.voice import CLEAR, PROGRESS_SECONDS, Terminal, ToTerminal
from jobs.training.reporting import Meter
from jobs.training.step import Clock

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = """
import logging, os, sys, warnings
from jobs.command_line.entry import run_command

def main():
    logging.getLogger("mlflow").warning("Creating initial tables")
    logging.getLogger("jobs.corpus").warning("a video has no captions; add some")
    logging.getLogger("jobs.corpus").info("a detail")
    warnings.warn("deprecated since long")
    os.write(2, b"E 1 2 core_worker.cc: a line of C++\\n")
    print("botocore: found credentials", file=sys.stderr)
    print("the result")
    END

run_command(main, "trial")
"""


def run(end: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command that ends with the statement `end`, with its temporary files in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", COMMAND.replace("END", end)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_bug_ends_with_what_where_and_the_log_which_has_everybody_elses_lines(tmp_path: Path) -> None:
    done = run("{}['a key']", tmp_path)
    (log,) = tmp_path.glob("snps3-logs-*/trial-*.log")
    assert (done.returncode, done.stdout) == (1, "the result\n")
    warning, error, remedy, place = done.stderr.splitlines()
    assert warning == "warning: a video has no captions; add some"
    assert re.fullmatch(r"error: KeyError at jobs/command_line/entry\.py:\d+: 'a key'", error)
    assert "report it with the log" in remedy
    assert place == f"log: {log}"
    text = log.read_text()
    for part in ("Creating initial tables", "a detail", "deprecated since", "of C++", "found credentials", "Traceback"):
        assert part in text
    assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_refusal_is_one_line_and_leaves_no_log(tmp_path: Path) -> None:
    done = run("raise ValueError('lr=-1 must be above 0')", tmp_path)
    assert (done.returncode, done.stderr.splitlines()[1:]) == (2, ["error: lr=-1 must be above 0"])
    assert list(tmp_path.glob("snps3-logs-*/*")) == []


def test_a_log_folder_that_others_may_read_or_have_put_there_is_not_used(tmp_path: Path) -> None:
    private = voice.private_folder(tmp_path / "new")
    assert (private, private.stat().st_mode & 0o777) == (tmp_path / "new", 0o700)
    assert voice.private_folder(private) == private
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(private)
    for planted in ("open", "link"):
        other = voice.private_folder(tmp_path / planted)
        assert other not in (private, tmp_path / planted)
        assert other.stat().st_mode & 0o777 == 0o700


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_updates_in_place_in_a_terminal_and_is_a_line_every_so_often_elsewhere() -> None:
    live, file, relayed = FakeTerminal(), io.StringIO(), io.StringIO()
    for stream in (live, file, relayed):
        terminal = Terminal(stream, is_relayed=stream is relayed)
        for second in range(61):
            terminal.show_progress(f"step {second}", float(second))
        terminal.say("done")
    assert live.getvalue().count("\n") == 1
    assert live.getvalue().endswith(f"{CLEAR}step 60{CLEAR}done\n")
    assert file.getvalue() == f"step 0\nstep {PROGRESS_SECONDS:.0f}\nstep 60\ndone\n"
    assert relayed.getvalue().count(loggers.PROGRESS_MARK) == 61


def test_the_terminal_shows_what_is_said_and_the_products_warnings_and_names_the_log_with_ray() -> None:
    stream, named = io.StringIO(), []
    handler = ToTerminal(Terminal(stream), lambda: named.append(True))
    for name, level in (("ray.data", "ERROR"), ("jobs.x", "WARNING"), ("pipeline.y", "INFO"), ("snps3.said", "INFO")):
        handler.emit(logging.LogRecord(name, getattr(logging, level), "", 0, "%s says", (name,), None))
    assert stream.getvalue() == "warning: jobs.x says\nsnps3.said says\n"
    assert not named
    handler.emit(logging.LogRecord(loggers.CONNECTS, logging.INFO, "", 0, "joining", (), None))
    assert named


def test_the_log_is_named_by_the_logger_that_speaks_when_a_ray_is_joined() -> None:
    assert connection.log.name == loggers.CONNECTS


def test_lines_of_workers_reach_the_loggers_of_the_driver(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    worker_lines.say("small: step 20")
    worker_lines.show_progress("step 21/60")
    warnings = worker_lines.SayWarnings()
    for _ in range(2):
        warnings.emit(logging.LogRecord("jobs.x", logging.WARNING, "", 0, "no interface has %s", ("10.0.0.1",), None))
    lines = [*capsys.readouterr().err.splitlines(), "(a raylet) speaks"]
    listener = worker_lines.Listener()
    with caplog.at_level(logging.INFO):
        for pid in (1, 2):  # two ranks
            listener({"actor_name": "RayTrainWorker", "pid": pid, "ip": "10.0.0.2", "lines": lines})
    heard = [(record.name, record.getMessage()) for record in caplog.records]
    said = [(worker_lines.SAID, "small: step 20"), (worker_lines.PROGRESS, "step 21/60")]
    warning = "warning: no interface has 10.0.0.1"
    other = (worker_lines.WORKERS, "(RayTrainWorker 1 10.0.0.2) (a raylet) speaks")
    assert heard[:4] == [*said, (worker_lines.SAID, warning), other]
    assert heard[4:7] == [*said, (worker_lines.WORKERS, warning)]


def test_what_ray_says_of_memory_and_machines_is_shown_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_internals, "autoscaler_events", lambda lines: [line for line in lines if "had" in line])
    listener, memory = worker_lines.Listener(), "2 Workers (tasks / actors) killed due to memory pressure (OOM), 0 else"
    batches = [
        {"pid": "raylet", "lines": [memory, "dump of a stack"]},
        {"pid": "autoscaler", "lines": ["== status ==", "No machine of type g6 can be had."]},
    ]
    with caplog.at_level(logging.INFO):
        for batch in batches * 2:
            listener(batch)
    said = [record.getMessage() for record in caplog.records if record.name == worker_lines.SAID]
    assert said == [f"warning: Ray: {memory}", "Ray: No machine of type g6 can be had."]


def test_a_lost_rank_a_failed_upload_and_rejected_clips_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver.report_losses(f"{tmp_path}/small", {3: RuntimeError("Traceback\nhost 10.0.0.2 is gone"), 1: OSError("x")})
    said = f"{worker_lines.MARK}small: ranks 1, 3 lost: host 10.0.0.2 is gone; a new group"
    assert capsys.readouterr().err.startswith(said)
    assert [line["rank"] for line in read_journals(f"{tmp_path}/small")] == [3, 1]

    def fail(folder: str, name: str) -> None:
        raise ConnectionError("no answer from the store")

    worker_lines.say_warnings()
    try:
        checkpoint: Any = SimpleNamespace(path=str(tmp_path / "local"))
        with pytest.raises(ConnectionError):
            Runtime(World(rank=0, size=1, device=torch.device("cpu")), fail)._uploaded(checkpoint, "checkpoint_2")
    finally:
        for package in worker_lines.PACKAGES:
            logging.getLogger(package).handlers.clear()
    warning = "warning: the upload of checkpoint_2 failed, so the one before it counts: no answer from the store"
    assert f"{worker_lines.MARK}{warning}" in capsys.readouterr().err.splitlines()

    meter = Meter(0, Clock(), OptimConfig(num_steps=60))
    values = {"loss/total": 1.0, "clips_per_second": 8.0, "data_wait_share": 0.5}
    assert meter.line(10, values | {"rejected": 2}) == meter.line(10, values) + " · 2 rejected"


def test_a_count_takes_its_noun_in_the_singular_or_the_plural() -> None:
    assert [voice.counted(count, "train worker") for count in (0, 1, 2)] == [
        "0 train workers",
        "1 train worker",
        "2 train workers",
    ]
