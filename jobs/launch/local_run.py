"""The main job on this machine: make the embedded corpus, start a Ray head, submit prepare and pretrain to it."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ray

from cluster.head import Head, local_head
from jobs import WORKPLACE
from jobs.tracking import mlflow_runs
from pipeline.synthetic.clips import CorpusConfig
from pipeline.synthetic.corpus import make_corpus

CORPUS = WORKPLACE / "corpora" / "embedded"
OBJECT_STORE_BYTES = 400 * 2**20


def run_locally(arguments: list[str], *, storage: str, name: str, progress: Callable[[int, int], None]) -> int:
    """Exit status of pretrain with `arguments` on a Ray head of this machine; 130 if it was stopped.

    `storage` and `name` are those of the run that `arguments` describe. `progress`: of the corpus.
    """
    start = time.perf_counter()
    os.chdir(WORKPLACE)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with Ctrl-C switched off
        signal.signal(number, signal.default_int_handler)
    make_corpus(CorpusConfig(), CORPUS, num_processes=os.cpu_count() or 1, progress=progress)
    num_cpus = max(2, os.cpu_count() or 2)
    with local_head(num_cpus=num_cpus, object_store_bytes=OBJECT_STORE_BYTES) as head:
        print(f"Ray {ray.__version__}: dashboard at {head.dashboard_url} while the job runs", flush=True)
        status = prepare(head) or pretrain(head, arguments)
    run_folder = Path(storage).resolve() / name
    if status == 0 and (run_folder / "results.json").exists():
        print(conclusion(run_folder, mlflow_runs.tracking_uri(storage), time.perf_counter() - start), flush=True)
        return 0
    return status or 130


def prepare(head: Head) -> int:
    """Exit status of the job that turns the embedded corpus into its manifest; it does nothing the second time."""
    annotations = sorted(str(path) for path in (CORPUS / "annotations").glob("*.jsonl"))
    entrypoint = [sys.executable, "-m", "jobs.prepare", "--corpus", "embedded", "--root", str(CORPUS)]
    entrypoint += ["--annotations", *annotations, "--out", str(CORPUS / "manifest")]
    return head.submit(entrypoint, job_id=f"prepare-{secrets.token_hex(3)}")


def pretrain(head: Head, arguments: list[str]) -> int:
    """Exit status of the pre-training job."""
    entrypoint = [sys.executable, "-m", "jobs.pretrain", *arguments]
    return head.submit(entrypoint, job_id=f"pretrain-{secrets.token_hex(3)}")


def conclusion(run_folder: Path, tracking_uri: str, seconds: float) -> str:
    """Where the results lie and how to look at them."""
    return (
        f"\ndone in {seconds / 60:.1f} minutes\n"
        f"  look:     open {run_folder / 'report.html'} in a browser\n"
        f"  numbers:  {run_folder / 'results.json'}\n"
        f"  compare:  {Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {tracking_uri}\n"
        f"  again:    the same command does nothing now; another --name makes another run"
    )
