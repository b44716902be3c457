"""Ranks exchange gradients by the interface that has Ray's address, whatever the host's name resolves to."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.network import bind_to_interface_of, interface_of, ipv4_addresses

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SIOCGIFADDR is Linux's")
RANK = Path(__file__).with_name("rank_on_a_host.py")
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Yield two network namespaces that a veth pair joins, with `ADDRESSES`; skip where they cannot be made."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    names = [f"snps3-{uuid.uuid4().hex[:8]}" for _ in ADDRESSES]
    try:
        for name in names:
            run("ip", "netns", "add", name)
        ends = ["veth", "peer", "name", "veth"]
        run("ip", "-n", names[0], "link", "add", "veth", "type", *ends, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "veth")
            for interface in ("lo", "veth"):
                run("ip", "-n", name, "link", "set", interface, "up")
    except subprocess.CalledProcessError as error:
        _remove(names)
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    try:
        yield names
    finally:
        _remove(names)


def _remove(namespaces: list[str]) -> None:
    for name in namespaces:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def start(namespace: str, rank: int, hosts_file: Path) -> subprocess.Popen[str]:
    """A rank on a host of its own, whose name Debian's line in /etc/hosts resolves to 127.0.1.1."""
    inside = f'hostname host{rank} && mount --bind {hosts_file} /etc/hosts && exec {sys.executable} {RANK} "$@"'
    command = ["ip", "netns", "exec", namespace, "unshare", "--uts", "--mount", "sh", "-c", inside, "rank"]
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_SOCKET_IFNAME")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    arguments = [str(rank), ADDRESSES[0], ADDRESSES[rank]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *arguments], env=environment, **pipes)


@LINUX
@pytest.mark.slow
def test_ranks_on_hosts_whose_names_resolve_to_loopback_reduce_over_the_interface_of_rays_address(
    tmp_path: Path,
) -> None:
    with two_hosts() as namespaces:
        ranks = []
        for rank, namespace in enumerate(namespaces):
            hosts = tmp_path / f"hosts-{rank}"
            hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 host{rank}\n")
            ranks.append(start(namespace, rank, hosts))
        said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    for output, _ in said:
        answer = json.loads(output.splitlines()[-1])
        assert answer["resolved"] == "127.0.1.1"
        assert answer["before"].startswith("error:")
        assert answer["after"] == "3.0"
        assert (answer["GLOO_SOCKET_IFNAME"], answer["NCCL_SOCKET_IFNAME"]) == ("veth", "=veth")


@LINUX
def test_the_addresses_are_those_that_the_kernel_lists() -> None:
    listed = subprocess.run(["ip", "-4", "-json", "address"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("iproute2 is not installed")
    expected = {entry["ifname"]: entry["addr_info"][0]["local"] for entry in json.loads(listed.stdout)}
    assert ipv4_addresses() == expected
    assert expected["lo"] == "127.0.0.1"


@LINUX
def test_what_the_user_has_set_stays() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "bond7"}
    bind_to_interface_of("127.0.0.1", environment)
    assert environment == {"GLOO_SOCKET_IFNAME": "bond7", "NCCL_SOCKET_IFNAME": "=lo"}


@LINUX
def test_an_address_that_no_interface_has_is_a_warning_that_says_what_to_set(caplog: pytest.LogCaptureFixture) -> None:
    environment: dict[str, str] = {}
    with caplog.at_level(logging.WARNING):
        bind_to_interface_of("192.0.2.1", environment)
    assert environment == {}
    (record,) = caplog.records
    assert "192.0.2.1" in record.getMessage()
    assert "set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME" in record.getMessage()
    assert socket.gethostname() in record.getMessage()


def test_addresses_are_compared_as_addresses() -> None:
    assert interface_of("10.0.0.1", {"eth0": "10.0.0.11", "eth1": "10.0.0.1"}) == "eth1"
    assert interface_of("fd00::1", {"eth0": "10.0.0.1"}) is None
