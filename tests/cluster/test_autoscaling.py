"""The node types of the shipped cluster files, started by Ray's autoscaler as small nodes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from cluster.head import free_ports, ray_command

ROOT = Path(__file__).parent.parent.parent
IDLE_SECONDS = 4
SMALL = {"head": {"CPU": 0}, "decode": {"CPU": 1}, "gpu": {"CPU": 1, "GPU": 1}}
"""What replaces the resources of the shipped machines."""
STORE_BYTES = 80 * 2**20
AT_MOST = {"decode": 2, "gpu": 1}
EMPTY_LISTS = (
    *(f"{step}_commands" for step in ("initialization", "setup", "head_setup", "worker_setup")),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
)


def small_cluster(shipped: dict[str, Any], gcs_address: str) -> dict[str, Any]:
    """Names, labels, minima and head of the shipped file; the machines, and how they start, are of this test."""
    names = {shipped["head_node_type"]: FAKE_HEAD_NODE_TYPE}  # the provider's own name for a head
    types = {
        names.get(name, name): {
            **{key: node[key] for key in ("labels", "min_workers") if key in node},
            "resources": SMALL[name] | ({"object_store_memory": STORE_BYTES} if name in AT_MOST else {}),
            "max_workers": min(node["max_workers"], AT_MOST.get(name, 0)),
            "node_config": {},
        }
        for name, node in shipped["available_node_types"].items()
    }
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": gcs_address,
    }
    return {
        "cluster_name": shipped["cluster_name"],
        "max_workers": shipped["max_workers"],
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": types,
        "provider": provider,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "upscaling_speed": 1.0,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in EMPTY_LISTS},
    }


@contextlib.contextmanager
def head_of(shipped: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Address and environment of a head whose autoscaler starts the shipped node types. Ends only what it started."""
    with tempfile.TemporaryDirectory(prefix="snps3-") as folder:
        port, client_port, agent_port, dashboard_port = free_ports(4)
        address = f"127.0.0.1:{port}"
        config = Path(folder, "cluster.json")
        config.write_text(json.dumps(small_cluster(shipped, address)))
        environment = os.environ | {
            "RAY_AUTH_MODE": "disabled",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        command = [*ray_command("start"), "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=0"]
        command += [f"--ray-client-server-port={client_port}", f"--dashboard-agent-listen-port={agent_port}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", f"--temp-dir={folder}/ray"]
        command += [f"--object-store-memory={STORE_BYTES}", f"--autoscaling-config={config}"]
        try:
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=90)
            yield address, environment
        finally:
            end_processes(folder, address)


def end_processes(folder: str, address: str) -> None:
    """Every process of this user that names the folder or the address of this head has ended."""
    ours = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid()
        and any(folder in word or address in word for word in process.info["cmdline"] or ())
    ]
    for process in ours:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(ours, timeout=20)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("name", ["aws", pytest.param("gcp", marks=pytest.mark.nightly)])
def test_decoding_starts_decode_nodes_only_and_they_go_again(name: str) -> None:
    shipped = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
    with head_of(shipped) as (address, environment):
        script = [sys.executable, str(Path(__file__).with_name("elastic_nodes.py")), address]
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["where"] == ["decode"]
    assert found["while_decoding"][0] == {}
    assert max(counts.get("decode", 0) for counts in found["while_decoding"]) == 2
    assert all("gpu" not in counts for counts in found["while_decoding"])
    assert found["is_empty_again"]
    assert found["when_a_gpu_is_asked_for"] == {"gpu": 1}
    assert found["seconds_left"].keys() == {"true"}, "the node of the notice, and no other, is draining"
    assert 20 < found["seconds_left"]["true"] <= 50
