"""Runs that lose a rank, a node, their driver or their storage go on from the last committed unit.

`make test` kills a rank of a run in the Ray of these tests. `make nightly` runs the measurement `kills`: a driver in a
process of its own, on a cluster of several nodes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from conftest import mlflow_server
from toy import TOY_STEPS, toy_config

from cluster.head import free_ports
from jobs.benchmarks import kills
from jobs.benchmarks.kills import (
    EVERY,
    NUM_STEPS,
    RUN_NAME,
    Attempt,
    Driver,
    attempts,
    lineage,
    lost_and_doubled,
    recorded_rank,
    small_placement,
    small_run,
)
from jobs.benchmarks.support.faulty_store import Faults, faulty_store
from jobs.benchmarks.support.local_cluster import LocalCluster, running_cluster
from jobs.launch.driver import pretrain
from jobs.run import run_files
from jobs.run.config import PretrainConfig
from jobs.run.fields import as_dict
from jobs.tracking import mlflow_runs
from jobs.tracking.journal import read_journals
from jobs.training.job import make_sources
from pipeline import storage
from pipeline.corpus.ledger import read_ledger
from pipeline.stream.loader import ClipSource
from pipeline.stream.source import split_rows

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.ray


def training_source(config: PretrainConfig) -> ClipSource:
    return make_sources(config.data, config.placement, config.optim.global_batch, config.seed)["train"]


@pytest.fixture(scope="module")
def manifest(small_manifest: str) -> str:
    return small_manifest


def attempt(group: int, rank: int, first_step: int, clips: dict[int, list[int]]) -> Attempt:
    times = dict.fromkeys(clips, 0.0)
    return Attempt(
        group=group,
        pid=1,
        rank=rank,
        num_ranks=2,
        first_step=first_step,
        node="",
        clips=clips,
        losses=times,
        times=times,
    )


def test_what_was_undone_by_a_restart_does_not_count() -> None:
    first = [attempt(1, rank, 0, {1: [rank], 2: [10 + rank], 3: [20 + rank]}) for rank in range(2)]
    second = [attempt(2, rank, 2, {3: [30 + rank]}) for rank in range(2)]
    assert lineage(first + second) == {1: [0, 1], 2: [10, 11], 3: [30, 31]}
    assert lineage([*first, attempt(2, 0, 1, {})]) == {1: [0, 1]}


def test_a_lost_and_a_doubled_clip_are_counted(manifest: str) -> None:
    source = training_source(small_run("x", manifest, small_placement("unused")))
    ids = {kind: rows["clip_id"].to_numpy() for kind, rows in split_rows(manifest, "train").items()}
    planned = [source.planned(step) for step in range(NUM_STEPS)]
    trained = {step.step + 1: [int(ids[step.kind][row]) for row in step.rows if row >= 0] for step in planned}
    assert lost_and_doubled(trained, source, NUM_STEPS) == (0, 0)
    moved = trained | {3: trained[3][1:], 4: [*trained[4], trained[4][0]]}
    assert lost_and_doubled(moved, source, NUM_STEPS) == (1, 1)
    assert lost_and_doubled({step: trained[step] for step in trained if step != 7}, source, NUM_STEPS)[0] > 0


def kill_rank(rank: int, storage: Path, step: int) -> None:
    """Kill a rank of the run below `storage` as soon as it has done `step` steps."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for group in attempts(storage):
            if group.rank == rank and max(group.clips, default=0) >= step:
                os.kill(group.pid, signal.SIGKILL)
                return
        time.sleep(0.02)


def test_a_killed_rank_costs_no_clip_and_no_bit(toy_run: str, manifest: str, tmp_path: Path) -> None:
    """The run ends like `toy_run`, which has the same config and which nothing happened to."""
    config = toy_config("killed", manifest, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_rank, 1, tmp_path, 3)
        results = pretrain(config, on_rank=recorded_rank)
    assert killed.done()
    trained = attempts(tmp_path)
    assert len({attempt.group for attempt in trained}) == 2
    assert lost_and_doubled(lineage(trained), training_source(config), TOY_STEPS) == (0, 0)
    assert "lost" in {line["event"] for line in read_journals(str(tmp_path / "killed"))}
    assert kills.weights_of(str(tmp_path / "killed")) == kills.weights_of(toy_run)
    reference = run_files.read_json(f"{toy_run}/results.json")
    measured = {name: value for name, value in reference.items() if name.startswith(("test/", "validation/"))}
    assert measured
    assert {name: results[name] for name in measured} == measured
    assert read_ledger(f"{toy_run}/ledger.parquet") == read_ledger(str(tmp_path / "killed" / "ledger.parquet")) == []
    wait_until_idle()


