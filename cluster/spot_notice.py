"""A spot notice of the cloud becomes a drain request to Ray, so that training can write a checkpoint in time.

Runs beside Ray on every worker of a cluster of machines:
python -m cluster.spot_notice --cloud aws --address $RAY_HEAD_IP:6379

Ray 2.60 does not look at these notices itself; once a node is draining, Ray Train tells its workers.
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
"""What a spot machine of Google has between notice and end; the notice does not say."""
ANSWER_SECONDS = 2


@dataclass(frozen=True, kw_only=True)
class NoticeConfig:
    """Whose machine this is, and how often it is asked."""

    cloud: Literal["aws", "gcp"]
    address: str
    """Of the cluster, as `ray start --address` has it."""
    every_seconds: float = 5.0
    """Time between two questions; both clouds ask for about this."""
    metadata_url: str | None = None
    """Where the machine's metadata are served; None takes the cloud's own address."""

    def __post_init__(self) -> None:
        if self.every_seconds <= 0:
            raise ValueError(f"every_seconds must be above 0, got {self.every_seconds:g}")


def aws_seconds_left(notice: str, now: datetime.datetime) -> float:
    """Seconds until the machine of this `spot/instance-action` document ends; 0 if that has passed."""
    end = datetime.datetime.fromisoformat(json.loads(notice)["time"])
    return max(0.0, (end - now).total_seconds())


def seconds_left(config: NoticeConfig, now: datetime.datetime) -> float | None:
    """Seconds that this machine still has; None without a notice. OSError where the metadata cannot be reached."""
    if config.cloud == "gcp":
        root = config.metadata_url or "http://metadata.google.internal"
        answer = fetch(f"{root}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        return float(GCP_SECONDS) if answer == "TRUE" else None
    root = config.metadata_url or "http://169.254.169.254"
    session = fetch(f"{root}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    notice = fetch(f"{root}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": session or ""})
    return None if notice is None else aws_seconds_left(notice, now)


def fetch(url: str, headers: dict[str, str], *, method: str = "GET") -> str | None:
    """The text at `url`; None where there is none (404)."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def drain(address: str, seconds: float, *, node_id: str | None = None) -> None:
    """Ray knows that a node ends in `seconds`: the one with the id, or this machine's.

    CalledProcessError where Ray does not accept it.
    """
    command = [*ray_command("drain-node"), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot notice", "--deadline-remaining-seconds", str(int(seconds))]
    command += ["--node-id", node_id] if node_id else []
    subprocess.run(command, env=os.environ | {"RAY_ADDRESS": address}, check=True)


def watch(config: NoticeConfig, act: Callable[[float], None], pause: Callable[[float], None] = time.sleep) -> None:
    """Returns after the first notice, when `act` was called with the seconds that are left.

    A metadata service that does not answer is asked again: it is no reason to leave the machine unwatched.
    """
    is_reachable = True
    while True:
        try:
            left = seconds_left(config, datetime.datetime.now(datetime.UTC))
        except OSError as error:
            if is_reachable:
                print(f"the metadata of this machine cannot be read, trying on: {error}", flush=True)
            is_reachable, left = False, None
        else:
            is_reachable = True
        if left is not None:
            print(f"spot notice: this machine ends in {left:.0f} s", flush=True)
            act(left)
            return
        pause(config.every_seconds)


if __name__ == "__main__":
    asked = tyro.cli(NoticeConfig, description=__doc__)
    watch(asked, functools.partial(drain, asked.address))
