"""Ranks exchange gradients by the interface that has Ray's address, whatever the host's name resolves to."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.network import bind_to_interface_of, interface_of, ipv4_addresses
from jobs.benchmarks.support.hosts import Lan, missing

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SIOCGIFADDR is Linux's")
RANK = Path(__file__).with_name("rank_on_a_host.py")


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.slow
def test_ranks_on_hosts_whose_names_resolve_to_loopback_reduce_over_the_interface_of_rays_address(
    tmp_path: Path,
) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_SOCKET_IFNAME")}
    environment["PYTHONPATH"] = str(RANK.parents[2])
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    with Lan(tmp_path) as lan:
        hosts, ranks = [lan.add("host0"), lan.add("host1")], []
        for rank, host in enumerate(hosts):
            command = [sys.executable, str(RANK), str(rank), hosts[0].address, host.address]
            with logs[rank].open("wb") as log:
                ranks.append(host.start(command, log, environment))
        statuses = [rank.wait(120) for rank in ranks]
    said = [log.read_text() for log in logs]
    assert statuses == [0, 0], said
    for output in said:
        answer = json.loads(output.splitlines()[-1])
        assert answer["resolved"] == "127.0.1.1"
        assert answer["before"].startswith("error:")
        assert answer["after"] == "3.0"
        assert (answer["GLOO_SOCKET_IFNAME"], answer["NCCL_SOCKET_IFNAME"]) == ("eth0", "=eth0")


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