def wait_until_idle() -> None:
    """Wait until everything that runs of this Ray have held is given back; fail after a minute."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.nightly
def test_nothing_is_lost_or_doubled_and_the_weights_are_the_same_bits(manifest: str) -> None:
    what = ("rank 0", "train node", "decode node", "driver", "hang")
    command = [sys.executable, "jobs/benchmark.py", "kills", "--manifest", manifest, "--num-runs", str(len(what))]
    done = subprocess.run(  # in a process of its own: this one may be connected to the Ray of other tests
        [*command, "--seed", "1", "--what", *what], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["lost"], found["doubled"], found["bit_equal"]) == (0, 0, True)
    for run in found["runs"]:
        is_elsewhere = run["what"] == "decode node"  # training does not notice
        assert run["num_groups"] == (1 if is_elsewhere else 2), run
    assert found["left"] == []


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with running_cluster() as nodes:
        yield nodes


def driver_of(config: PretrainConfig, cluster: LocalCluster) -> Driver:
    run_files.write_json(f"{config.placement.storage}/{run_files.CONFIG}", as_dict(config))
    return Driver(Path(config.placement.storage), cluster.address)


@pytest.mark.slow
@pytest.mark.nightly
def test_an_elastic_run_takes_the_workers_that_there_is_room_for(
    manifest: str, tmp_path: Path, cluster: LocalCluster
) -> None:
    """One node, then two, then one: the same clips in the same steps as a run of two workers from start to end."""
    cluster.fill(num_train=1)
    placement = small_placement(str(tmp_path / "elastic"), num_workers=(1, 2))
    placement = dataclasses.replace(placement, cpus_per_worker=1.0, resize_seconds=2.0)
    config = small_run("elastic", manifest, placement)
    num_steps = 4 * NUM_STEPS  # nodes take a while to come and to be noticed
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, num_steps=num_steps))
    driver = driver_of(config, cluster)
    try:
        driver.wait_for_step(3)
        cluster.fill(num_train=2)
        while max(rank.num_ranks for rank in attempts(driver.storage)) < 2:
            assert driver.process.poll() is None, driver.words()
            time.sleep(0.1)
        driver.wait_for_step(max(max(rank.clips, default=0) for rank in attempts(driver.storage)) + 2)
        cluster.kill(cluster.train_nodes, cluster.train_nodes[-1])
        driver.finish()
    finally:
        if driver.process.poll() is None:
            driver.kill()
    trained = attempts(driver.storage)
    assert {rank.num_ranks for rank in trained} == {1, 2}
    assert lost_and_doubled(lineage(trained), training_source(config), num_steps) == (0, 0)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_node_that_is_announced_to_go_is_preceded_by_a_checkpoint(
    manifest: str, tmp_path: Path, cluster: LocalCluster
) -> None:
    cluster.fill()
    config = small_run(RUN_NAME, manifest, small_placement(str(tmp_path), max_failures=0))
    driver = driver_of(config, cluster)
    notice = functools.partial(kills.announce_loss, driver, cluster)
    run = kills.run_killed(2, driver, training_source(config), notice)
    assert (run["lost"], run["doubled"], run["num_groups"]) == (0, 0, 2)
    steps = {line["step"] for line in read_journals(str(tmp_path / RUN_NAME)) if line["event"] == "checkpoint"}
    assert any(step % EVERY for step in steps), steps


def command(folder: Path, manifest: str, *options: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A small run of one worker, by the command that a person types."""
    sizes = "--data.num-frames 2 --data.frame-size-px 32 --optim.global-batch 8 --optim.warmup-steps 1"
    rest = "--placement.log-every 1 --placement.num-workers 1 --placement.cpus-per-worker 1"
    command = [sys.executable, str(ROOT / "jobs/pretrain.py"), "tiny", "--name", "small", *sizes.split(), *rest.split()]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [*command, "--data.manifest", manifest, *options],
        env=inherited | environment | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.nightly
