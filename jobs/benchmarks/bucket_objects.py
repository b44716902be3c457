"""`bucket-objects` of `python jobs/benchmark.py`: `prepare` of a bucket of many small objects, killed and gone on.

The job is killed while it lists the bucket, and again while it looks at the objects; the third one ends.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs import ROOT
from jobs.corpus.preparation import PROBED
from pipeline import storage
from pipeline.corpus.manifest import open_manifest

NUM_WRITERS = 16
POLL_SECONDS = 0.2
MIN_KEPT = 2
"""Files with what was found that lie there when the second job is killed."""


def bucket_objects(num_objects: int = 100_000) -> dict[str, Any]:
    """Seconds of an undisturbed job, and whether one that is killed twice makes the same manifest.

    The bucket is one of the S3 server of AWS_ENDPOINT_URL, and is removed again.
    """
    bucket = f"s3://snps3-objects-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory() as local, storage.temporary_bucket(bucket):
        write_objects(f"{bucket}/images", captions := Path(local, "captions.csv"), num_objects)
        log = Path(local, "log")

        def job(out: str, is_time: Callable[[], bool] = lambda: False) -> float:
            return run_until(["--root", f"{bucket}/images", "--out", out, "--annotations", str(captions)], log, is_time)

        seconds = job(f"{bucket}/whole")
        num_lines = len(re.findall(r"files are listed below", log.read_text()))
        killed = f"{bucket}/killed"
        listing_seconds = job(killed, lambda: "files are listed below" in log.read_text())
        job(killed, lambda: num_kept(killed) >= MIN_KEPT)
        kept = num_kept(killed)
        last_seconds = job(killed)
        hashes = [open_manifest(f"{out}/manifest").hash for out in (f"{bucket}/whole", killed)]
        return {
            "is_same": hashes[0] == hashes[1],
            "num_clips": len(open_manifest(f"{killed}/manifest")),
            "seconds": seconds,
            "lines_of_progress": num_lines,
            "killed_after_seconds": listing_seconds,
            "files_kept": kept,
            "last_seconds": last_seconds,
        }


def write_objects(root: str, captions: Path, num_objects: int) -> None:
    """Write pictures of one colour each below `root`, and their captions."""

    def write(number: int) -> None:
        picture = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), number % 256, np.uint8)).save(picture, "PNG")
        storage.write_bytes_atomic(f"{root}/{number // 1000:04d}/{number:08d}.png", picture.getvalue())

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        list(pool.map(write, range(num_objects)))
    rows = (f"{number // 1000:04d}/{number:08d}.png,picture {number}\n" for number in range(num_objects))
    captions.write_text("clip,caption\n" + "".join(rows))


def num_kept(out: str) -> int:
    """Return the files of what a job has found so far."""
    return len(storage.list_files(f"{out}/{PROBED}"))


def run_until(options: list[str], log: Path, is_time: Callable[[], bool]) -> float:
    """Run `prepare` to its end, or kill it as soon as `is_time`; return its seconds. RuntimeError if it fails."""
    command = [sys.executable, "-m", "jobs.prepare", "--corpus", "objects", "--in-parts", *options]
    started = time.monotonic()
    with open(log, "w") as file:
        job = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        try:
            while job.poll() is None and not is_time():
                time.sleep(POLL_SECONDS)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
            elif job.returncode:
                raise RuntimeError(f"prepare failed: {log.read_text()[-2000:]}")
    return time.monotonic() - started
