"""How large a cluster a run needs, how long it takes and, with a table of prices, what it costs.

python -m cluster.plan --clips 2500000 --epochs 10 --num-gpus 8 [--prices prices.csv]

The table of `--prices` is a CSV file, or a JSON list of objects with the same names (here with invented numbers):

    machine,dollars_per_hour,spot_dollars_per_hour,cpus,gpus
    m6i.2xlarge,0.40,,8,0
    bucket-gb-month,0.02,,,

Everything follows from one formula: the clips per second are the smallest of the limits of the parts,

    GPUs        num_gpus × gpu_clips_per_second
    decoding    cores × decode_efficiency / decode_seconds_per_clip
    network     machines × Gbit/s × network_efficiency / bytes_per_clip, out of the decoding and into the GPU machines
    store       reads per second that it grants
    control     the measured limit of Ray's control plane, if there is one

`decode_efficiency` is the share of a core that Ray's own processes leave for decoding (cluster/measurements.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cluster.machines import (
    DECODERS,
    HEADS,
    MACHINES,
    PEAK_TFLOPS,
    TRAINERS,
    Cloud,
    Machine,
)
from cluster.measurements import DECODE_SECONDS_PER_CLIP, manifest_terms
from cluster.prices import dollars, read_prices

DECODE_EFFICIENCY = 0.83
"""Measured on two cores that also ran Ray's own processes and the receiving worker; larger machines should reach more,
but that has not been measured."""
GFLOPS_PER_FRAME = {"resnet50": 24.7, "pvt_v2_b2": 23.3, "video_swin_small": 60.4}
"""Forward and backward pass of one frame of 224 px, as torch counts them; proportional to the pixels."""
GFLOPS_OF_ATTENTION = {"pvt_v2_b2": 0.86}
"""The same for attention over a whole frame, proportional to the square of the pixels."""
GFLOPS_PER_CLIP = 24.5
GFLOPS_PER_PAIR = 10.5
"""The shared network of base size with captions of 20 tokens, as torch counts it: per clip, and per compared pair of
clip and caption."""
OBJECT_STORE_SHARE = 0.3
"""Share of a machine's memory, Ray's default."""
PREFETCHED_BATCHES = 1
"""Batches that a worker prefetches (`Runtime.tables` in cluster/run.py)."""
BLOCK_BYTES = 16 * 2**20
"""Upper limit of the pixels of a block in the data path (pipeline/stream/loader.py)."""

MONEY = {
    "dollars_machines": "{0.dollars_machines:.0f} for machines at {0.dollars_per_hour:.2f} per hour",
    "dollars_bucket_reads": "{0.dollars_bucket_reads:.2f} for reads",
    "dollars_bucket_per_month": "{0.dollars_bucket_per_month:.2f} per month of storage",
}
"""Field of the plan → its line in the output."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What to train, on which machines, and the assumptions."""

    clips: int
    """Clips of one epoch."""
    epochs: int = 1
    frames: int = 4
    """Frames of a clip."""
    frame_size_px: int = 224
    """Side of the square frames that are sent over the network (`data.frame_size_px`)."""
    batch_per_gpu: int = 16
    """Clips per step on each GPU."""
    pairs_per_clip: int | None = None
    """Captions with which a clip is compared in the cross pass: 1 + 2 · `objective.num_hard_negatives`, or the global
    batch with `objective.pairs=gathered`. None: `batch_per_gpu`, as in the published presets; only used for the
    estimate of the GPU's speed."""
    source_bytes_per_clip: int = 500_000
    """Bytes read from the object store for one clip: its file, or its part of a shard."""
    decode_seconds_per_clip: float = DECODE_SECONDS_PER_CLIP
    """CPU seconds of one core for fetching, decoding and resizing one clip: `prepare --measure-decoders` measures the
    decoders on your corpus; shards of JPEG frames took 0.0044 (`python jobs/benchmark.py cache`)."""
    gpu_clips_per_second: float | None = None
    """Clips that one GPU trains per second, as `python jobs/benchmark.py gpu-step` measures it. None estimates it from
    the FLOPs of a step: a first guess, not a measurement."""
    model: Literal["resnet50", "pvt_v2_b2", "video_swin_small"] = "video_swin_small"
    """Visual encoder beside the shared network of base size; only used for that estimate."""
    shown_px: int = 224
    """Side of the square that the network sees; only used for that estimate."""
    gpu_utilisation: float = 0.3
    """Share of the GPU's peak that a step reaches; only used for that estimate."""
    cloud: Cloud = "aws"
    num_gpus: int = 8
    gpu_machine: str | None = None
    """Machine type of the GPU group; None takes that of the shipped cluster file."""
    decode_machine: str | None = None
    """Machine type of the decode group; None takes that of the shipped cluster file."""
    num_decode_machines: int | None = None
    """Number of machines for decoding; None takes as many as keep the GPUs busy."""
    is_gpu_spot: bool = False
    is_decode_spot: bool = True
    decode_efficiency: float = DECODE_EFFICIENCY
    """Share of the decode machines' cores that is left for decoding."""
    network_efficiency: float = 0.6
    """Share of the stated network speed that clips reach; an assumption."""
    store_reads_per_second: float = 5500.0
    """Reads that the object store grants; S3 documents 5,500 per prefix."""
    control_plane_clips_per_second: float | None = None
    """Measured rate at which Ray's control plane fails; None ignores it."""
    startup_minutes: float = 15.0
    """Time from `ray up` to the first step: machines, images, first batch. All machines are paid for this time."""
    prices: str | None = None
    """File with a table of prices; None shows no money."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        counts = "clips epochs frames frame_size_px batch_per_gpu source_bytes_per_clip num_gpus num_decode_machines"
        rates = "decode_seconds_per_clip shown_px store_reads_per_second gpu_clips_per_second"
        for name in (*counts.split(), *rates.split(), "control_plane_clips_per_second", "pairs_per_clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value:g}; a plan needs something to divide by")
        for name in ("decode_efficiency", "network_efficiency", "gpu_utilisation"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share and must lie in (0, 1], got {getattr(self, name):g}")
        if self.startup_minutes < 0:
            raise ValueError(f"startup_minutes must not be negative, got {self.startup_minutes:g}")
        trainer, decoder = self.trainer, self.decoder
        if not trainer.num_gpus:
            raise ValueError(f"gpu_machine={trainer.name} has no GPU; take one of {_names(self.cloud, has_gpus=True)}")
        if decoder.num_gpus:
            raise ValueError(
                f"decode_machine={decoder.name} has GPUs, which decoding would pay for and not use; take one of "
                f"{_names(self.cloud, has_gpus=False)}"
            )
        if self.num_gpus % trainer.num_gpus:
            raise ValueError(
                f"num_gpus must be a multiple of the {trainer.num_gpus} of a {trainer.name}, got {self.num_gpus}; "
                f"take {math.ceil(self.num_gpus / trainer.num_gpus) * trainer.num_gpus}"
            )

    @property
    def trainer(self) -> Machine:
        return _machine(self.gpu_machine or TRAINERS[self.cloud], self.cloud)

    @property
    def decoder(self) -> Machine:
        return _machine(self.decode_machine or DECODERS[self.cloud], self.cloud)

    @property
    def num_gpu_machines(self) -> int:
        return self.num_gpus // self.trainer.num_gpus

    @property
    def bytes_per_clip(self) -> int:
        """uint8 pixels, as sent from the decode to the GPU machines."""
        return self.frames * self.frame_size_px**2 * 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The resulting plan. Rates are those of the whole cluster unless the name says otherwise."""

    num_gpu_machines: int
    num_decode_machines: int
    clips_per_second: float
    bottleneck: str
    limits_clips_per_second: dict[str, float]
    hours: float
    gbit_per_second_into_each_gpu_machine: float
    gbit_per_second_out_of_each_decode_machine: float
    object_store_gib_per_gpu_machine: float
    object_store_gib_per_decode_machine: float
    bucket_gb: float
    bucket_mb_per_second: float
    bucket_reads_per_second: float
    manifest: dict[str, float]
    """Of a manifest in parts: its GB, cores that look up rows at this speed, and driver hours of `prepare` besides
    decoding."""
    dollars_per_hour: float | None
    dollars_machines: float | None
    dollars_bucket_reads: float | None
    dollars_bucket_per_month: float | None
    """None if the table of prices lacks the row."""
    quotas: dict[str, int]
    notes: list[str]


