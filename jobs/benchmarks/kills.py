"""Runs that lose a process or a node: `kills` and `restart` of `python jobs/benchmark.py`.

The cluster has several nodes on this machine (a head without CPUs, a training node, a labelled decoding node); a small
run has its driver in a separate process. A process or node is killed at a random step. Each rank records the clips that
it trains on; they are compared with the plan, and the final weights with those of an undisturbed run.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated import autoscaler_pb2
from torch import Tensor

from cluster.run import Runtime
from jobs import ROOT
from jobs.benchmarks.support.fixtures import small_corpus
from jobs.benchmarks.support.leftovers import leftovers, refuse_unknown_actors
from jobs.benchmarks.support.local_cluster import LocalCluster, running_cluster
from jobs.launch import driver as launch
from jobs.run import run_files
from jobs.run.config import Placement, PretrainConfig, SelectionConfig
from jobs.run.fields import as_dict
from jobs.run.presets import tiny
from jobs.run.run_identity import config_of
from jobs.tracking.journal import read_journals
from jobs.training import trainer
from jobs.training.job import Job, make_sources
from pipeline.records import Batch
from pipeline.storage import read_bytes
from pipeline.stream.loader import ClipSource
from pipeline.stream.source import split_rows

RUN_NAME = "small"
NUM_STEPS, EVERY = 24, 6
"""Steps of a run, and steps between its checkpoints."""
PACE_SECONDS = 0.4
"""Pause after each step, so that a run lasts long enough to be killed in the middle."""
HANG_SECONDS = 60.0
QUICK_NOTICE = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
WAIT_SECONDS = 480
"""Limit for a run to reach the step of the kill, and from there its end."""


# --- a run that records the clips it trains on ------------------------------------------------------------------------


def recorded_rank(job: Job, runtime: Runtime, folder: str = "") -> None:
    """Train as a rank does; record each step's clips in a file of this process after the step, in `folder`, by default
    that of the storage."""
    rank = runtime.world.rank
    path = Path(folder or Path(job.run_folder).parent, "trained", f"{time.time_ns()}-{rank}-{os.getpid()}.jsonl")
    path.parent.mkdir(exist_ok=True)

    with path.open("a", buffering=1) as file:

        def record(step: int, metrics: dict[str, Tensor], batch: Batch) -> None:
            if not file.tell():
                group = runtime.world.gather_objects([time.time_ns()])[0]
                start = {"group": group, "pid": os.getpid(), "rank": rank, "num_ranks": runtime.world.size}
                start |= {"first_step": step - 1, "node": ray.get_runtime_context().get_node_id()}
                file.write(json.dumps(start) + "\n")
            clips = batch.clip_ids[batch.weight > 0.5].tolist()
            entry = {"step": step, "time": time.time(), "clips": clips, "loss": metrics["loss/total"].item()}
            file.write(json.dumps(entry) + "\n")
            time.sleep(PACE_SECONDS)

        trainer.pretrain_rank(job, runtime, on_step=record)


@dataclass(frozen=True)
class Attempt:
    """The clips that one rank of one worker group trained on."""

    group: int
    """Start time of its worker group."""
    pid: int
    rank: int
    num_ranks: int
    first_step: int
    """Number of completed steps at its start."""
    node: str
    clips: dict[int, list[int]]
    """Clip ids by step, counted from 1."""
    losses: dict[int, float]
    times: dict[int, float]
    """Completion time of each step."""


def attempts(storage: Path) -> list[Attempt]:
    """Read the attempts of all ranks, in order of their start."""
    result = []
    for path in (storage / "trained").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if lines:
            names = {"clips": "clips", "losses": "loss", "times": "time"}
            by_step: dict[str, Any] = {
                key: {line["step"]: line[name] for line in lines[1:]} for key, name in names.items()
            }
            result.append(Attempt(**lines[0], **by_step))
    return sorted(result, key=lambda attempt: (attempt.group, attempt.rank))


def lineage(history: list[Attempt]) -> dict[int, list[int]]:
    """Return, by step, the clips that the final weights were trained on.

    A group starts from the weights of step `first_step`, which discards later steps of earlier groups.
    """
    trained: dict[int, list[int]] = {}
    for _, group in itertools.groupby(history, key=lambda attempt: attempt.group):
        ranks = list(group)
        trained = {step: clips for step, clips in trained.items() if step <= ranks[0].first_step}
        for step in sorted({step for rank in ranks for step in rank.clips}):
            trained[step] = [clip for rank in ranks for clip in rank.clips.get(step, [])]
    return trained


def lost_and_doubled(trained: dict[int, list[int]], source: ClipSource, num_steps: int) -> tuple[int, int]:
    """Count the planned clips that no step trained on, and those trained on more often than planned."""
    rows = split_rows(source.manifest_path, source.split)
    lost = doubled = 0
    for step in range(num_steps):
        planned = source.planned(step)
        ids = rows[planned.kind]["clip_id"].to_numpy()
        expected = Counter(int(ids[row]) for row in planned.rows if row >= 0)
        actual = Counter(trained.get(step + 1, []))
        lost += (expected - actual).total()
        doubled += (actual - expected).total()
    return lost, doubled


# --- the cluster and the driver ---------------------------------------------------------------------------------------


class Driver:
    """A run in a separate process, with the config in `storage`/config.json."""

    def __init__(self, storage: Path, address: str) -> None:
        self.storage, self.address = storage, address
        self.log = storage / "driver.log"
        self.start()

    @property
    def run_folder(self) -> str:
        return f"{self.storage}/{RUN_NAME}"

    def start(self) -> None:
        """Start the process, or start it again."""
        script = "import sys; from jobs.benchmarks.kills import drive; drive(sys.argv[1])"
        variables = os.environ | {"RAY_ADDRESS": self.address, "PYTHONPATH": str(ROOT)} | QUICK_NOTICE
        command = [sys.executable, "-c", script, str(self.storage)]
        with self.log.open("ab") as log:
            outputs = {"stdout": log, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, **outputs)

    def wait_for_step(self, step: int) -> list[Attempt]:
        """Return the attempts once the run has completed `step` steps. Raise RuntimeError if it does not."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            history = attempts(self.storage)
            if any(max(attempt.clips, default=0) >= step for attempt in history):
                return history
            time.sleep(0.02)
        raise RuntimeError(f"the run did not come to step {step}: {self.words()}")

    def finish(self) -> None:
        """Wait for the run to end. Raise RuntimeError if it hangs or fails."""
        try:
            status = self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the run did not end: {self.words()}") from None
        if status:
            raise RuntimeError(f"the run ended with status {status}: {self.words()}")

    def kill(self) -> None:
        """Kill the process and its children at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def words(self) -> str:
        """Return the end of its output."""
        return self.log.read_text(errors="replace")[-3000:]


def drive(folder: str, records: str = "") -> None:
    """Run the config in `folder` from its last checkpoint to the end, in this process. `records`: of the ranks."""
    launch.pretrain(config_of(folder), on_rank=functools.partial(recorded_rank, folder=records))


def new_driver(storage: str, manifest: str, address: str) -> Driver:
    """Start a small run with its files in `storage`."""
    config = small_run(RUN_NAME, manifest, small_placement(storage))
    run_files.write_json(f"{storage}/{run_files.CONFIG}", as_dict(config))
    return Driver(Path(storage), address)


def small_run(name: str, manifest: str, placement: Placement) -> PretrainConfig:
    """Return a run of seconds, with the network and the objectives of `tiny`."""
    preset = tiny()
    return dataclasses.replace(
        preset,
        name=name,
        data=dataclasses.replace(preset.data, manifest=manifest, num_frames=2, frame_size_px=32),
        optim=dataclasses.replace(preset.optim, num_steps=NUM_STEPS, global_batch=8, warmup_steps=2),
        selection=SelectionConfig(evaluate_every=EVERY),
        placement=placement,
    )


def small_placement(storage: str, num_workers: int | tuple[int, int] = 2, **changes: Any) -> Placement:
    """Place a run on the test cluster: half a CPU for each of its workers, one for decoding."""
    cpus = {"num_workers": num_workers, "cpus_per_worker": 0.5, "decode_cpus": 1}
    return Placement(storage=storage, log_every=1, hang_seconds=HANG_SECONDS, **cpus, **changes)


# --- the kills --------------------------------------------------------------------------------------------------------


def signal_rank(
    rank: int, number: signal.Signals, driver: Driver, cluster: LocalCluster, trained: list[Attempt]
) -> None:
    """Send a signal, which kills or stops it, to the process of a rank in the newest worker group."""
    os.kill(next(attempt.pid for attempt in reversed(trained) if attempt.rank == rank), number)


def kill_train_node(driver: Driver, cluster: LocalCluster, trained: list[Attempt]) -> None:
    """Kill a node with a rank, and add another node."""
    node = next(node for node in cluster.train_nodes if node.node_id == trained[-1].node)
    cluster.kill(cluster.train_nodes, node)
    cluster.fill()


def kill_data_node(driver: Driver, cluster: LocalCluster, trained: list[Attempt]) -> None:
    """Kill a node that decodes, and add another node."""
    cluster.kill(cluster.data_nodes, random.choice(cluster.data_nodes))
    cluster.fill()


def announce_loss(driver: Driver, cluster: LocalCluster, trained: list[Attempt]) -> None:
    """Announce the end of a node with a rank half a minute ahead, as for a spot instance, then kill it."""
    deadline = time.monotonic() + 30
    store = GcsClient(address=cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION  # pyright: ignore[reportAttributeAccessIssue]
    store.drain_node(trained[-1].node, reason, "announced by the measurement", int((time.time() + 30) * 1000))
    while time.monotonic() < deadline and driver.process.poll() is None:
        events = [line["event"] for line in read_journals(driver.run_folder)]
        if "preempted" in events and "checkpoint" in events[events.index("preempted") :]:
            break
        time.sleep(0.2)
    kill_train_node(driver, cluster, trained)


def kill_driver(driver: Driver, cluster: LocalCluster, trained: list[Attempt]) -> None:
    """Kill the driver and run the same command again."""
    driver.kill()
    driver.start()


KILLS: dict[str, Callable[[Driver, LocalCluster, list[Attempt]], None]] = {
    "rank 1": functools.partial(signal_rank, 1, signal.SIGKILL),
    "rank 0": functools.partial(signal_rank, 0, signal.SIGKILL),
    "train node": kill_train_node,
    "decode node": kill_data_node,
    "driver": kill_driver,
    "hang": functools.partial(signal_rank, 1, signal.SIGSTOP),
    "notice": announce_loss,
}


def run_killed(
    step: int, driver: Driver, source: ClipSource, kill: Callable[[list[Attempt]], object]
) -> dict[str, Any]:
    """Call `kill` after `step` steps of a run on `source`, wait for the run to end, and return the outcome."""
    try:
        trained = driver.wait_for_step(step)
        killed_at = time.time()
        kill(trained)
        driver.finish()
    finally:
        if driver.process.poll() is None:
            driver.kill()
    history = attempts(driver.storage)
    lost, doubled = lost_and_doubled(lineage(history), source, NUM_STEPS)
    losses = [line for line in read_journals(driver.run_folder) if line["event"] == "lost"]
    noticed = [datetime.datetime.fromisoformat(line["time"]).timestamp() for line in losses]
    later = [attempt for attempt in history if attempt.group / 1e9 > killed_at and attempt.times]
    starts, first_steps = [attempt.group / 1e9 for attempt in later], [min(rank.times.values()) for rank in later]
    return {
        "step": step,
        "lost": lost,
        "doubled": doubled,
        "num_groups": len({attempt.group for attempt in history}),
        "seconds_to_notice": min(noticed) - killed_at if noticed else None,
        "seconds_to_group": min(starts, default=killed_at) - killed_at,
        "seconds_to_step": min(first_steps, default=killed_at) - killed_at,
        "longest_pause_seconds": longest_pause(history, killed_at),
        "causes": sorted({line["cause"].split(":")[0] for line in losses}),
        "weights": weights_of(driver.run_folder),
    }


def longest_pause(history: list[Attempt], since: float) -> float:
    """Return the longest time in seconds between two successive steps, the later of which ended after `since`."""
    times = sorted(time for attempt in history for time in attempt.times.values())
    return max((later - earlier for earlier, later in itertools.pairwise(times) if later > since), default=0.0)


def weights_of(run_folder: str) -> str:
    """Return a hash of the bits of the last checkpoint's weights."""
    name = run_files.committed_checkpoint(run_folder)
    return hashlib.blake2b(read_bytes(f"{run_folder}/{name}/{run_files.WEIGHTS}")).hexdigest()


