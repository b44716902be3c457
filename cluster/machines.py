"""Machine types for the planner and their quotas. Prices change, so the user gives them: see cluster/prices.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cloud = Literal["aws", "gcp"]

REGIONS = {"aws": "us-west-2", "gcp": "us-central1"}
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0, "T4": 65.0}
"""Peak of dense bf16 (T4: fp16) from the makers' data sheets, by a part of the device's name."""


@dataclass(frozen=True, kw_only=True)
class Quota:
    """The quotas that limit an account's machines of a kind. Both count vCPUs, or GPUs if `counts_gpus`."""

    on_demand: str
    spot: str
    counts_gpus: bool = False


STANDARD = Quota(
    on_demand="Running On-Demand Standard instances (L-1216C47A)", spot="All Standard Spot requests (L-34B43A08)"
)
G_AND_VT = Quota(
    on_demand="Running On-Demand G and VT instances (L-DB2E81BA)", spot="All G and VT Spot requests (L-3819A6DF)"
)
P = Quota(on_demand="Running On-Demand P instances (L-417A185B)", spot="All P Spot requests (L-7212CCBC)")
N2 = Quota(on_demand="N2_CPUS", spot="PREEMPTIBLE_CPUS")
L4 = Quota(on_demand="NVIDIA_L4_GPUS", spot="PREEMPTIBLE_NVIDIA_L4_GPUS", counts_gpus=True)
A100 = Quota(on_demand="NVIDIA_A100_GPUS", spot="PREEMPTIBLE_NVIDIA_A100_GPUS", counts_gpus=True)


@dataclass(frozen=True)
class Machine:
    """One machine type."""

    name: str
    cloud: Cloud
    vcpus: int
    memory_gib: int
    network_gbit_per_second: float
    """Stated by the cloud for the whole machine; a single stream reaches less."""
    quota: Quota
    num_gpus: int = 0
    gpu: str | None = None

    @property
    def quota_units(self) -> int:
        """vCPUs or GPUs that one machine counts against its quota."""
        return self.num_gpus if self.quota.counts_gpus else self.vcpus


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("m6i.2xlarge", "aws", 8, 32, 12.5, STANDARD),
        Machine("c7i.8xlarge", "aws", 32, 64, 12.5, STANDARD),
        Machine("m7i.8xlarge", "aws", 32, 128, 12.5, STANDARD),
        Machine("g6.12xlarge", "aws", 48, 192, 40, G_AND_VT, 4, "L4"),
        Machine("g6.48xlarge", "aws", 192, 768, 100, G_AND_VT, 8, "L4"),
        Machine("p4d.24xlarge", "aws", 96, 1152, 400, P, 8, "A100"),
        Machine("p5.48xlarge", "aws", 192, 2048, 3200, P, 8, "H100"),
        Machine("n2-standard-8", "gcp", 8, 32, 16, N2),
        Machine("n2-standard-32", "gcp", 32, 128, 32, N2),
        Machine("g2-standard-48", "gcp", 48, 192, 50, L4, 4, "L4"),
        Machine("a2-highgpu-8g", "gcp", 96, 680, 100, A100, 8, "A100"),
    )
}
"""By name."""

HEADS = {"aws": "m6i.2xlarge", "gcp": "n2-standard-8"}
DECODERS = {"aws": "c7i.8xlarge", "gcp": "n2-standard-32"}
TRAINERS = {"aws": "g6.12xlarge", "gcp": "g2-standard-48"}
"""The machines of the shipped cluster files, by cloud."""