def predicted_clips_per_second(**parts: float) -> float:
    """Return the delivered clips per second: the smallest of `limits_clips_per_second` for the same arguments."""
    return min(limits_clips_per_second(**parts).values())


def limits_clips_per_second(
    *,
    decode_cores: float,
    decode_seconds_per_clip: float,
    decode_efficiency: float = DECODE_EFFICIENCY,
    gpu_clips_per_second: float = math.inf,
    bytes_per_clip: float = 0.0,
    network_bytes_per_second: float = math.inf,
    store_reads_per_second: float = math.inf,
    control_plane_clips_per_second: float = math.inf,
) -> dict[str, float]:
    """Return the limit of each part of a cluster, infinite if there is none. Arguments are of the whole cluster."""
    return {
        "GPUs": gpu_clips_per_second,
        "decoding": decode_cores * decode_efficiency / decode_seconds_per_clip,
        "network": network_bytes_per_second / bytes_per_clip if bytes_per_clip else math.inf,
        "store": store_reads_per_second,
        "control plane": control_plane_clips_per_second,
    }


def gpu_rate(config: PlanConfig) -> float:
    """Return the clips that one GPU trains per second: as measured, or estimated from the FLOPs of a step."""
    if config.gpu_clips_per_second is not None:
        return config.gpu_clips_per_second
    return PEAK_TFLOPS[config.trainer.gpu or ""] * 1e3 * config.gpu_utilisation / train_gflops_per_clip(config)