def kills(
    manifest: str = "", num_runs: int = len(KILLS), seed: int = 0, what: tuple[str, ...] = tuple(KILLS)
) -> dict[str, Any]:
    """Return the clips lost and doubled by runs that lose a rank, a node or their driver at a random step, and whether
    their weights equal those of an undisturbed run."""
    rng, runs = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        manifest = manifest or small_corpus(folder)  # first, since preparing would join a running cluster
        with running_cluster() as cluster:
            cluster.fill()
            whole = new_driver(f"{folder}/whole", manifest, cluster.address)
            whole.wait_for_step(1)
            refuse_unknown_actors(cluster.address)
            whole.finish()
            expected = weights_of(whole.run_folder)
            config = config_of(f"{folder}/whole")
            source = make_sources(config.data, config.placement, config.optim.global_batch, config.seed)["train"]
            for number in range(num_runs):
                kind, step = what[number % len(what)], rng.randint(1, NUM_STEPS - 3)
                cluster.fill()
                driver = new_driver(f"{folder}/{number}", manifest, cluster.address)
                kill = functools.partial(KILLS[kind], driver, cluster)
                run = {"what": kind} | run_killed(step, driver, source, kill)
                run["bit_equal"] = run.pop("weights") == expected
                runs.append(run)
                print(json.dumps(run), file=sys.stderr, flush=True)
            remains = leftovers(cluster.address)
    totals = {name: sum(run[name] for run in runs) for name in ("lost", "doubled")}
    is_bit_equal = all(run["bit_equal"] for run in runs)
    return totals | {"bit_equal": is_bit_equal, "left": remains, "num_runs": num_runs, "runs": runs}


def restart(manifest: str = "", num_runs: int = 5) -> dict[str, Any]:
    """Return the seconds from the loss of a rank to the next step, and their phases."""
    runs = kills(manifest, num_runs, what=("rank 1",))["runs"]
    names = ("seconds_to_notice", "seconds_to_group", "seconds_to_step")
    notice, group, step = (statistics.median(run[name] for run in runs) for name in names)
    return {
        "seconds": step,
        "seconds_until_noticed": notice,
        "seconds_for_new_ranks_and_validation_clips": group - notice,
        "seconds_for_data_and_first_step": step - group,
        "all": [run["seconds_to_step"] for run in runs],
    }
