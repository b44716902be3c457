"""Hosts of their own: a cable carries, carries late or carries nothing; and a run on them loses a host and no clip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from jobs.benchmarks.hosts import FAULT_STEP, HostRun, kill_train_host, prepared, train_layout
from jobs.benchmarks.support.host_cluster import data_label, host_cluster
from jobs.benchmarks.support.hosts import Host, Lan, missing
from jobs.evaluation.cards import read_card
from jobs.inference.index import EmbedConfig
from jobs.inference.index_files import open_part, parts_in
from jobs.inference.local_index import embed_here
from jobs.inference.model import load
from jobs.run import run_files
from jobs.tracking.journal import read_journals
from pipeline import storage

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
ECHO = """
import socket
server = socket.create_server(("", 4000))
print("ready", flush=True)
while True:
    client = server.accept()[0]
    client.sendall(client.recv(9))
"""
ASK = """
import socket, sys, time
client = socket.create_connection((sys.argv[1], 4000), timeout=1.5)
start = time.monotonic()
client.sendall(b"x")
client.recv(9)
print(time.monotonic() - start)
"""
SMALL_RUN = (
    "--data.num-frames 2 --data.frame-size-px 32 --data.temporal-split None --optim.global-batch 8 "
    "--optim.warmup-steps 1 --selection.evaluate-every 4"
)
Output = Callable[..., str]


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    with Lan(tmp_path) as lan:
        yield lan


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """What a command on a host prints until it ends."""

    def output(host: Host, *command: str) -> str:
        log = tmp_path / f"{time.monotonic_ns()}.log"
        with log.open("wb") as file:
            host.start(command, file, {"PATH": os.environ["PATH"]}).wait()
        return log.read_text()

    return output


def test_a_host_has_a_name_that_resolves_to_loopback_and_folders_and_processes_of_its_own(
    lan: Lan, output: Output
) -> None:
    first, second = lan.add("first"), lan.add("second")
    script = "hostname; getent hosts $(hostname) | cut -d' ' -f1; touch /tmp/$(hostname) /dev/shm/x; ls /tmp; echo $$"
    for host in (first, second):
        name, address, *files, pid = output(host, "sh", "-c", script).split()
        assert (name, address, set(files)) == (host.name, "127.0.1.1", {host.name, "home"})
        assert int(pid) < 100
        assert not Path("/tmp", host.name).exists()


def test_a_cable_is_pulled_and_put_back_and_a_slow_one_takes_the_time_that_it_is_told(
    lan: Lan, output: Output, tmp_path: Path
) -> None:
    server, client = lan.add("server"), lan.add("client")
    with (tmp_path / "echo.log").open("wb") as log:
        echo = server.start([sys.executable, "-c", ECHO], log, {})
    while "ready" not in (tmp_path / "echo.log").read_text():
        assert echo.poll() is None
        time.sleep(0.02)

    def answer() -> str:
        return output(client, sys.executable, "-c", ASK, server.address)

    assert float(answer()) < 0.1
    lan.unplug(client)
    assert "timed out" in answer()
    lan.plug(client)
    assert float(answer()) < 0.1
    lan.slow_down(client, 0.1, 0.0)
    assert 0.2 <= float(answer()) < 2
    server.kill()
    assert echo.wait(10) != 0


@pytest.mark.slow
@pytest.mark.nightly  # it takes 195 s, and a new test of CI may take 60
def test_a_run_on_hosts_of_their_own_survives_the_loss_of_one(bucket: str, tmp_path: Path) -> None:
    """It needs a Ray of its own, whose nodes are on hosts; `python jobs/benchmark.py hosts` has the other faults."""
    with train_layout(tmp_path) as cluster:
        run = HostRun("small", prepared(cluster, bucket), bucket, cluster)
        result = run.through(kill_train_host, FAULT_STEP, 0)
    assert (result["lost"], result["doubled"], result["num_groups"]) == (0, 0, 2)
    lines = [line for line in read_journals(run.run_folder) if line["who"] == "rank-0"]
    starts = [line for line in lines if line["event"] == "start"]
    done = [line["step"] for line in lines if line["event"] == "step" and line["time"] < starts[-1]["time"]]
    # on a slow machine the host goes only after the next checkpoint was committed, and no step is done again
    assert starts[-1]["num_redone_steps"] >= max(done) - starts[-1]["step"]
    again = f"continuing at step {starts[-1]['step']} of 24"
    (line,) = [line for line in run.log.read_text().splitlines() if again in line]
    assert (starts[-1]["uncommitted_step"] is not None) == ("was not uploaded to its end" in line)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif("AWS_ENDPOINT_URL" not in os.environ, reason="AWS_ENDPOINT_URL is unset: it names an S3 server")
def test_no_fault_of_a_host_costs_a_clip_or_a_bit() -> None:
    command = [sys.executable, "jobs/benchmark.py", "hosts"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["lost"], result["doubled"], result["bit_equal"]) == (0, 0, True)


@pytest.mark.slow
@pytest.mark.nightly  # it takes minutes: five jobs, and each starts a driver and workers
def test_evaluation_embedding_and_a_sweep_run_on_hosts_of_their_own(bucket: str, tmp_path: Path) -> None:
    """It needs a Ray of its own, whose nodes are on hosts."""
    run, videos = f"{bucket}/runs/a", f"{bucket}/corpus/videos/val"
    with host_cluster(tmp_path, "--num-cpus=2", *data_label()) as cluster:  # the head decodes for two trials
        cluster.join("train-1", "train-2")

        def run_job(command: str, *options: str) -> None:
            cluster.run_job([sys.executable, "-m", f"jobs.{command}", *options], command)

        base = ["tiny", *SMALL_RUN.split(), "--data.manifest", prepared(cluster, bucket)]
        base += ["--placement.storage", f"{bucket}/runs", "--placement.cpus-per-worker", "1"]
        on_both = ["--placement.num-workers", "2", "--placement.cpus-per-worker", "1"]
        run_job("pretrain", *base, *on_both, "--name", "a", "--optim.num-steps", "4")
        run_job("evaluate", run, *on_both, "--out", f"{bucket}/card")
        run_job("embed", run, "--videos", videos, "--out", f"{bucket}/index")
        grid = ["--name", "s", "--vary", "optim.lr=1e-4,2e-4", "--search", "grid", "--scheduler", "none"]
        run_job("sweep", *grid, "--", *base, "--placement.num-workers", "1", "--optim.num-steps", "20")
    results = run_files.read_json(f"{run}/results.json")
    scores = read_card(f"{bucket}/card/card.json").scores
    assert scores == pytest.approx({name: results[name] for name in scores})
    embed_here(EmbedConfig(run=run, videos=videos, out=str(tmp_path / "index")))
    model, width = run_files.weights_hash(run), load(run).network.config.hidden
    (on_hosts,), (here,) = map(parts_in, (f"{bucket}/index", str(tmp_path / "index")))
    torch.testing.assert_close(open_part(on_hosts, model, width).vectors, open_part(here, model, width).vectors)
    folders = {path.partition("/")[0] for path in storage.list_files(f"{bucket}/runs")}
    trials = [f"{bucket}/runs/{name}" for name in folders if name.startswith("s-")]
    starts = [line["host"] for trial in trials for line in read_journals(trial) if line["event"] == "start"]
    assert sorted(starts) == ["train-1", "train-2"]
