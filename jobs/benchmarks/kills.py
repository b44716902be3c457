"""Runs that lose what they run on: `kills` and `restart` of `python jobs/benchmark.py`.

A local cluster of several nodes (a head without CPUs, a node that trains, a labelled node that decodes), and a
small run in a process of its own. Something is killed at a random step; what was trained on is written down where it is
trained on, and compared with the plan and with a run that nothing happened to.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import logging
import os
import pickle
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import state
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated import autoscaler_pb2
from ray.util import placement_group_table
from torch import Tensor

from cluster.run import Runtime
from jobs import ROOT
from jobs.benchmarks.support.local_cluster import LocalCluster, running_cluster
from jobs.launch import driver as launch
from jobs.run import run_files
from jobs.run.config import Placement, PretrainConfig, SelectionConfig
from jobs.run.presets import tiny
from jobs.tracking.journal import read_journals
from jobs.training import trainer
from jobs.training.job import Job, make_sources
from pipeline.records import Batch
from pipeline.stream.loader import ClipSource, split_rows

NUM_STEPS, EVERY = 24, 6
"""Steps of a run, and between its checkpoints."""
PACE_SECONDS = 0.4
"""Pause after each step, so that a run lasts long enough to lose something in the midst of it."""
HANG_SECONDS = 60.0
QUICK_NOTICE = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
WAIT_SECONDS = 480
"""How long a run may take to the step at which something is killed, and from there to its end."""


# --- a run that writes down what it trains on -------------------------------------------------------------------------


def recorded_rank(job: Job, runtime: Runtime) -> None:
    """Train as a rank does; write each step's clips to a file of this process as soon as the step is done."""
    rank = runtime.world.rank
    path = Path(job.run_folder).parent / "trained" / f"{time.time_ns()}-{rank}-{os.getpid()}.jsonl"
    path.parent.mkdir(exist_ok=True)

    with path.open("a", buffering=1) as file:

        def record(step: int, metrics: dict[str, Tensor], batch: Batch) -> None:
            if not file.tell():
                group = runtime.world.gather_objects([time.time_ns()])[0]
                start = {"group": group, "pid": os.getpid(), "rank": rank, "num_ranks": runtime.world.size}
                start |= {"first_step": step - 1, "node": ray.get_runtime_context().get_node_id()}
                file.write(json.dumps(start) + "\n")
            clips = batch.clip_ids[batch.weight > 0.5].tolist()
            done = {"step": step, "time": time.time(), "clips": clips, "loss": metrics["loss/total"].item()}
            file.write(json.dumps(done) + "\n")
            time.sleep(PACE_SECONDS)

        trainer.pretrain_rank(job, runtime, on_step=record)


@dataclass(frozen=True)
class Attempt:
    """What one rank of one worker group trained on."""

    group: int
    """When its worker group began."""
    pid: int
    rank: int
    num_ranks: int
    first_step: int
    """Steps done when it began."""
    node: str
    clips: dict[int, list[int]]
    """By step, counted from 1."""
    losses: dict[int, float]
    times: dict[int, float]
    """When each step was done."""


