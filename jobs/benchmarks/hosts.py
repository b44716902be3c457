"""`hosts` of `python jobs/benchmark.py`: a run on separate hosts that lose their network cable or their power.

Each rank trains on its own host and another host decodes; a laptop submits the job. A fault happens right after an
evaluation, while its checkpoint is uploaded. The clips that the ranks trained on are compared with the plan, and the
final weights with those of an undisturbed run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.benchmarks.kills import EVERY, NUM_STEPS, Driver, attempts, run_killed, small_run
from jobs.benchmarks.support.faulty_store import Faults
from jobs.benchmarks.support.host_cluster import HostCluster, data_label, host_cluster
from jobs.benchmarks.support.hosts import RECORDS, Host, missing
from jobs.run import run_files
from jobs.run.config import Placement, SelectionConfig
from jobs.run.fields import as_dict
from jobs.tracking import mlflow_runs
from jobs.tracking.journal import read_journals
from jobs.training.job import make_sources
from pipeline import storage
from pipeline.synthetic.clips import CorpusConfig
from pipeline.synthetic.corpus import make_corpus

CORPUS = CorpusConfig(num_train_videos=70, num_train_images=10, num_val=8, num_test=12, num_temporal_groups=2)
FAULT_STEP = 2 * EVERY + 1
"""The step after an evaluation."""
DRIVER = "import sys; from jobs.benchmarks.kills import drive; from jobs.command_line.entry import run_command; "
DRIVER += "run_command(lambda: drive(*sys.argv[1:]), 'pretrain')"


class HostRun(Driver):
    """A run whose job the laptop submits. Its folder is in the bucket; the records of its ranks are on this machine."""

    def __init__(
        self,
        name: str,
        manifest: str,
        bucket: str,
        cluster: HostCluster,
        *,
        num_steps: int = NUM_STEPS,
        every: int = EVERY,
    ) -> None:
        self.name, self.bucket, self.cluster = name.replace(" ", "-"), bucket, cluster
        placement = Placement(storage=f"{bucket}/{self.name}", num_workers=2, cpus_per_worker=1, log_every=1)
        config = small_run(self.name, manifest, placement)
        self.config = dataclasses.replace(
            config,
            optim=dataclasses.replace(config.optim, num_steps=num_steps),
            selection=SelectionConfig(evaluate_every=every),
        )
        run_files.write_json(f"{placement.storage}/{run_files.CONFIG}", as_dict(self.config))
        folder = cluster.lan.records / self.name
        folder.mkdir()
        super().__init__(folder, cluster.url)

    @property
    def run_folder(self) -> str:
        return f"{self.bucket}/{self.name}/{self.name}"

    def start(self) -> None:
        """Submit the job."""
        self.submitted_at = time.time()
        entrypoint = [sys.executable, "-c", DRIVER, f"{self.bucket}/{self.name}", f"{RECORDS}/{self.name}"]
        self.process = self.cluster.submit(entrypoint, self.name, self.log)

    def seconds_to(self) -> dict[str, float]:
        """Return the time from submission to the start of the driver, to the ranks' state, and to the first step."""
        (stamp,) = re.findall(r"pretrain-(\d+T\d+)Z-", self.log.read_text(errors="replace"))[:1]
        began = datetime.datetime.strptime(f"{stamp}+0000", "%Y%m%dT%H%M%S%z").timestamp()
        restored = next(line["time"] for line in read_journals(self.run_folder) if line["event"] == "start")
        times = {
            "driver": began,
            "ranks": datetime.datetime.fromisoformat(restored).timestamp(),
            "first_step": min(time for attempt in attempts(self.storage) for time in attempt.times.values()),
        }
        return {name: time - self.submitted_at for name, time in times.items()}

    def through(self, fault: Fault, step: int, seconds: float) -> dict[str, Any]:
        """Inject a fault after a step, wait for the end, and return the outcome of the run."""
        config = self.config
        source = make_sources(config.data, config.placement, config.optim.global_batch, config.seed)["train"]
        result = run_killed(step, self, source, lambda trained: fault(self.cluster, seconds))
        return result | {"lost_points": self.num_lost_points(), "seconds_from_submit_to": self.seconds_to()}

    def num_lost_points(self) -> int:
        """Return how many steps lack a loss in MLflow, which should have one for each step."""
        with self.cluster.laptop.network():
            client = mlflow_runs.client_of(self.cluster.environment[mlflow_runs.URI_VARIABLE])
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            (logged,) = client.search_runs(experiments, f"attributes.run_name = '{self.name}'")
            steps = {point.step for point in client.get_metric_history(logged.info.run_id, "loss/total")}
        return len(set(range(1, self.config.optim.num_steps + 1)) - steps)


# --- the faults -------------------------------------------------------------------------------------------------------


def nothing(cluster: HostCluster, seconds: float) -> None:
    """Do nothing: the undisturbed run."""


def cut_train_host(cluster: HostCluster, seconds: float) -> None:
    """Pull the cable of a host with a rank, and put it back."""
    unplugged(cluster, cluster.nodes["train-2"], seconds)


def store_gone(cluster: HostCluster, seconds: float) -> None:
    """Pull the cable of the store, and put it back."""
    unplugged(cluster, cluster.store, seconds)


def tracking_gone(cluster: HostCluster, seconds: float) -> None:
    """Pull the cable of the tracking server, and put it back."""
    unplugged(cluster, cluster.tracking, seconds)


def unplugged(cluster: HostCluster, host: Host, seconds: float) -> None:
    """Pull the cable of a host for some seconds."""
    cluster.lan.unplug(host)
    time.sleep(seconds)
    cluster.lan.plug(host)


