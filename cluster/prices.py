"""The machines that clusters are planned with, their quotas, and what they cost: the only place for prices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cloud = Literal["aws", "gcp"]

PRICED = "2026-11"
"""When the prices in this file were written down."""
REGIONS = {"aws": "us-west-2", "gcp": "us-central1"}
PRICE_NOTE = (
    "approximate list prices, written from memory and not checked against the price pages; spot is taken as 40 % of "
    "them and moves by the hour: look both up before you rely on them"
)
SPOT_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What limits how many machines of a kind an account may have. Both count vCPUs, or GPUs where they say so."""

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
    """One machine type. Its price is for Linux, per hour, in US dollars, without taxes and discounts."""

    name: str
    cloud: Cloud
    vcpus: int
    memory_gib: int
    network_gbit_per_second: float
    """What the maker states for the whole machine, not what one stream reaches."""
    dollars_per_hour: float
    quota: Quota
    num_gpus: int = 0
    gpu: str | None = None

    @property
    def spot_dollars_per_hour(self) -> float:
        return self.dollars_per_hour * SPOT_SHARE

    @property
    def quota_units(self) -> int:
        """vCPUs or GPUs that one machine takes from its quota."""
        return self.num_gpus if self.quota.counts_gpus else self.vcpus


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("m6i.2xlarge", "aws", 8, 32, 12.5, 0.384, STANDARD),
        Machine("c7i.8xlarge", "aws", 32, 64, 12.5, 1.428, STANDARD),
        Machine("m7i.8xlarge", "aws", 32, 128, 12.5, 1.613, STANDARD),
        Machine("g6.12xlarge", "aws", 48, 192, 40, 4.602, G_AND_VT, 4, "L4"),
        Machine("g6.48xlarge", "aws", 192, 768, 100, 13.35, G_AND_VT, 8, "L4"),
        Machine("p4d.24xlarge", "aws", 96, 1152, 400, 21.96, P, 8, "A100"),
        Machine("p5.48xlarge", "aws", 192, 2048, 3200, 55.04, P, 8, "H100"),
        Machine("n2-standard-8", "gcp", 8, 32, 16, 0.388, N2),
        Machine("n2-standard-32", "gcp", 32, 128, 32, 1.554, N2),
        Machine("g2-standard-48", "gcp", 48, 192, 50, 4.002, L4, 4, "L4"),
        Machine("a2-highgpu-8g", "gcp", 96, 680, 100, 29.39, A100, 8, "A100"),
    )
}
"""By name."""

HEADS = {"aws": "m6i.2xlarge", "gcp": "n2-standard-8"}
DECODERS = {"aws": "c7i.8xlarge", "gcp": "n2-standard-32"}
TRAINERS = {"aws": "g6.12xlarge", "gcp": "g2-standard-48"}
"""The machines of the shipped cluster files, by cloud."""

STORE_DOLLARS_PER_GB_MONTH = {"aws": 0.023, "gcp": 0.020}
STORE_DOLLARS_PER_1000_READS = {"aws": 0.0004, "gcp": 0.0004}
"""Of the object store, standard class. Traffic between a store and machines in its region is not charged."""
