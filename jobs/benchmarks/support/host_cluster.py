"""A Ray cluster on simulated hosts, with store and tracking server on separate hosts, and a laptop that submits jobs.

laptop ──┐                 ┌── store      a proxy in front of the S3 server of AWS_ENDPOINT_URL
head   ──┤ switch          ├── tracking   an MLflow server
train… ──┘                 └── data…
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.head import ray_command, wait_until_it_answers
from cluster.rank_datasets import DATA_NODES
from jobs import ROOT
from jobs.benchmarks.support.faulty_store import ENDPOINT, Faults, FaultyStore, faulty_store, store_endpoint
from jobs.benchmarks.support.hosts import HOME, RECORDS, Host, Lan

START_SECONDS = 300.0
TOKEN = f"{HOME}/.ray/auth_token"
"""Path of the token of a cluster, as Ray expects it."""
STORE_BYTES = 150 * 2**20
"""Size of each host's object store."""
AGAIN = 'while :; do "$@"; sleep 2; done'
"""Shell loop that restarts a command when it ends, as systemd does: a raylet that was declared dead exits when it is
reachable again."""
TRACKING_COMMAND = (
    *(sys.executable, "-m", "mlflow", "server", "--host", "0.0.0.0", "--workers", "1"),
    *("--backend-store-uri", "sqlite:////tmp/mlflow.db", "--artifacts-destination", "/tmp/artifacts"),
)


@dataclass
class HostCluster:
    """A head, and hosts that join it."""

    lan: Lan
    laptop: Host
    head: Host
    store: Host
    tracking: Host
    proxy: FaultyStore
    environment: dict[str, str]
    """Environment of all processes on the hosts."""
    nodes: dict[str, Host] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Return the address to which jobs are submitted."""
        return f"http://{self.head.address}:8265"

    def log(self, name: str) -> Path:
        """Return the path of the output of a host's processes."""
        return self.lan.records / f"{name}.log"

    def start(self, host: Host, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command on a host."""
        with self.log(host.name).open("ab") as log:
            return host.start(command, log, self.environment)

    def make_token(self) -> None:
        """Create the token of the cluster on its head, and copy it to the laptop."""
        command = ["sh", "-c", f'"$@" > /dev/null && cp {TOKEN} {RECORDS}', "token"]
        self._run(self.head, [*command, *ray_command("get-auth-token", "--generate")])
        self.give_token(self.laptop)

    def give_token(self, host: Host) -> None:
        """Copy the token of the cluster to a host, readable only by its owner."""
        self._run(host, ["install", "-D", "--mode=600", f"{RECORDS}/{Path(TOKEN).name}", TOKEN])

    def _run(self, host: Host, command: Sequence[str]) -> None:
        if status := self.start(host, command).wait():
            raise RuntimeError(f"{' '.join(command)} ended with {status}: {self.log(host.name).read_text()[-2000:]}")

    def start_head(self, *options: str) -> None:
        """Start Ray's head and wait until it answers."""
        command = [*ray_command("start"), "--head", "--block", "--port=6379", "--dashboard-host=0.0.0.0", *options]
        process = self.start(self.head, [*command, f"--object-store-memory={STORE_BYTES}"])
        with self.laptop.network():
            wait_until_it_answers(self.url, process, self.log("head"))

    def join(self, *names: str, num_cpus: int = 1, decodes: bool = False) -> None:
        """Add hosts to the cluster and wait until they have joined. Raise RuntimeError if they do not."""
        command = [*ray_command("start"), "--block", f"--address={self.head.address}:6379", f"--num-cpus={num_cpus}"]
        command += [f"--object-store-memory={STORE_BYTES}", *(data_label() if decodes else [])]
        for name in names:
            self.nodes[name] = self.lan.add(name)
            self.give_token(self.nodes[name])
            self.start(self.nodes[name], ["sh", "-c", AGAIN, "again", *command])
        deadline = time.monotonic() + START_SECONDS
        while not all("Ray runtime started" in self.log(name).read_text() for name in names):
            if time.monotonic() > deadline:
                raise RuntimeError(f"a host did not join: {self.log(names[0]).read_text()[-2000:]}")
            time.sleep(0.2)

    def submit(self, entrypoint: Sequence[str], job_id: str, log: Path) -> subprocess.Popen[bytes]:
        """Submit a job from the laptop; its output and the client's go to `log`."""
        command = [*ray_command("job", "submit"), "--address", self.url, "--submission-id", job_id, "--", *entrypoint]
        with log.open("ab") as output:
            return self.laptop.start(command, output, self.environment)

    def run_job(self, entrypoint: Sequence[str], job_id: str) -> list[str]:
        """Run a job to its end and return the lines of its output. Raise RuntimeError with the last lines if it
        fails."""
        log = self.log(f"job-{job_id}")
        status = self.submit(entrypoint, job_id, log).wait()
        lines = log.read_text(errors="replace").splitlines()
        if status:
            raise RuntimeError(f"the job {job_id} ended with {status}: " + "\n".join(lines[-30:]))
        return lines


def data_label() -> list[str]:
    """Return the option of `ray start` for a node that decodes."""
    return ["--labels", ",".join(f"{key}={value}" for key, value in DATA_NODES.items())]


@contextlib.contextmanager
def host_cluster(records: Path, *head_options: str) -> Iterator[HostCluster]:
    """Run a head, a store, a tracking server and a laptop, each on a separate host, within the context.

    `records`: a folder that all hosts see as `hosts.RECORDS`. Raise ValueError if AWS_ENDPOINT_URL names no server.
    """
    endpoint = store_endpoint()
    with Lan(records) as lan:
        laptop, head, store, tracking = map(lan.add, ("laptop", "head", "store", "tracking"))
        proxy = lan.enter_context(faulty_store(endpoint, Faults(), store.address, store.network()))
        variables = environment(tracking) | {ENDPOINT: proxy.endpoint}
        cluster = HostCluster(lan, laptop, head, store, tracking, proxy, variables)
        start_tracking(cluster)
        cluster.make_token()
        cluster.start_head(*head_options)
        yield cluster


def environment(tracking: Host) -> dict[str, str]:
    """Return the environment of all hosts: path of the code, keys of the store, address of the tracking server."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("AWS_") or name == "PATH"}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": f"http://{tracking.address}:5000",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "RAY_AUTH_MODE": "token",
        "RAY_memory_monitor_refresh_ms": "0",  # a host sees the whole machine's memory use, and would kill its workers
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def start_tracking(cluster: HostCluster) -> None:
    """Start the MLflow server and wait until it answers."""
    process = cluster.start(cluster.tracking, TRACKING_COMMAND)
    with cluster.laptop.network():
        wait_until_it_answers(cluster.environment["MLFLOW_TRACKING_URI"], process, cluster.log("tracking"))
