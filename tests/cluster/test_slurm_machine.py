"""`cluster/slurm.sbatch` on a real Slurm: submit, time limit, requeue, end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_machine import NODES, ROOT, SlurmMachine, missing

SCRIPT = ROOT / "cluster" / "slurm.sbatch"
SIGNAL_MINUTES = 5
"""Of the script's `--signal=B:TERM@300`."""
UNDER_WAY = ("PENDING", "RUNNING", "COMPLETING")
COME = 'until (($(wc -l < "$OUT/$node") > $(wc -l < "$OUT/begun"))); do sleep 0.1; done'
WAIT = f"for node in one $( (($3 == 1)) || echo two); do {COME}; done"
UNTIL_STOPPED = 'until [ -e "$OUT/stopped" ]; do sleep 0.1; done'
STAND_IN = {
    "ray": 'echo "$1" >> "$OUT/$SLURMD_NODENAME"; exec sleep 600',
    "python": f'case "$2" in *address*) echo 127.0.0.1;; *nodes*) {WAIT};; esac',
    "snps3": f'trap "touch $OUT/stopped; exit 0" TERM; echo "$*" >> "$OUT/begun"; {UNTIL_STOPPED}',
}
"""What a job runs in place of Ray and the run, which ends when it is asked to or was asked before."""
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def slurm() -> Iterator[SlurmMachine]:
    # a path of a socket has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmMachine(Path(folder)) as machine:
        yield machine


@pytest.mark.slow
@pytest.mark.nightly  # Slurm looks at time limits every half minute, and keeps a requeued job for another
def test_the_time_limit_reaches_the_run_and_the_same_command_begins_again_on_both_nodes(
    slurm: SlurmMachine, tmp_path: Path
) -> None:
    """Slurm is real; Ray and the run are stand-ins, so that it needs no CPU."""
    for name, script in STAND_IN.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("begun", *NODES):
        (tmp_path / name).touch()
    slurm.environment |= {"PATH": f"{tmp_path}:{slurm.environment['PATH']}", "OUT": str(tmp_path)}
    job = slurm.submit(str(SCRIPT), "tiny", "--name", "a b")
    slurm.wait_until((tmp_path / "begun").read_text)
    assert {(tmp_path / name).read_text() for name in NODES} == {"start\n"}
    slurm.end_within_minutes(job, SIGNAL_MINUTES)
    assert slurm.left(job, "RUNNING", "COMPLETING")["JobState"] == "PENDING", slurm.words()
    assert slurm.processes_of_jobs() == []  # linuxproc, which tracks the processes here, does not know daemons
    slurm.limit(job, None)
    facts = slurm.left(job, *UNDER_WAY)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "1"), slurm.words()
    assert (tmp_path / "begun").read_text() == "pretrain tiny --name a b\n" * 2
    assert {(tmp_path / name).read_text() for name in NODES} == {"start\n" * 2}
    assert slurm.processes_of_jobs() == []
