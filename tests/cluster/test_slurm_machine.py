"""`cluster/slurm.sbatch` on a real Slurm: a time limit comes while a run trains, which ends with the same bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_machine import NODES, ROOT, SlurmMachine, halted, missing

from jobs.benchmarks.kills import weights_of
from jobs.run import run_files
from jobs.tracking.journal import FOLDER, read_journals
from jobs.training.requests import STOP_FILE

SCRIPT = ROOT / "cluster" / "slurm.sbatch"
NUM_STEPS, EVERY = 40, 4
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


def submit(slurm: SlurmMachine, name: str, manifest: str, storage: Path, *options: str) -> int:
    sizes = "--data.num-frames 2 --data.frame-size-px 32 --optim.global-batch 8 --optim.warmup-steps 2"
    rest = f"--optim.num-steps {NUM_STEPS} --selection.evaluate-every {EVERY} --placement.log-every 1"
    command = [
        *options,
        str(SCRIPT),
        "tiny",
        "--name",
        name,
        "--data.manifest",
        manifest,
        *sizes.split(),
        *rest.split(),
    ]
    return slurm.submit(*command, "--placement.storage", str(storage))


def first_rank(slurm: SlurmMachine, job: int, run_folder: Path) -> int:
    """Return the process of the first rank, which its journal is named after, once a checkpoint is committed."""
    slurm.wait_until(lambda: [*run_folder.glob(f"{FOLDER}/rank-0-*")] or slurm.facts(job)["JobState"] not in UNDER_WAY)
    (path, *_) = [*run_folder.glob(f"{FOLDER}/rank-0-*")] or pytest.fail(slurm.words())
    return int(path.stem.split("-")[-2])


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


@pytest.mark.slow
@pytest.mark.nightly  # two jobs start a Ray of two nodes three times: minutes
def test_a_job_that_meets_its_time_limit_is_requeued_and_ends_with_the_bits_of_an_unlimited_one(
    slurm: SlurmMachine, small_manifest: str, tmp_path: Path
) -> None:
    """The first rank stands still until the signal is there, which else might come too late on a quick machine."""
    run_folder = tmp_path / "limited"
    limited = submit(slurm, "limited", small_manifest, tmp_path)
    with halted(first_rank(slurm, limited, run_folder)):
        slurm.end_within_minutes(limited, SIGNAL_MINUTES)
        slurm.wait_until((run_folder / STOP_FILE).exists)
    facts = slurm.left(limited, "RUNNING", "COMPLETING")
    assert facts["JobState"] == "PENDING", slurm.words()
    slurm.await_ends()  # linuxproc, which tracks the processes here, does not know daemons
    stopped_step = run_files.committed_step(str(run_folder))
    assert EVERY <= stopped_step < NUM_STEPS
    slurm.limit(limited, None)
    facts = slurm.left(limited, *UNDER_WAY)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "1"), slurm.words()
    starts = [line["step"] for line in read_journals(str(run_folder)) if line["event"] == "start"]
    assert sorted(set(starts)) == [0, stopped_step]

    unlimited = submit(slurm, "unlimited", small_manifest, tmp_path, "--time=UNLIMITED")
    facts = slurm.left(unlimited, *UNDER_WAY)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), slurm.words()
    slurm.await_ends()
    for name in ("limited", "unlimited"):
        assert run_files.committed_step(str(tmp_path / name)) == NUM_STEPS
    assert weights_of(str(run_folder)) == weights_of(str(tmp_path / "unlimited"))
