"""Delivery of clips from Ray Data to the ranks of a worker group, with the arrival time of each step's clips."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster import run as cluster_run
from cluster.rank_datasets import Workers
from pipeline.storage import upload_folder
from pipeline.stream.loader import ClipSource, clip_rows, clip_stream, decode_block, in_plan_order

WARM_SHARE = 0.1
"""Share of the clips that count as warm-up before the steady state."""
Arrivals = list[tuple[float, int]]
"""(time in seconds, clips) of each step."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The clips that each rank receives, and the folder for their arrival times."""

    source: ClipSource
    num_steps: int
    folder: str
    step_seconds: float | None = None
    """Pause in place of a training step; the clips then stay packed. None: they are unpacked to arrays at once."""


def receive(delivery: Delivery, runtime: cluster_run.Runtime) -> None:
    """Receive the clips of each step, on every rank, and record their arrival times."""
    source, world, started, arrivals = delivery.source, runtime.world, time.perf_counter(), []
    share, path = source.share(world.size), Path(delivery.folder, f"rank-{world.rank}.json")
    tables = runtime.tables("train", share)
    ordered = in_plan_order(tables, start_step=0, rank=world.rank, num_ranks=world.size, share=share)
    for step, table in enumerate(ordered):
        if delivery.step_seconds is None:
            weight = clip_rows(table, source=source, epoch=source.planned(step).epoch).weight
            arrivals.append((time.perf_counter(), int(weight.sum())))
        else:
            time.sleep(delivery.step_seconds)
            arrivals.append((time.perf_counter(), len(table)))
        if step % 100 == 0:
            path.with_suffix(".count").write_text(str(sum(count for _, count in arrivals)))
    path.write_text(json.dumps({"started": started, "arrivals": arrivals}))


def deliver(
    delivery: Delivery,
    *,
    name: str,
    num_ranks: int,
    cpus_each: float,
    decode_cpus: int,
    decode: Callable[..., pa.Table] = decode_block,
) -> list[dict[str, Any]]:
    """Run `receive` on ranks fed by `decode_cpus` decoders; return `started` and `arrivals` of each rank."""
    source, num_steps = delivery.source, delivery.num_steps

    def stream(num_ranks: int) -> Any:
        return clip_stream(source, start_step=0, stop_step=num_steps, num_ranks=num_ranks, decode=decode)

    workers = {"fewest": num_ranks, "most": num_ranks, "cpus_each": cpus_each, "decode_cpus": decode_cpus}
    cluster_run.run(
        receive,
        delivery,
        storage=cluster_run.Storage(path=delivery.folder, upload=upload_folder),
        name=name,
        datasets={"train": stream},
        workers=Workers(**workers, use_gpu=False, threads_each=1, max_failures=0, num_kept_checkpoints=1),
    )
    return [json.loads(path.read_text()) for path in sorted(Path(delivery.folder).glob("rank-*.json"))]


def steady_rate(arrivals: Arrivals) -> float:
    """Return the clips per second after the first tenth of the arrivals."""
    first = int(len(arrivals) * WARM_SHARE)
    return sum(count for _, count in arrivals[first + 1 :]) / (arrivals[-1][0] - arrivals[first][0])
