"""Simulated hosts on one machine, for measurements and tests: Linux namespaces connected by a switch.

A host has its own network, processes, /tmp, /dev/shm and name, which resolves to 127.0.1.1 as on Debian. Hosts share
the installed code, and `RECORDS`, a folder through which a measurement observes them. All processes of a host end with
its first process, and that one ends with ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO

from jobs import ROOT

SUBNET = "10.213.8"
TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x1002
"""Linux's tun driver: ioctl for a network device whose cable this process holds, and the flags of its kind."""
RECORDS = "/mnt"
"""Path at which hosts see the folder of the measurement."""
HOME = "/tmp/home"
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
SWITCH = "ip link add switch type bridge && ip link set switch up && echo ready && exec cat"
FIRST_PROCESS = f"""
hostname "$0"
mount --bind "$1" {RECORDS}
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$0" > /tmp/.hosts
mount --bind /tmp/.hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mkdir -m 700 {HOME}
ip link set lo up
echo ready
exec cat
"""
"""Script of the first process of a host named $0, with the records in $1; ends at the end of its standard input. It
removes the name server, so that no lookup waits for one."""


def missing() -> str | None:
    """Return what this machine lacks for simulated hosts, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return "hosts of their own need Linux, root, iproute2 and util-linux"
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Host:
    """A host; `pid`: of its first process."""

    name: str
    address: str
    pid: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a command in the code's folder, with its output in `log`. It ends with the host at the latest."""
        inside = ["nsenter", "--target", str(self.pid), *NAMESPACES, "env", f"--chdir={ROOT}", *command]
        process = subprocess.Popen(
            inside,
            env={**environment, "HOME": HOME},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def kill(self) -> None:
        """Kill the host and all its processes at once."""
        os.kill(self.pid, signal.SIGKILL)

    def network(self) -> contextlib.AbstractContextManager[None]:
        """Make this thread create sockets in the host's network within the context; they stay there afterwards."""
        return network_of(self.pid)


def reap(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the processes of a host that has ended."""
    for process in processes:
        process.wait(30)


@contextlib.contextmanager
def network_of(pid: int) -> Iterator[None]:
    """Move this thread into the network of a process within the context; threads that it starts there stay."""
    with open("/proc/thread-self/ns/net") as ours, open(f"/proc/{pid}/ns/net") as theirs:
        _enter(theirs)
        try:
            yield
        finally:
            _enter(ours)


def _enter(namespace: IO[str]) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
        raise OSError(ctypes.get_errno(), "the network namespace cannot be entered")


def _tap(pid: int, name: str) -> BinaryIO:
    """Return the cable of a new network device in the network of a process."""
    with network_of(pid):
        cable = open("/dev/net/tun", "r+b", buffering=0)  # noqa: SIM115  the caller closes it
        fcntl.ioctl(cable, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_WITHOUT_HEADER))
    return cable


def carry(source: int, target: int, delay_seconds: float, lost_share: float) -> None:
    """Forward frames between the ends of a cable, with delay and loss, until an end is closed."""
    under_way: deque[tuple[float, bytes]] = deque()
    draw = random.Random(0)
    with contextlib.suppress(OSError, ValueError):
        while True:
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            if select.select([source], [], [], wait)[0]:
                frame = os.read(source, 65536)
                if draw.random() >= lost_share:
                    under_way.append((time.monotonic() + delay_seconds, frame))
            while under_way and under_way[0][0] <= time.monotonic():
                os.write(target, under_way.popleft()[1])


class Lan(contextlib.ExitStack):
    """A switch and the hosts on it. `records`: the folder that they see as `RECORDS`."""

    def __init__(self, records: Path) -> None:
        super().__init__()
        self.records, self.num_hosts = records, 0
        self.switch = self._first_process(["unshare", "--net"], SWITCH)

    def add(self, name: str) -> Host:
        """Return a new host, connected to the switch. `name`: at most 15 characters, the limit of interface names."""
        self.num_hosts += 1
        options, started = [*NAMESPACES, "--fork", "--kill-child", "--mount-proc"], list[subprocess.Popen[bytes]]()
        self.callback(reap, started)  # registered before the host's, so that it runs after the host has ended
        parent = self._first_process(["unshare", *options], FIRST_PROCESS, name, str(self.records))
        pid = int(Path(f"/proc/{parent}/task/{parent}/children").read_text())
        host = Host(name, f"{SUBNET}.{self.num_hosts}", pid, started)
        self._ip(self.switch, f"link add {name} type veth peer name eth0 netns {pid}")
        self._connect(host)
        return host

    def _connect(self, host: Host) -> None:
        """Configure both ends of the host's cable."""
        self._ip(self.switch, f"link set {host.name} master switch up")
        self._ip(host.pid, f"address add {host.address}/24 dev eth0")
        self._ip(host.pid, "link set eth0 up")
        # no router answers there, but processes look for a default route
        self._ip(host.pid, f"route add default via {SUBNET}.254 onlink dev eth0")

    def slow_down(self, host: Host, delay_seconds: float, lost_share: float) -> None:
        """Replace the host's cable by one with a delay in each direction and a share of lost frames.

        This process forwards the frames, since few container kernels have netem.
        """
        self._ip(self.switch, f"link delete {host.name}")
        ends = [self.enter_context(_tap(self.switch, host.name)), self.enter_context(_tap(host.pid, "eth0"))]
        self._connect(host)
        for source, target in (ends, ends[::-1]):
            arguments = (source.fileno(), target.fileno(), delay_seconds, lost_share)
            threading.Thread(target=carry, args=arguments, daemon=True).start()

    def unplug(self, host: Host) -> None:
        """Unplug the host's cable from the switch: all frames are lost silently."""
        self._ip(self.switch, f"link set {host.name} nomaster")

    def plug(self, host: Host) -> None:
        """Plug the host's cable in again."""
        self._ip(self.switch, f"link set {host.name} master switch")

    def _ip(self, pid: int, words: str) -> None:
        subprocess.run(["nsenter", "--target", str(pid), "--net", "ip", *words.split()], check=True)

    def _first_process(self, prefix: list[str], script: str, *arguments: str) -> int:
        """Start a process in new namespaces, wait until its script is ready, and return its pid. Raise RuntimeError if
        it fails."""
        command = [*prefix, "sh", "-ec", script, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.callback(process.communicate)  # closes its standard input, which ends it
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{' '.join(prefix)} failed: its words are above")
        return process.pid
