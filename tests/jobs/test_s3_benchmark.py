from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmarks.ranges import ranges
from jobs.benchmarks.s3_faults import s3_faults

ROOT = Path(__file__).parents[2]


def test_without_a_server_the_benchmark_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for measure in (s3_faults, ranges):
        with pytest.raises(ValueError, match="AWS_ENDPOINT_URL is unset: set it to"):
            measure()


def measured(name: str, *options: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("RAY_AUTH_MODE", None)
    command = [sys.executable, "jobs/benchmark.py", name, *options]
    output = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.ray
def test_a_store_with_faults_loses_and_doubles_no_clip(bucket):
    options = ["--num-clips", "20", "--slow-down-every", "4", "--cut-every", "7", "--latency-seconds", "0"]
    found = measured("s3-faults", *options)
    assert (found["clips"], found["lost"], found["doubled"], found["retries_direct"]) == (20, 0, 0, 0)
    assert found["retries"] == found["faults"]["slow_down"] + found["faults"]["cut"] > 5


@pytest.mark.slow
@pytest.mark.ray
def test_clips_of_a_long_video_cost_their_own_bytes(bucket):
    found = measured("ranges", "--num-minutes", "2", "--num-clips", "16", "--latency-seconds", "0")
    assert (found["pixels_equal"], found["num_lost"]) == (True, 0)
    assert 1 < found["bytes_over_needed"] <= found["bytes_over_needed_faulty"] < 1.5