def test_a_run_waits_for_a_bucket_that_is_gone_for_a_while(manifest: str, bucket: str, tmp_path: Path) -> None:
    faults = Faults(slow_down_every=7)
    with faulty_store(os.environ["AWS_ENDPOINT_URL"], faults) as store:
        environment = {"AWS_ENDPOINT_URL": store.endpoint, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        options = [
            "--optim.num-steps",
            "40",
            "--selection.evaluate-every",
            "4",
            "--placement.storage",
            f"{bucket}/runs",
        ]
        process = command(tmp_path, manifest, *options, environment=environment)
        printed: list[str] = []
        assert process.stdout
        reader = threading.Thread(target=printed.extend, args=(process.stdout,))
        reader.start()
        while run_files.committed_step(f"{bucket}/runs/small") < 8:
            assert process.poll() is None, "".join(printed)
            time.sleep(0.2)
        store.gone_until = time.monotonic() + 45
        before = run_files.committed_step(f"{bucket}/runs/small")
        assert process.wait(400) == 0, "".join(printed)
        reader.join()
        process.stdout.close()
    assert before < 40
    assert run_files.is_finished(f"{bucket}/runs/small")
    assert store.counts["gone"] > 0
    assert not [line for line in read_journals(f"{bucket}/runs/small") if line["event"] == "lost"]
    kept = [path for path in storage.list_files(f"{bucket}/runs/small") if path.startswith("checkpoint_2")]
    assert len({path.split("/")[0] for path in kept}) <= 3  # the two best, and the latest


@pytest.mark.slow
@pytest.mark.nightly
def test_a_tracking_server_that_is_gone_for_good_costs_a_run_its_end_and_the_same_command_gives_it_back(
    manifest: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    options = ["--placement.storage", str(tmp_path), "--optim.num-steps", "40", "--selection.evaluate-every", "10"]

    def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
        said, _ = process.communicate(timeout=400)
        return process.returncode, said

    with mlflow_server(tmp_path, port) as uri:
        environment = {"MLFLOW_TRACKING_URI": uri}
        process = command(tmp_path, manifest, *options, environment=environment)
        while run_files.committed_step(str(tmp_path / "small")) < 10:
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
    status, said = finished(process)
    assert status == 1, said
    assert "does not answer: training goes on" in said
    assert "is trained and evaluated, but the tracking server" in said
    assert "start it and give the same command again" in said
    assert "Traceback" not in said
    assert run_files.is_finished(str(tmp_path / "small"))
    weights = kills.weights_of(str(tmp_path / "small"))
    with mlflow_server(tmp_path, port):
        status, said = finished(command(tmp_path, manifest, *options, environment=environment))
        assert status == 0, said
        client = mlflow_runs.client_of(uri)
        (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        assert run.info.status == "FINISHED"
        points = client.get_metric_history(run.info.run_id, "loss/total")
    assert {point.step for point in points} == set(range(1, 41))
    assert kills.weights_of(str(tmp_path / "small")) == weights


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_last_unit_is_whole(manifest: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be made here: {mounted.stderr.strip()}")
    try:
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        options = ["--placement.storage", str(disk), "--placement.max-failures", "0"]
        options += ["--optim.num-steps", "400", "--selection.evaluate-every", "2"]
        process = command(
            tmp_path, manifest, *options, "--placement.num-kept-checkpoints", "50", environment=environment
        )
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 1, said
        assert "no space left" in said.lower()
        folder = f"{disk}/small"
        step = run_files.committed_step(folder)
        assert step >= 2
        name = run_files.committed_checkpoint(folder)
        assert run_files.read_json(f"{folder}/{name}/{run_files.PROGRESS}")["step"] == step
    finally:
        subprocess.run(["umount", str(disk)], check=False)


@pytest.mark.slow
def test_a_job_is_taken_with_the_token_and_refused_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "1" * 64)  # of another Ray
    import urllib.error
    import urllib.request

    from cluster.head import local_head

    def status(url: str, token: str | None) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    with local_head(num_cpus=1, object_store_bytes=100 * 2**20) as head:
        jobs = f"{head.dashboard_url}/api/jobs/"
        token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        assert [status(jobs, one) for one in (token, None, "0" * 64)] == [200, 401, 403]
        marker = tmp_path / "ran"
        entrypoint = [sys.executable, "-c", f"open({str(marker)!r}, 'w').close()"]
        assert head.submit(entrypoint, job_id="allowed") == 0
        assert marker.exists()
        wrong = tmp_path / "token"
        wrong.write_text("0" * 64)
        stranger = dataclasses.replace(head, environment=head.environment | {"RAY_AUTH_TOKEN_PATH": str(wrong)})
        assert stranger.submit([sys.executable, "-c", "1"], job_id="refused") != 0
