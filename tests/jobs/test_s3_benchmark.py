from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmarks.s3_faults import s3_faults

ROOT = Path(__file__).parents[2]


def test_without_a_server_the_benchmark_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL is unset: set it to"):
        s3_faults()


@pytest.mark.slow
@pytest.mark.ray
def test_a_store_with_faults_loses_and_doubles_no_clip(bucket):
    options = ["--num-clips", "20", "--slow-down-every", "4", "--cut-every", "7", "--latency-seconds", "0"]
    command = [sys.executable, "jobs/benchmark.py", "s3-faults", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("RAY_AUTH_MODE", None)
    output = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    assert (found["clips"], found["lost"], found["doubled"], found["retries_direct"]) == (20, 0, 0, 0)
    assert found["retries"] == found["faults"]["slow_down"] + found["faults"]["cut"] > 5
