"""What the dashboard draws is what runs publish, and it comes out of Ray's endpoint for Prometheus."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray
import torch

from jobs.tracking.telemetry import GAUGES, gpu_memory_mib, memory_mib, publish

DASHBOARD = json.loads((Path(__file__).resolve().parent.parent.parent / "cluster" / "grafana.json").read_text())


def test_the_dashboard_draws_every_gauge_and_no_other() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    drawn = {name for expression in expressions for name in re.findall(r"ray_snps3_(\w+)", expression)}
    assert drawn == set(GAUGES)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_outside_of_a_ray_nothing_is_published() -> None:
    if ray.is_initialized():
        pytest.skip("another test of this session has started a Ray")
    publish({"step": 1.0}, "run", 0)


def test_memory_is_that_of_this_process() -> None:
    before = memory_mib()
    kept = torch.ones(2**26)
    assert memory_mib() >= before
    assert memory_mib() > 256
    assert len(kept)
    assert gpu_memory_mib(torch.device("cpu")) == 0.0


@pytest.mark.ray
def test_gauges_come_out_of_the_endpoint_of_the_node(local_ray: None) -> None:
    publish({"step": 12.0, "data_wait_share": 0.25}, "a-run", 3)
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline, lines = time.monotonic() + 30, list[str]()
    while time.monotonic() < deadline and not lines:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        # Runs of other tests may have published to this Ray too.
        lines = [
            line
            for line in text.splitlines()
            if line.startswith("ray_snps3_data_wait_share{") and 'run="a-run"' in line
        ]
        time.sleep(0.5)
    (line,) = lines
    assert 'rank="3"' in line
    assert line.endswith(" 0.25")