def slow_links(cluster: HostCluster, seconds: float) -> None:
    """Delay each Ethernet frame to and from a host with a rank by 50 ms, and drop 1 % of them, until the end."""
    cluster.lan.slow_down(cluster.nodes["train-2"], 0.05, 0.01)


def kill_train_host(cluster: HostCluster, seconds: float) -> None:
    """Cut the power of a host with a rank; another joins."""
    cluster.nodes.pop("train-2").kill()
    cluster.join("train-3")


def kill_decode_host(cluster: HostCluster, seconds: float) -> None:
    """Cut the power of the host that decodes; another joins."""
    cluster.nodes.pop("data-1").kill()
    cluster.join("data-2", decodes=True)


@contextlib.contextmanager
def train_layout(records: Path) -> Iterator[HostCluster]:
    """Place a rank on each of two hosts; the head decodes."""
    with host_cluster(records, "--num-cpus=1", *data_label()) as cluster:
        cluster.join("train-1", "train-2")
        yield cluster


@contextlib.contextmanager
def decode_layout(records: Path) -> Iterator[HostCluster]:
    """Place both ranks on one host; another host decodes."""
    with host_cluster(records, "--num-cpus=0") as cluster:
        cluster.join("train-1", num_cpus=2)
        cluster.join("data-1", decodes=True)
        yield cluster


Fault = Callable[[HostCluster, float], None]
LAYOUTS: dict[Callable[[Path], contextlib.AbstractContextManager[HostCluster]], dict[str, Fault]] = {
    train_layout: {
        "cut train host": cut_train_host,
        "store gone": store_gone,
        "MLflow gone": tracking_gone,
        "slow links": slow_links,
        "killed train host": kill_train_host,
    },
    decode_layout: {"killed decode host": kill_decode_host},
}
FAULTS = tuple(name for faults in LAYOUTS.values() for name in faults)


# --- the measurement --------------------------------------------------------------------------------------------------


def hosts(what: tuple[str, ...] = FAULTS, outage_seconds: float = 60.0, step: int = FAULT_STEP) -> dict[str, Any]:
    """Return by fault the clips lost and doubled, whether the weights equal those of an undisturbed run, and the
    seconds to the next step. Needs root, and the S3 server of AWS_ENDPOINT_URL; raises ValueError otherwise.

    `outage_seconds`: how long a cable is unplugged. `step`: after which the fault happens.
    """
    if reason := missing():
        raise ValueError(reason)
    if unknown := set(what) - set(FAULTS):
        raise ValueError(f"nothing is called {min(unknown)!r}; what can happen is {', '.join(FAULTS)}")
    runs: list[dict[str, Any]] = []
    bucket_url = f"s3://snps3-benchmark-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory() as folder, storage.temporary_bucket(bucket_url) as bucket:
        for layout, faults in LAYOUTS.items():
            chosen = {name: fault for name, fault in faults.items() if name in what}
            if not chosen:
                continue
            records = Path(folder, layout.__name__)
            records.mkdir()
            with layout(records) as cluster:
                manifest = prepared(cluster, f"{bucket}/{layout.__name__}")
                if not runs:
                    chosen = {"nothing": nothing} | chosen
                for name, fault in chosen.items():
                    run = HostRun(name, manifest, bucket, cluster)
                    runs.append({"what": name} | run.through(fault, step, outage_seconds))
                    print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    for run in runs:
        run["bit_equal"] = run["weights"] == runs[0]["weights"]
    totals = {name: sum(run[name] for run in runs) for name in ("lost", "doubled", "lost_points")}
    return totals | {"bit_equal": all(run["bit_equal"] for run in runs), "runs": runs}


def job_log_of_a_bad_day(num_steps: int) -> tuple[list[str], str]:
    """Return the lines of the job log of a run on separate hosts, and the name of a video that was truncated after
    `prepare`. An upload of a checkpoint fails too, and then a host with a rank is killed."""
    bucket_url = f"s3://snps3-benchmark-{uuid.uuid4().hex[:12]}"
    with (
        tempfile.TemporaryDirectory() as folder,
        storage.temporary_bucket(bucket_url) as bucket,
        train_layout(Path(folder)) as cluster,
    ):
        manifest = prepared(cluster, bucket)
        video = f"{bucket}/corpus/videos/train/00001.mp4"
        whole = storage.read_bytes(video)
        storage.write_bytes_atomic(video, whole[: len(whole) // 2])
        run = HostRun("log", manifest, bucket, cluster, num_steps=num_steps, every=num_steps // 3)
        run.wait_for_step(1)
        cluster.proxy.faults = Faults(put_refusal="403 AccessDenied", refused_part="/checkpoint_")
        run.wait_for_step(num_steps // 3 + 2)
        cluster.proxy.faults = Faults()
        run.wait_for_step(3 * num_steps // 4)
        kill_train_host(cluster, 0)
        run.finish()
        return run.log.read_text(errors="replace").splitlines(), "00001.mp4"


def prepared(cluster: HostCluster, folder: str) -> str:
    """Upload a small corpus to `folder` and prepare it on the cluster; return the path of its manifest."""
    with tempfile.TemporaryDirectory() as local:
        make_corpus(CORPUS, Path(local), num_processes=1)
        storage.upload_folder(local, f"{folder}/corpus")
    annotations = [
        f"{folder}/corpus/{name}" for name in storage.list_files(f"{folder}/corpus") if "annotations/" in name
    ]
    entrypoint = [sys.executable, "-m", "jobs.prepare", "--corpus", "small", "--root", f"{folder}/corpus"]
    entrypoint += ["--annotations", *annotations, "--out", f"{folder}/manifest"]
    cluster.run_job(entrypoint, "prepare")
    return f"{folder}/manifest/manifest.parquet"