def train_gflops_per_clip(config: PlanConfig) -> float:
    """Return the GFLOPs of one clip in a step of base size, forward and backward."""
    area = (config.shown_px / 224) ** 2
    per_frame = area * GFLOPS_PER_FRAME[config.model] + area**2 * GFLOPS_OF_ATTENTION.get(config.model, 0.0)
    num_pairs = config.pairs_per_clip or config.batch_per_gpu
    return GFLOPS_PER_CLIP + config.frames * per_frame + num_pairs * GFLOPS_PER_PAIR


def plan(config: PlanConfig) -> Plan:
    """Plan a cluster that keeps its GPUs busy, or compute the speed with a given number of decode machines."""
    trainer, decoder = config.trainer, config.decoder
    gpus_rate = config.num_gpus * gpu_rate(config)
    cores = gpus_rate * config.decode_seconds_per_clip / config.decode_efficiency
    num_decoders = config.num_decode_machines or math.ceil(cores / decoder.vcpus)
    gbit = min(
        config.num_gpu_machines * trainer.network_gbit_per_second, num_decoders * decoder.network_gbit_per_second
    )
    limits = limits_clips_per_second(
        decode_cores=num_decoders * decoder.vcpus,
        decode_seconds_per_clip=config.decode_seconds_per_clip,
        decode_efficiency=config.decode_efficiency,
        gpu_clips_per_second=gpus_rate,
        bytes_per_clip=config.bytes_per_clip,
        network_bytes_per_second=gbit * 1e9 / 8 * config.network_efficiency,
        store_reads_per_second=config.store_reads_per_second,
        control_plane_clips_per_second=config.control_plane_clips_per_second or math.inf,
    )
    rate = min(limits.values())
    hours = config.clips * config.epochs / rate / 3600 + config.startup_minutes / 60
    gbit_of_clips = rate * config.bytes_per_clip * 8 / 1e9
    batches = (PREFETCHED_BATCHES + 2) * config.batch_per_gpu * trainer.num_gpus
    bucket_gb = config.clips * config.source_bytes_per_clip / 1e9
    result = Plan(
        num_gpu_machines=config.num_gpu_machines,
        num_decode_machines=num_decoders,
        clips_per_second=rate,
        bottleneck=min(limits, key=lambda part: limits[part]),
        limits_clips_per_second={part: limit for part, limit in limits.items() if limit < math.inf},
        hours=hours,
        gbit_per_second_into_each_gpu_machine=gbit_of_clips / config.num_gpu_machines,
        gbit_per_second_out_of_each_decode_machine=gbit_of_clips / num_decoders,
        object_store_gib_per_gpu_machine=batches * config.bytes_per_clip / 2**30,
        object_store_gib_per_decode_machine=2 * decoder.vcpus * max(BLOCK_BYTES, config.bytes_per_clip) / 2**30,
        bucket_gb=bucket_gb,
        bucket_mb_per_second=rate * config.source_bytes_per_clip / 1e6,
        bucket_reads_per_second=rate,
        manifest=manifest_terms(config.clips, rate),
        **dollars(
            read_prices(config.prices) if config.prices else {},
            groups(config, num_decoders),
            hours=hours,
            num_reads=config.clips * config.epochs,
            bucket_gb=bucket_gb,
        ),
        quotas=quotas(config, num_decoders),
        notes=[],
    )
    return dataclasses.replace(result, notes=notes(config, result))


def groups(config: PlanConfig, num_decode_machines: int) -> tuple[tuple[Machine, int, bool], ...]:
    """Return the machines of the head and of the two groups, how many, and whether they are spot."""
    return (
        (MACHINES[HEADS[config.cloud]], 1, False),
        (config.decoder, num_decode_machines, config.is_decode_spot),
        (config.trainer, config.num_gpu_machines, config.is_gpu_spot),
    )


def quotas(config: PlanConfig, num_decode_machines: int) -> dict[str, int]:
    """Return for each quota the vCPUs or GPUs that the plan counts against it, including the head."""
    taken: dict[str, int] = {}
    for machine, count, is_spot in groups(config, num_decode_machines):
        name = machine.quota.spot if is_spot else machine.quota.on_demand
        taken[name] = taken.get(name, 0) + count * machine.quota_units
    return taken