def attempts(storage: Path) -> list[Attempt]:
    """In the order in which they began."""
    found = []
    for path in sorted((storage / "trained").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if lines:
            clips, losses, times = (
                {line["step"]: line[name] for line in lines[1:]} for name in ("clips", "loss", "time")
            )
            found.append(Attempt(**lines[0], clips=clips, losses=losses, times=times))
    return sorted(found, key=lambda one: (one.group, one.rank))


def lineage(found: list[Attempt]) -> dict[int, list[int]]:
    """By step, the clips that the final weights were trained on.

    A group goes on from the weights after its first step's predecessor: what earlier groups did after that is undone.
    """
    trained: dict[int, list[int]] = {}
    for _, group in itertools.groupby(found, key=lambda one: one.group):
        ranks = list(group)
        trained = {step: clips for step, clips in trained.items() if step <= ranks[0].first_step}
        for step in sorted({step for one in ranks for step in one.clips}):
            trained[step] = [clip for one in ranks for clip in one.clips.get(step, [])]
    return trained


def lost_and_doubled(trained: dict[int, list[int]], source: ClipSource, num_steps: int) -> tuple[int, int]:
    """Clips of the plan that no step trained on, and clips that were trained on more often than planned."""
    rows = split_rows(source.manifest_path, source.split)
    lost = doubled = 0
    for step in range(num_steps):
        planned = source.planned(step)
        ids = rows[planned.kind]["clip_id"].to_numpy()
        wanted = Counter(int(ids[row]) for row in planned.rows if row >= 0)
        had = Counter(trained.get(step + 1, []))
        lost += (wanted - had).total()
        doubled += (had - wanted).total()
    return lost, doubled


# --- the cluster and the driver ---------------------------------------------------------------------------------------


class Driver:
    """A run in a process of its own."""

    def __init__(self, config: PretrainConfig, address: str) -> None:
        self.config, self.address = config, address
        self.storage = Path(config.placement.storage)
        self.storage.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        """The process runs (again)."""
        script = "import sys; from jobs.benchmarks.kills import drive; drive(sys.argv[1])"
        settings = base64.b64encode(pickle.dumps(self.config)).decode()
        with open(self.storage / f"{self.config.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", script, settings],
                cwd=ROOT,
                env=os.environ | {"RAY_ADDRESS": self.address, "PYTHONPATH": str(ROOT)} | QUICK_NOTICE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for_step(self, step: int) -> list[Attempt]:
        """The attempts, once the run has done `step` steps."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            found = attempts(self.storage)
            if any(max(one.clips, default=0) >= step for one in found):
                return found
            time.sleep(0.02)
        raise RuntimeError(f"the run did not come to step {step}: {self.words()}")

    def finish(self) -> None:
        """The run has ended well."""
        try:
            status = self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the run did not end: {self.words()}") from None
        if status:
            raise RuntimeError(f"the run ended with status {status}: {self.words()}")

    def kill(self) -> None:
        """The process is gone without a word."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def words(self) -> str:
        """The end of what it has printed."""
        return (self.storage / f"{self.config.name}.log").read_text(errors="replace")[-3000:]


def drive(settings: str) -> None:
    """A run from its last checkpoint to the end, in this process."""
    launch.pretrain(pickle.loads(base64.b64decode(settings)), on_rank=recorded_rank)


def small_run(name: str, manifest: str, placement: Placement) -> PretrainConfig:
    """A run of seconds, of the network and the objectives of `tiny`."""
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
    """A run on the test cluster: half a CPU for each of its workers, one for decoding."""
    return Placement(
        storage=storage,
        num_workers=num_workers,
        cpus_per_worker=0.5,
        decode_cpus=1,
        log_every=1,
        hang_seconds=HANG_SECONDS,
        **changes,
    )


# --- what is killed ---------------------------------------------------------------------------------------------------


def signal_rank(rank: int, number: signal.Signals, driver: Driver, cluster: LocalCluster, found: list[Attempt]) -> None:
    """The process of a rank of the newest worker group gets a signal: it is gone, or stands still for ever."""
    del driver, cluster
    os.kill(next(one.pid for one in reversed(found) if one.rank == rank), number)


def kill_train_node(driver: Driver, cluster: LocalCluster, found: list[Attempt]) -> None:
    """A node with a rank is gone, and another takes its place."""
    del driver
    node = next(node for node in cluster.train_nodes if node.node_id == found[-1].node)
    cluster.kill(cluster.train_nodes, node)
    cluster.fill()


def kill_data_node(driver: Driver, cluster: LocalCluster, found: list[Attempt]) -> None:
    """A node that decodes is gone, and another takes its place."""
    del driver, found
    cluster.kill(cluster.data_nodes, random.choice(cluster.data_nodes))
    cluster.fill()


def announce_loss(driver: Driver, cluster: LocalCluster, found: list[Attempt]) -> None:
    """A node with a rank is said to go in half a minute, as of a spot instance, and goes."""
    deadline = time.monotonic() + 30
    store = GcsClient(address=cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION  # pyright: ignore[reportAttributeAccessIssue]
    store.drain_node(found[-1].node, reason, "announced by the measurement", int((time.time() + 30) * 1000))
    while time.monotonic() < deadline and driver.process.poll() is None:
        events = [line["event"] for line in read_journals(str(driver.storage / driver.config.name))]
        if "preempted" in events and "checkpoint" in events[events.index("preempted") :]:
            break
        time.sleep(0.2)
    kill_train_node(driver, cluster, found)


def kill_driver(driver: Driver, cluster: LocalCluster, found: list[Attempt]) -> None:
    """The driver is gone, and the same command is given again."""
    del cluster, found
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


def run_killed(what: str, step: int, config: PretrainConfig, cluster: LocalCluster) -> dict[str, Any]:
    """What became of a run that lost something after `step` steps."""
    cluster.fill()
    driver = Driver(config, cluster.address)
    try:
        found = driver.wait_for_step(step)
        killed_at = time.time()
        KILLS[what](driver, cluster, found)
        driver.finish()
    finally:
        if driver.process.poll() is None:
            driver.kill()
    done = attempts(driver.storage)
    source = make_sources(config.data, config.placement, config.optim.global_batch, config.seed)["train"]
    lost, doubled = lost_and_doubled(lineage(done), source, NUM_STEPS)
    losses = [line for line in read_journals(str(driver.storage / config.name)) if line["event"] == "lost"]
    later = [one for one in done if one.group / 1e9 > killed_at and one.times]
    return {
        "what": what,
        "step": step,
        "lost": lost,
        "doubled": doubled,
        "num_groups": len({one.group for one in done}),
        "seconds_to_notice": seconds_between(killed_at, [line["time"] for line in losses]),
        "seconds_to_group": min((one.group / 1e9 for one in later), default=killed_at) - killed_at,
        "seconds_to_step": min((min(one.times.values()) for one in later), default=killed_at) - killed_at,
        "causes": sorted({line["cause"].split(":")[0] for line in losses}),
        "weights": weights_of(driver.storage / config.name),
    }


def seconds_between(start: float, times: list[str]) -> float | None:
    """From `start` to the first of some times in UTC; None if there is none."""
    moments = [datetime.datetime.fromisoformat(text).timestamp() for text in times]
    return min(moments) - start if moments else None


def weights_of(run_folder: Path) -> str:
    """Hash of the last checkpoint's weights, as bits."""
    name = run_files.committed_checkpoint(str(run_folder))
    return hashlib.blake2b((run_folder / str(name) / run_files.WEIGHTS).read_bytes()).hexdigest()


def kills(
    manifest: str = "", num_runs: int = len(KILLS), seed: int = 0, what: tuple[str, ...] = tuple(KILLS)
) -> dict[str, Any]:
    """Clips lost and doubled by runs that lose a rank, a node or their driver at a random step, and whether their
    weights are those of a run that nothing happened to."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        manifest = manifest or small_corpus(folder)
        cluster = stack.enter_context(running_cluster())
        cluster.fill()
        whole = Driver(small_run("whole", manifest, small_placement(f"{folder}/whole")), cluster.address)
        whole.finish()
        wanted = weights_of(whole.storage / "whole")
        runs = []
        for number in range(num_runs):
            kind, step = what[number % len(what)], rng.randint(1, NUM_STEPS - 3)
            config = small_run("killed", manifest, small_placement(f"{folder}/{number}"))
            runs.append(run_killed(kind, step, config, cluster))
            runs[-1]["bit_equal"] = runs[-1].pop("weights") == wanted
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
        left = leftovers(cluster.address)
    return {
        "lost": sum(run["lost"] for run in runs),
        "doubled": sum(run["doubled"] for run in runs),
        "bit_equal": all(run["bit_equal"] for run in runs),
        "left": left,
        "num_runs": num_runs,
        "runs": runs,
    }


def restart(manifest: str = "", num_runs: int = 5) -> dict[str, Any]:
    """Seconds from the loss of a rank to the next step, and what they go to."""
    found = kills(manifest, num_runs, what=("rank 1",))["runs"]
    notice, group, step = (
        statistics.median(run[name] for run in found)
        for name in ("seconds_to_notice", "seconds_to_group", "seconds_to_step")
    )
    return {
        "seconds": step,
        "seconds_until_noticed": notice,
        "seconds_for_new_ranks_and_validation_clips": group - notice,
        "seconds_for_data_and_first_step": step - group,
        "all": [run["seconds_to_step"] for run in found],
    }


def leftovers(address: str) -> list[str]:
    """Actors of runs that are still alive, and placement groups that are still held, after all runs are over."""
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    try:
        time.sleep(10)  # a killed driver is noticed by its silence
        groups = [f"placement group {key}" for key, one in placement_group_table().items() if one["state"] != "REMOVED"]
        actors = state.actors().values()
        return groups + [f"{one['ActorClassName']} {one['State']}" for one in actors if _is_of_a_run(one)]
    finally:
        ray.shutdown()


def _is_of_a_run(actor: Mapping[str, Any]) -> bool:
    kinds = ("RayTrainWorker", "TrainController", "SplitCoordinator", "DatasetManager", "PreemptionWatcher")
    return actor["State"] != "DEAD" and any(kind in actor["ActorClassName"] for kind in kinds)


def small_corpus(folder: str) -> str:
    """Path of the manifest of a small generated corpus."""
    from jobs.corpus.preparation import PrepareConfig, prepare
    from pipeline.synthetic.clips import CorpusConfig
    from pipeline.synthetic.corpus import make_corpus

    root = Path(folder, "corpus")
    sizes = CorpusConfig(num_train_videos=70, num_train_images=10, num_val=8, num_test=12, num_temporal_groups=2)
    make_corpus(sizes, root)
    annotations = tuple(sorted(str(path) for path in (root / "annotations").glob("*.jsonl")))
    out = str(root / "manifest")
    return prepare(PrepareConfig(corpus="small", root=str(root), out=out, annotations=annotations)).manifest_path
