"""`log-lines` of `python jobs/benchmark.py`: how much a run prints, and whether its output shows a bad video.

The terminal is that of `make pretrain`: a pseudo-terminal in which the progress line updates in place. The job log is
the output of `ray job submit` for a shorter run, without the lines of Ray's own client.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cluster.head import local_head
from jobs.benchmarks.hosts import job_log_of_a_bad_day
from jobs.command_line import parsing
from jobs.corpus.generation import progress_printer
from jobs.launch import local_run
from pipeline.synthetic.clips import CorpusConfig

SMALL = CorpusConfig(num_train_videos=40, num_train_images=8, num_val=8, num_test=12, num_temporal_groups=3)
SMALL_OPTIONS = ("--data.num-frames", "2", "--data.frame-size-px", "32", "--optim.global-batch", "8")
CLIENT = re.compile(r"\S+ \S+\t(INFO|SUCC) (cli|sdk)\.py:")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def log_lines(
    num_steps: int = 480, num_job_steps: int = 60, is_small: bool = False, on_hosts: bool = False
) -> dict[str, Any]:
    """Return the number of terminal lines of a whole run on this machine, and of lines in the job log of a shorter run.

    `is_small`: on a hundred clips of 2 frames of 32 px instead of the embedded corpus. `on_hosts`: only the job log, of
    a run on separate hosts, where an upload fails and a host is lost too.
    """
    if on_hosts:
        return lines_on_hosts(num_job_steps)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        local_run.make_corpus(SMALL if is_small else CorpusConfig(), folder / "corpus")
        cut(planted := video(folder, 0))
        terminal = terminal_lines(arguments(folder, "terminal", num_steps, is_small), is_small)
        cut(later := video(folder, 1))
        job = job_lines(arguments(folder, "job", num_job_steps, is_small))
    return {
        "lines_per_run": len(terminal),
        "num_steps": num_steps,
        "is_rejection_in_terminal": any(re.search(r"rejected +\w+ 1$", line) for line in terminal),
        "job_log_lines": len(job),
        "num_job_steps": num_job_steps,
        "is_bad_video_in_job_log": any(later.name in line for line in job),
        "planted": [planted.name, later.name],
        "terminal": terminal,
        "job_log": job,
    }


def lines_on_hosts(num_steps: int) -> dict[str, Any]:
    """Return the job log of a run on separate hosts, and whether it shows the faults."""
    lines, video_name = job_log_of_a_bad_day(num_steps)
    job = [line for line in lines if not CLIENT.match(line)]
    visible = {"bad_video": video_name, "failed_upload": "the upload of checkpoint_", "lost_worker": " lost: "}
    checks = {f"is_{name}_in_job_log": any(part in line for line in job) for name, part in visible.items()}
    return {"job_log_lines": len(job), "num_job_steps": num_steps, **checks, "job_log": job}


def video(folder: Path, number: int) -> Path:
    """Return a video to train on."""
    return folder / "corpus" / "videos" / "train" / f"{number:05}.mp4"


def cut(path: Path) -> None:
    """Cut a video in half, so that its index lists more than the file holds."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def arguments(folder: Path, name: str, num_steps: int, is_small: bool) -> list[str]:
    """Return the command line of a run on the corpus in `folder`."""
    paths = ["--data.manifest", f"{folder}/corpus/manifest/manifest.parquet", "--placement.storage", f"{folder}/runs"]
    return ["tiny", "--name", name, "--optim.num-steps", str(num_steps), *paths, *(SMALL_OPTIONS if is_small else ())]


def terminal_lines(options: list[str], is_small: bool) -> list[str]:
    """Return the lines that a terminal of 120 columns shows at the end. Raise RuntimeError if the run fails."""
    script = "from jobs.benchmarks import log_lines as l; from jobs.command_line.entry import run_command; "
    script += f"run_command(lambda: l.local_main({options!r}, {is_small}), 'local')"
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "120"}
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while part := os.read(ours, 65536):
            written += part
    os.close(ours)
    shown = [ESCAPE.sub("", line).rpartition("\r")[2] for line in written.decode().replace("\r\n", "\n").split("\n")]
    if status := child.wait():
        raise RuntimeError(f"the run ended with {status}: " + "\n".join(shown[-20:]))
    return shown[:-1] if shown[-1] == "" else shown


def local_main(options: list[str], is_small: bool) -> int:
    """Do what jobs/local.py does, on the corpus that the options name."""
    config = parsing.parse(options, program="jobs.local").config
    return local_run.run_locally(
        options,
        storage=config.placement.storage,
        name=config.name,
        progress=progress_printer(),
        corpus=Path(config.data.manifest).parent.parent,
        contents=SMALL if is_small else CorpusConfig(),
    )


def job_lines(options: list[str]) -> list[str]:
    """Return the lines of the job log of a run. Raise RuntimeError if the run fails."""
    lines: list[str] = []
    with local_head(num_cpus=max(2, os.cpu_count() or 2), object_store_bytes=local_run.OBJECT_STORE_BYTES) as head:
        entrypoint = [sys.executable, "-m", "jobs.pretrain", *options]
        status = head.submit(entrypoint, job_id="log-lines", show=lines.append)
    if status:
        raise RuntimeError(f"the job ended with {status}: " + "\n".join(lines[-20:]))
    return [line for line in lines if not CLIENT.match(line)]
