"""Forward a spot notice of the cloud to Ray as a drain request, so that training can write a checkpoint in time.

Runs beside Ray on every worker of a cluster of machines:
python -m cluster.spot_notice --cloud aws --address $RAY_HEAD_IP:6379

Ray 2.60 does not watch these notices itself; once a node is draining, Ray Train notifies its workers.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import tyro

from cluster.head import ray_command

GCP_SECONDS = 30
"""Time between notice and end of a spot machine of Google; the notice does not contain it."""
ANSWER_SECONDS = 2


@dataclass(frozen=True, kw_only=True)
class NoticeConfig:
    """The machine's cloud, and how often to poll it."""

    cloud: Literal["aws", "gcp"]
    address: str
    """Address of the cluster, as for `ray start --address`."""
    every_seconds: float = 5.0
    """Time between two polls; both clouds recommend about this."""
    metadata_url: str | None = None
    """Address of the metadata service; None takes the cloud's default."""

    def __post_init__(self) -> None:
        if self.every_seconds <= 0:
            raise ValueError(f"every_seconds must be above 0, got {self.every_seconds:g}")


def aws_seconds_left(notice: str, now: datetime.datetime) -> float:
    """Return the seconds until the machine ends, from its `spot/instance-action` document; 0 if the time has passed."""
    end = datetime.datetime.fromisoformat(json.loads(notice)["time"])
    return max(0.0, (end - now).total_seconds())


def seconds_left(config: NoticeConfig, now: datetime.datetime) -> float | None:
    """Return the seconds until this machine ends, or None without a notice. Raise OSError if the metadata service is
    unreachable."""
    if config.cloud == "gcp":
        root = config.metadata_url or "http://metadata.google.internal"
        answer = fetch(f"{root}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        return float(GCP_SECONDS) if answer == "TRUE" else None
    root = config.metadata_url or "http://169.254.169.254"
    session = fetch(f"{root}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    notice = fetch(f"{root}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": session or ""})
    return None if notice is None else aws_seconds_left(notice, now)


def fetch(url: str, headers: dict[str, str], *, method: str = "GET") -> str | None:
    """Return the text at `url`, or None for status 404."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def drain(address: str, seconds: float, *, node_id: str | None = None) -> None:
    """Tell Ray that a node ends in `seconds`: the node with the id, or this machine's.

    Raise CalledProcessError if Ray rejects the request.
    """
    command = [*ray_command("drain-node"), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot notice", "--deadline-remaining-seconds", str(int(seconds))]
    command += ["--node-id", node_id] if node_id else []
    subprocess.run(command, env=os.environ | {"RAY_ADDRESS": address}, check=True)


def watch(config: NoticeConfig, act: Callable[[float], None], pause: Callable[[float], None] = time.sleep) -> None:
    """Poll until the first notice, call `act` with the seconds that are left, and return.

    Keep polling a metadata service that does not answer, since the machine must not go unwatched.
    """
    is_reachable = True
    while True:
        try:
            remaining = seconds_left(config, datetime.datetime.now(datetime.UTC))
        except OSError as error:
            if is_reachable:
                print(f"the metadata of this machine cannot be read, trying on: {error}", flush=True)
            is_reachable, remaining = False, None
        else:
            is_reachable = True
        if remaining is not None:
            print(f"spot notice: this machine ends in {remaining:.0f} s", flush=True)
            act(remaining)
            return
        pause(config.every_seconds)


if __name__ == "__main__":
    config = tyro.cli(NoticeConfig, description=__doc__)
    watch(config, functools.partial(drain, config.address))
