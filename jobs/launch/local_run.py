"""The main job on this machine: make the embedded corpus, start a Ray head, submit prepare and pretrain to it."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ray

from cluster.head import Head, local_head
from jobs import WORKPLACE
from jobs.tracking import mlflow_runs, voice
from pipeline.synthetic.clips import CorpusConfig
from pipeline.synthetic.corpus import make_corpus

CORPUS, EMBEDDED = WORKPLACE / "corpora" / "embedded", CorpusConfig()
CHATTER = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\t(INFO|SUCC) |Running entrypoint for job ")
"""Start of the lines in which Ray's client and job server report on themselves."""
log = logging.getLogger("ray.job_client")
OBJECT_STORE_BYTES = 400 * 2**20


def run_locally(
    arguments: list[str],
    *,
    storage: str,
    name: str,
    progress: Callable[[int, int], None],
    corpus: Path = CORPUS,
    contents: CorpusConfig = EMBEDDED,
) -> int:
    """Run pretrain with `arguments` on a Ray head of this machine and return its exit status; 130 if it was stopped.

    `storage` and `name` must be those in `arguments`. The corpus is made from `contents` in the folder `corpus`;
    `progress` is called with the clips made and their total.
    """
    start = time.perf_counter()
    os.chdir(WORKPLACE)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    make_corpus(contents, corpus, num_processes=os.cpu_count() or 1, progress=progress)
    num_cpus = max(2, os.cpu_count() or 2)
    live = voice.relayed_environment()
    with local_head(num_cpus=num_cpus, object_store_bytes=OBJECT_STORE_BYTES, job_environment=live) as head:
        voice.show(f"Ray {ray.__version__}: dashboard at {head.dashboard_url} while the job runs")
        status = prepare(head, corpus) or pretrain(head, arguments)
    run_folder = Path(storage).resolve() / name
    if status == 0 and (run_folder / "results.json").exists():
        voice.show(conclusion(run_folder, mlflow_runs.tracking_uri(storage), time.perf_counter() - start))
        return 0
    return status or 130


def prepare(head: Head, corpus: Path) -> int:
    """Submit the job that writes the corpus's manifest and return its exit status. A second job does nothing."""
    annotations = sorted(str(path) for path in (corpus / "annotations").glob("*.jsonl"))
    entrypoint = [sys.executable, "-m", "jobs.prepare", "--corpus", "embedded", "--root", str(corpus)]
    entrypoint += ["--annotations", *annotations, "--out", str(corpus / "manifest")]
    return head.submit(entrypoint, job_id=f"prepare-{secrets.token_hex(3)}", show=relay)


def pretrain(head: Head, arguments: list[str]) -> int:
    """Submit the pre-training job and return its exit status."""
    entrypoint = [sys.executable, "-m", "jobs.pretrain", *arguments]
    return head.submit(entrypoint, job_id=f"pretrain-{secrets.token_hex(3)}", show=relay)


def relay(line: str) -> None:
    """Print a line of a job's output; log it instead if it is `CHATTER` of Ray."""
    if CHATTER.match(line) or not line.strip():
        log.info("%s", line)
    else:
        voice.show(line)


def conclusion(run_folder: Path, tracking_uri: str, seconds: float) -> str:
    """Return the closing text: where the results are and how to view them."""
    return (
        f"\ndone in {seconds / 60:.1f} minutes\n"
        f"  look:     open {run_folder / 'report.html'} in a browser\n"
        f"  numbers:  {run_folder / 'results.json'}\n"
        f"  compare:  {Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {tracking_uri}\n"
        f"  again:    this run is finished; pass another --name to train a new one"
    )