def notes(config: PlanConfig, plan: Plan) -> list[str]:
    """Return caveats for the reader of the plan."""
    result = [] if config.prices else ["no money is shown: give a table of your prices with --prices FILE (--help)"]
    if config.gpu_clips_per_second is None:
        result.append(
            f"{gpu_rate(config):.1f} clips/s per GPU is an estimate ({train_gflops_per_clip(config):.0f} GFLOP per "
            f"clip at {config.gpu_utilisation:.0%} of the peak): measure it and give --gpu-clips-per-second"
        )
    for machine, needed_gib in (
        (config.trainer, plan.object_store_gib_per_gpu_machine),
        (config.decoder, plan.object_store_gib_per_decode_machine),
    ):
        has_gib = OBJECT_STORE_SHARE * machine.memory_gib
        if needed_gib > has_gib:
            result.append(
                f"a {machine.name} needs {needed_gib:.1f} GiB of object store and Ray gives it {has_gib:.1f} GiB, so "
                "it will spill to disk: lower --batch-per-gpu or --frame-size-px, or take machines with more memory"
            )
    if plan.bottleneck != "GPUs":
        result.append(
            f"the GPUs wait: {plan.bottleneck} allows {plan.clips_per_second:.0f} of their "
            f"{plan.limits_clips_per_second['GPUs']:.0f} clips/s"
        )
    return result


def table(config: PlanConfig, plan: Plan) -> str:
    """Return the plan as a printable table."""
    gpu_kind = "spot" if config.is_gpu_spot else "on demand"
    decode_kind = "spot" if config.is_decode_spot else "on demand"
    per_epoch = config.clips / plan.clips_per_second / 3600
    rows = [
        ("head", f"1 × {HEADS[config.cloud]}, on demand"),
        ("GPU machines", f"{plan.num_gpu_machines} × {config.trainer.name} ({config.num_gpus} GPUs), {gpu_kind}"),
        ("decode machines", f"{plan.num_decode_machines} × {config.decoder.name}, {decode_kind}"),
        ("clips per second", f"{plan.clips_per_second:.1f}, limited by {plan.bottleneck}"),
        *((f"  {part}", f"{limit:.1f}") for part, limit in plan.limits_clips_per_second.items()),
        ("hours", f"{plan.hours:.1f}, {per_epoch:.1f} per epoch"),
        ("network", f"{plan.gbit_per_second_into_each_gpu_machine:.2f} Gbit/s into each GPU machine"),
        ("", f"{plan.gbit_per_second_out_of_each_decode_machine:.2f} Gbit/s out of each decode machine"),
        ("Ray's object store", f"{plan.object_store_gib_per_gpu_machine:.2f} GiB on each GPU machine"),
        ("", f"{plan.object_store_gib_per_decode_machine:.2f} GiB on each decode machine"),
        ("bucket", f"{plan.bucket_gb:.0f} GB, {plan.bucket_mb_per_second:.0f} MB/s"),
        ("", f"{plan.bucket_reads_per_second:.0f} reads/s"),
        ("manifest", "{gb:.2f} GB, {lookup_cores:.2f} cores look up its rows".format(**plan.manifest)),
        ("prepare", "{prepare_hours:.2f} hours of its driver's core, beside decoding".format(**plan.manifest)),
        *(("dollars", words.format(plan)) for field, words in MONEY.items() if getattr(plan, field) is not None),
        *(("quota", f"{units} of {name}") for name, units in plan.quotas.items()),
        *(("note", note) for note in plan.notes),
    ]
    return "\n".join(f"{name:20s}{text}".rstrip() for name, text in rows)


def _machine(name: str, cloud: Cloud) -> Machine:
    machine = MACHINES.get(name)
    if machine is None or machine.cloud != cloud:
        known = ", ".join(name for name, machine in MACHINES.items() if machine.cloud == cloud)
        raise ValueError(
            f"cluster/machines.py has no machine {name!r} of {cloud}; take one of {known}, or add it there"
        )
    return machine


def _names(cloud: Cloud, *, has_gpus: bool) -> str:
    return ", ".join(
        name for name, machine in MACHINES.items() if machine.cloud == cloud and bool(machine.num_gpus) == has_gpus
    )


def main(argv: list[str] | None = None) -> None:
    """Print the plan for the command line; report invalid values on stderr with exit code 2."""
    config = tyro.cli(PlanConfig, args=argv, prog="cluster.plan", description=__doc__)
    try:
        result = plan(config)
    except (ValueError, OSError) as error:
        print(f"cluster.plan: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(dataclasses.asdict(result)) if config.as_json else table(config, result))


if __name__ == "__main__":
    main()
