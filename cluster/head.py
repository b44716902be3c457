"""A local Ray head, and jobs submitted to it as to any cluster. It ends only processes that it started."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

PORTS = range(20_000, 32_000)
"""Above the ports of Ray's workers, below the ephemeral ports of the system."""
START_SECONDS = 90
"""Limit for a head to answer after its start."""
STOP_SECONDS = 120
"""Limit for a job to write its checkpoint after a stop request."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running head: its address, and the environment with which a client authenticates."""

    dashboard_url: str
    environment: dict[str, str]

    def submit(self, entrypoint: Sequence[str], *, job_id: str, show: Callable[[str], None] = print) -> int:
        """Run `ray job submit … -- entrypoint` and return its exit status; `show` receives each line of output.

        Ctrl-C requests the job to stop and waits until it has stopped.
        """
        address = ["--address", self.dashboard_url]
        environment = self.environment | {"RAY_ADDRESS": self.dashboard_url}
        command = [*ray_command("job", "submit"), *address, "--submission-id", job_id, "--", *entrypoint]
        # A new session, so that Ctrl-C reaches this process and not the client that shows the output.
        client = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,  # with a terminal the client formats its output differently
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        assert client.stdout is not None
        with client.stdout as output:
            while True:
                try:
                    for line in output:
                        show(line.rstrip("\n"))
                    return client.wait()
                except KeyboardInterrupt:
                    show("stopping: the job writes its checkpoint (this takes a moment)")
                    stop = [*ray_command("job", "stop"), *address, "--no-wait", job_id]
                    subprocess.run(
                        stop, env=environment, start_new_session=True, check=False, stdout=subprocess.DEVNULL
                    )


@contextlib.contextmanager
def local_head(
    *, num_cpus: int, object_store_bytes: int, job_environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Head]:
    """Run a head with its dashboard on free loopback ports, protected by a token that only this user can read.

    `job_environment`: environment variables of its jobs.
    """
    folder = Path(tempfile.mkdtemp(prefix="snps3-"))
    token_path = folder / "token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    port, dashboard_port, agent_port, client_port = free_ports(4)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        **job_environment,
    }
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):  # a token in the environment would outrank ours
        environment.pop(name, None)
    command = [*ray_command("start"), "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", f"--num-cpus={num_cpus}"]
    command += [f"--dashboard-agent-listen-port={agent_port}", f"--ray-client-server-port={client_port}"]
    command += [f"--object-store-memory={object_store_bytes}", f"--temp-dir={folder}/ray"]
    with open(folder / "head.log", "wb") as log:
        head = subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{dashboard_port}"
            wait_until_it_answers(url, head, folder / "head.log")
            yield Head(dashboard_url=url, environment=environment)
        finally:
            end(head)
            shutil.rmtree(folder, ignore_errors=True)


def wait_until_it_answers(url: str, head: subprocess.Popen[bytes], log_path: Path) -> None:
    """Wait until the job server answers; raise RuntimeError with the end of the head's log if it does not start."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, and requires the token
        except OSError:
            time.sleep(0.3)
    words = log_path.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the Ray head did not answer at {url} within {START_SECONDS} s; it said:\n{words}")


def end(head: subprocess.Popen[bytes]) -> None:
    """End the head and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGTERM)
    try:
        head.wait(timeout=20)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def ray_command(*words: str) -> list[str]:
    """Return the `ray` command of this Python."""
    return [str(Path(sys.executable).with_name("ray")), *words]


def free_ports(count: int) -> list[int]:
    """Return free ports outside the system's ephemeral range: with several Rays on a machine, a process of another Ray
    could otherwise be assigned one before ours listens on it."""
    with contextlib.ExitStack() as stack:
        bound: list[int] = []
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            listener = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                bound.append(port)
            if len(bound) == count:
                return bound
    raise RuntimeError(f"fewer than {count} of the ports {PORTS.start} to {PORTS.stop - 1} are free")
