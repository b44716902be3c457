"""A Slurm of this machine alone: two nodes, each a slurmd, with keys, ports and folders of its own. It needs root."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import psutil

from cluster.head import free_ports

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("one", "two")
WAIT_SECONDS = 480.0
"""How long a job may take to each of its states where other work has the CPUs."""
END_SECONDS = 30.0
"""How long processes of a job may outlive it."""
REQUEUE_SECONDS = 30
"""Between the end of a requeued job and its next start."""
CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={requeue_seconds}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000\n"


def missing() -> str | None:
    """Return why no Slurm can be started here; None if one can."""
    if os.geteuid():
        return "the daemons of Slurm are started by root alone"
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge" if absent else None


class SlurmMachine:
    """A context manager: Slurm runs within it, and all that it started has ended behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM", "MLFLOW_T"))}
        path = f"{Path(sys.executable).parent}:{kept['PATH']}"
        self.environment = kept | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": path, "PYTHONPATH": str(ROOT)}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for name in ("munge", "state", *NODES):
            (self.folder / name).mkdir(mode=0o700)
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        port, *ports = free_ports(1 + len(NODES))
        config = CONFIG.format(folder=self.folder, port=port, requeue_seconds=REQUEUE_SECONDS)
        config += "".join(NODE.format(name=name, port=port) for name, port in zip(NODES, ports, strict=True))
        Path(self.environment["SLURM_CONF"]).write_text(config)
        try:
            files = [f"--{what}-file={key.with_name(what)}" for what in ("key", "pid", "log", "seed")]
            self.start("munged", "--foreground", "--force", f"--socket={key.with_name('socket')}", *files)
            self.wait_until((self.folder / "munge" / "socket").exists)
            self.start("slurmctld", "-D")
            for name in NODES:
                self.start("slurmd", "-D", "-N", name)
            idle = [str(len(NODES)), "idle"]
            self.wait_until(lambda: self.said("sinfo", "--noheader", "--format=%D %t").split() == idle)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes_of_jobs():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def start(self, *command: str) -> None:
        """Start a daemon in the foreground, with its words in the folder."""
        with (self.folder / f"{command[0]}-{len(self.daemons)}.log").open("wb") as log:
            daemon = subprocess.Popen(
                command, env=self.environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.daemons.append(daemon)

    def said(self, *command: str) -> str:
        """Return what a command of Slurm prints; nothing where it fails."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False).stdout

    def wait_until(self, is_so: Callable[[], object]) -> None:
        """Wait; AssertionError with the words of the daemons and jobs after `WAIT_SECONDS`."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_so():
            assert time.monotonic() < deadline, self.words()
            time.sleep(0.2)

    def words(self) -> str:
        """Return the ends of all logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    def submit(self, *command: str) -> int:
        """Return the number of a new job, whose output goes to `output`."""
        said = self.said("sbatch", "--parsable", f"--output={self.folder}/job-%j.log", *command)
        assert said, self.words()
        return int(said)

    def output(self, job: int) -> str:
        """Return what a job has printed."""
        path = self.folder / f"job-{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def facts(self, job: int) -> dict[str, str]:
        """Return what Slurm says of a job, by Slurm's own names."""
        return dict(re.findall(r"(\w+)=(\S+)", self.said("scontrol", "show", "job", "--oneliner", str(job))))

    def limit(self, job: int, minutes: int | None) -> None:
        """Set the time limit of a job, counted from its start; None for none."""
        self.said("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes or 'UNLIMITED'}")

    def end_within_minutes(self, job: int, minutes: int) -> None:
        """Set the time limit of a running job, in whole minutes, so that at most `minutes` are left."""
        hours, passed, _ = map(int, self.facts(job)["RunTime"].split(":"))
        self.limit(job, 60 * hours + passed + minutes)

    def left(self, job: int, *states: str) -> dict[str, str]:
        """Wait until a job is in none of these states, and return what Slurm says of it."""
        self.wait_until(lambda: self.facts(job).get("JobState", states[0]) not in states)
        return self.facts(job)

    def await_ends(self) -> None:
        """Wait until no process of a job is alive: Ray's workers end by themselves when they miss their raylet.
        AssertionError with the commands of those that still live after `END_SECONDS`."""
        _, alive = psutil.wait_procs(self.processes_of_jobs(), END_SECONDS)
        assert not alive, [process.cmdline() for process in alive]

    def processes_of_jobs(self) -> list[psutil.Process]:
        """Return what jobs have started and is still alive, known by the environment that they were given."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if ours and process.pid != os.getpid() and not process.name().startswith(("slurm", "munged")):
                    found.append(process)
        return found


@contextlib.contextmanager
def halted(pid: int) -> Iterator[None]:
    """Within it a process stands still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
