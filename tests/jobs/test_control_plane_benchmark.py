"""What stands for decoding in the measurement of the control plane gives what decoding gives."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter

import psutil
import pyarrow as pa
import pytest

from jobs.benchmarks.control_plane import cores_used, sleeping_source
from jobs.benchmarks.support.processes import MARKER, cpu_seconds, kind_of
from jobs.benchmarks.support.sleeping_decoder import sleep_block
from pipeline.stream.loader import CLIP_SCHEMA, in_plan_order


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_slept_block_has_the_slots_and_the_size_of_a_decoded_one(num_ranks: int) -> None:
    source = dataclasses.replace(sleeping_source(8), batch=12, frame_size_px=16, seconds_per_clip=0.0)
    share, num_steps = source.share(num_ranks), 5
    for rank in range(num_ranks):
        blocks = [
            sleep_block(
                pa.table({"id": [group * num_ranks + rank]}),
                source=source,
                start_step=0,
                stop_step=num_steps,
                num_ranks=num_ranks,
            )
            for group in range(source.num_groups(num_steps, num_ranks))
        ]
        assert blocks[0].schema == CLIP_SCHEMA
        assert [len(block) // share for block in blocks] == [1, 1, 2, 1]
        table = pa.concat_tables(blocks)
        assert {len(frames) for frames in table["frames"].to_pylist()} == {8 * 16 * 16 * 3}
        steps = (table.slice(step * share, share) for step in range(num_steps))
        ordered = in_plan_order(steps, start_step=0, rank=rank, num_ranks=num_ranks, share=share)
        assert len(list(ordered)) == num_steps


def test_cores_are_counted_between_two_times_only() -> None:
    samples = [(float(time), Counter(raylet=time * 2.0, idle=1.0)) for time in range(10)]
    assert cores_used(samples, 2.5, 8.5) == {"raylet": 2.0}
    assert cores_used(samples, 2.5, 3.5) == {}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["ray::SplitCoordinator.get()"], "SplitCoordinator"),
        (["ray::MapBatches(sleep_block)->Write()"], "MapBatches"),
        (["ray::IDLE"], "IDLE"),
        (["/x/ray/core/src/ray/raylet/raylet", "--a"], "raylet"),
        (["python", "-u", "/x/dashboard/agent.py", "--b"], "node agents"),
        (["python", "/x/dashboard/dashboard.py"], "dashboard"),
        (["python", "jobs/benchmark.py"], "driver and others"),
        (["python", "-c", "from pipeline.decode.isolation import serve_forks; serve_forks(5)"], "decode processes"),
        ([], "driver and others"),
    ],
)
def test_a_process_is_known_by_its_command_line(command: list[str], kind: str) -> None:
    assert kind_of(command) == kind


def test_a_process_without_variables_counts_for_the_one_that_has_started_it() -> None:
    child = "import time; print(sum(range(3 * 10**7)), flush=True); time.sleep(60)  # serve_forks"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], env={{}})"
    marker = "a process without variables"
    with subprocess.Popen([sys.executable, "-c", parent], env={MARKER: marker}, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        used = cpu_seconds(marker)
        for descendant in psutil.Process(process.pid).children():
            descendant.kill()
    assert used["decode processes"] > 0.1
