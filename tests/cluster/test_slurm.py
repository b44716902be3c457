"""`cluster/slurm.sbatch`: what it starts, and what becomes of the job, where all that it starts is a stand-in."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.head import STOP_SECONDS

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sbatch"
WAIT = 'until [ -e "$OUT/head" ] && { (($3 == 1)) || [ -e "$OUT/others" ]; }; do sleep 0.02; done'
JOIN = '((SRUN > 0)) && exit "$SRUN"; ((SRUN)) || touch "$OUT/others"'
STAND_IN = {
    "ray": 'echo "ray $*" >> "$OUT/asked"; echo $$ > "$OUT/head"; exec sleep 60',
    "python": f'case "$2" in *address*) echo 10.0.0.1;; *nodes*) {WAIT};; esac',
    "srun": f'echo "srun $*" >> "$OUT/asked"; {JOIN}; exec sleep 60',
    "scontrol": 'echo "scontrol $*" >> "$OUT/asked"',
    "snps3": 'trap "exit $STATUS" TERM; echo "snps3 $* $RAY_ADDRESS" >> "$OUT/asked"; while sleep 0.05; do :; done',
}
"""What a script runs, in place of all that a batch script starts."""


class BatchScript:
    """The script on a node where all that it starts is a stand-in.

    `status`: of the run, once it was asked to stop; `srun_status`: of Ray on the other nodes, 0 while it runs, -1 while
    it does not join.
    """

    def __init__(self, folder: Path, status: int, srun_status: int = 0, num_nodes: int = 3) -> None:
        for name, script in STAND_IN.items():
            (folder / name).write_text(f"#!/bin/bash\n{script}\n")
            (folder / name).chmod(0o755)
        self.asked_path, self.head_path = folder / "asked", folder / "head"
        variables = {"PATH": f"{folder}:{os.environ['PATH']}", "OUT": str(folder), "STATUS": str(status)}
        variables |= {"SRUN": str(srun_status)}
        variables |= {"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": str(num_nodes)}
        variables |= {"SLURM_CPUS_ON_NODE": "4", "SLURMD_NODENAME": "first"}
        command = ["bash", str(SCRIPT), "tiny", "--name", "a b"]
        self.process = subprocess.Popen(
            command, env=variables, stderr=subprocess.PIPE, start_new_session=True, text=True
        )

    def asked(self) -> list[str]:
        return self.asked_path.read_text().splitlines() if self.asked_path.exists() else []

    def stop(self) -> int:
        """Send the signal before the time limit while the run is under way, and return the exit status."""
        while not any(line.startswith("snps3") for line in self.asked()):
            assert self.process.poll() is None
            time.sleep(0.02)
        return self.signalled()

    def signalled(self) -> int:
        """Send the signal, and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def is_head_alive(self) -> bool:
        """Return whether Ray is still there on the node of the script."""
        return Path("/proc", self.head_path.read_text().strip()).exists()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def batch_script(tmp_path: Path) -> Iterator[Callable[..., BatchScript]]:
    scripts: list[BatchScript] = []

    def start(**options: int) -> BatchScript:
        scripts.append(BatchScript(tmp_path, **options))
        return scripts[-1]

    yield start
    for script in scripts:
        script.end()


def test_before_the_time_limit_the_run_is_asked_to_stop_and_the_job_is_requeued(batch_script) -> None:
    script = batch_script(status=0)
    assert script.stop() == 0
    head, workers, run, requeue = script.asked()
    assert head == "ray start --block --head --port=20017 --num-cpus=4"
    assert workers.startswith("srun --nodes=2 --ntasks=2 --exclude=first ")
    assert workers.endswith(" 10.0.0.1:20017")
    assert run == "snps3 pretrain tiny --name a b 10.0.0.1:20017"
    assert requeue == "scontrol requeue 17"
    assert not script.is_head_alive()


def test_a_run_that_fails_while_it_is_stopped_is_not_begun_again(batch_script) -> None:
    script = batch_script(status=1)
    assert script.stop() == 1
    assert not any("requeue" in line for line in script.asked())
    assert not script.is_head_alive()


def test_a_signal_that_comes_before_the_run_has_begun_is_named(batch_script) -> None:
    script = batch_script(status=0, srun_status=-1)
    while not script.head_path.exists():
        time.sleep(0.02)
    assert script.signalled() != 0
    assert "give --time more" in script.process.stderr.read()
    assert not script.is_head_alive()


def test_without_the_other_nodes_the_job_fails(batch_script) -> None:
    script = batch_script(status=0, srun_status=3)
    assert script.process.wait(60) == 3
    assert [line.split()[0] for line in script.asked()] == ["ray", "srun"]


def test_one_node_is_a_ray_too(batch_script) -> None:
    script = batch_script(status=0, num_nodes=1)
    assert script.stop() == 0
    assert [line.split()[0] for line in script.asked()] == ["ray", "snps3", "scontrol"]


def test_the_signal_leaves_time_for_a_checkpoint() -> None:
    (seconds,) = re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", SCRIPT.read_text(), re.MULTILINE)
    assert int(seconds) >= 2 * STOP_SECONDS
