"""The planner against what was measured, against sums done by hand, and against the page that quotes it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from cluster import plan as planner
from cluster.machines import DECODERS, HEADS, MACHINES, PEAK_TFLOPS, TRAINERS, Cloud
from cluster.measurements import DECODE_SECONDS_PER_CLIP, MANIFESTS, MEASURED, Measured
from cluster.plan import DECODE_EFFICIENCY, PlanConfig, plan, predicted_clips_per_second
from cluster.prices import Price, read_prices
from jobs.benchmarks.support.synthetic_manifest import write_synthetic

TOLERANCE = 0.15
"""The machine's speed was seen to vary by a fifth between runs; within one measurement it is steadier than this."""
EASY = PlanConfig(clips=1_000_000, gpu_clips_per_second=50.0)
PRICES = """machine,dollars_per_hour,spot_dollars_per_hour,cpus,gpus
m6i.2xlarge,0.5,,8,0
c7i.8xlarge,1.5,0.6,32,0
g6.12xlarge,4.5,1.8,48,4
bucket-gb-month,0.02,,,
bucket-1000-reads,0.0004,,,
"""
"""Invented, as a user would write them down."""


@pytest.fixture
def prices(tmp_path: Path) -> str:
    (tmp_path / "prices.csv").write_text(PRICES)
    return str(tmp_path / "prices.csv")


@pytest.mark.parametrize("measured", MEASURED, ids=lambda measured: measured.what)
def test_the_formula_gives_what_was_measured(measured: Measured) -> None:
    predicted = predicted_clips_per_second(
        decode_cores=measured.decode_cores,
        decode_seconds_per_clip=measured.decode_seconds_per_clip,
        decode_efficiency=DECODE_EFFICIENCY if measured.uses_ray else 1.0,
    )
    assert predicted == pytest.approx(measured.clips_per_second, rel=TOLERANCE)


def test_without_its_efficiency_the_formula_would_miss_what_ray_delivers() -> None:
    through_ray = [each for each in MEASURED if each.uses_ray]
    assert through_ray
    for measured in through_ray:
        ideal = measured.decode_cores / measured.decode_seconds_per_clip
        assert ideal > measured.clips_per_second * (1 + TOLERANCE)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({}, 63.0),
        ({"gpu_clips_per_second": 40.0}, 40.0),
        ({"bytes_per_clip": 1e6, "network_bytes_per_second": 3e7}, 30.0),
        ({"store_reads_per_second": 20.0}, 20.0),
        ({"control_plane_clips_per_second": 10.0}, 10.0),
    ],
)
def test_the_smallest_part_decides(limit: dict[str, float], expected: float) -> None:
    shared = {"decode_cores": 10, "decode_seconds_per_clip": 0.1, "decode_efficiency": 0.63}
    assert predicted_clips_per_second(**shared, **limit) == pytest.approx(expected)


def test_a_plan_done_by_hand() -> None:
    # 8 GPUs × 50 = 400 clips/s; 400 × 0.157 / 0.83 = 75.7 cores = 3 machines of 32
    found = plan(EASY)
    assert (found.num_gpu_machines, found.num_decode_machines, found.bottleneck) == (2, 3, "GPUs")
    assert found.clips_per_second == 400
    assert found.hours == pytest.approx(1_000_000 / 400 / 3600 + 0.25)
    # 4 × 224² × 3 bytes = 602,112; × 400 × 8 = 1.927 Gbit/s, into two and out of three machines
    assert found.gbit_per_second_into_each_gpu_machine == pytest.approx(0.96338, rel=1e-4)
    assert found.gbit_per_second_out_of_each_decode_machine == pytest.approx(0.64225, rel=1e-4)
    assert found.bucket_gb == 500
    # (1 + 2) batches × 16 clips × 4 GPUs
    assert found.object_store_gib_per_gpu_machine == pytest.approx(192 * 602_112 / 2**30)
    assert found.quotas == {
        "Running On-Demand Standard instances (L-1216C47A)": 8,
        "All Standard Spot requests (L-34B43A08)": 96,
        "Running On-Demand G and VT instances (L-DB2E81BA)": 96,
    }


def test_money_is_shown_by_the_users_table_and_else_not_at_all(prices: str) -> None:
    found = plan(dataclasses.replace(EASY, prices=prices))
    assert found.dollars_per_hour == pytest.approx(0.5 + 2 * 4.5 + 3 * 0.6)
    assert found.dollars_machines == pytest.approx(found.hours * (0.5 + 2 * 4.5 + 3 * 0.6))
    assert found.dollars_bucket_reads == pytest.approx(0.4)
    assert found.dollars_bucket_per_month == pytest.approx(10)
    words = planner.table(EASY, found)
    assert "for machines at 11.30 per hour" in words
    assert "10.00 per month of storage" in words
    without = plan(EASY)
    assert {value for name, value in vars(without).items() if name.startswith("dollars")} == {None}
    assert "dollars" not in planner.table(EASY, without)
    assert any("give a table of your prices with --prices FILE" in note for note in without.notes)
    assert dataclasses.replace(found, notes=[]) == dataclasses.replace(
        without, notes=[], **{name: value for name, value in vars(found).items() if name.startswith("dollars")}
    )


def test_a_table_of_prices_is_csv_or_json(prices: str, tmp_path: Path) -> None:
    rows = [
        {"machine": "x", "dollars_per_hour": 2, "spot_dollars_per_hour": 1},
        {"machine": "y", "dollars_per_hour": 3},
    ]
    (tmp_path / "prices.json").write_text(json.dumps(rows))
    assert read_prices(str(tmp_path / "prices.json")) == {
        "x": Price(on_demand=2.0, spot=1.0),
        "y": Price(on_demand=3.0),
    }
    assert read_prices(prices)["m6i.2xlarge"] == Price(on_demand=0.5)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("machine,", "type,", "a price table has the columns machine, dollars_per_hour"),
        ("0.5,,8", "cheap,,8", "could not convert string to float: 'cheap'"),
        ("0.5,,8", "-1,,8", "the price of m6i.2xlarge must be a number of at least 0"),
        ("0.5,,8", "nan,,8", "the price of m6i.2xlarge must be a number of at least 0"),
        ("48,4", "48,8", "a g6.12xlarge has 4 gpus, the table says 8"),
        ("m6i.2xlarge", "m5.large", "has no dollars_per_hour of m6i.2xlarge; add it, or leave --prices out"),
        ("1.5,0.6", "1.5,", "has no spot_dollars_per_hour of c7i.8xlarge; add it"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    old: str, new: str, words: str, prices: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(prices).write_text(PRICES.replace(old, new))
    with pytest.raises(SystemExit, match="2"):
        planner.main(["--clips", "1000", "--gpu-clips-per-second", "50", "--prices", prices])
    assert words in capsys.readouterr().err


def test_too_few_decode_machines_are_named_as_what_the_gpus_wait_for() -> None:
    found = plan(PlanConfig(clips=1_000_000, gpu_clips_per_second=50.0, num_decode_machines=1))
    assert found.bottleneck == "decoding"
    assert found.clips_per_second == pytest.approx(32 * 0.83 / DECODE_SECONDS_PER_CLIP)
    assert any("the GPUs wait: decoding allows 169 of their 400 clips/s" in note for note in found.notes)


def test_a_measured_control_plane_limits_the_plan() -> None:
    found = plan(PlanConfig(clips=1000, gpu_clips_per_second=50.0, control_plane_clips_per_second=200.0))
    assert (found.bottleneck, found.clips_per_second) == ("control plane", 200.0)


def test_what_does_not_fit_into_the_object_store_is_said() -> None:
    found = plan(PlanConfig(clips=1000, gpu_clips_per_second=50.0, frames=32, frame_size_px=480, batch_per_gpu=256))
    assert any("g6.12xlarge needs" in note and "spill" in note for note in found.notes)
    assert not any("spill" in note for note in plan(EASY).notes)


def test_an_estimated_gpu_is_called_an_estimate_and_a_measured_one_is_not() -> None:
    assert any("is an estimate" in note for note in plan(PlanConfig(clips=1000)).notes)
    assert not any("is an estimate" in note for note in plan(EASY).notes)


def test_spot_gpus_cost_less_and_count_against_another_quota(prices: str) -> None:
    priced = dataclasses.replace(EASY, prices=prices)
    on_demand, spot = plan(priced), plan(dataclasses.replace(priced, is_gpu_spot=True))
    assert on_demand.dollars_per_hour is not None
    assert spot.dollars_per_hour is not None
    assert on_demand.dollars_per_hour - spot.dollars_per_hour == pytest.approx(2 * (4.5 - 1.8))
    assert "All G and VT Spot requests (L-3819A6DF)" in spot.quotas.keys() - on_demand.quotas.keys()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"clips": 0}, "clips must be above 0, got 0"),
        ({"decode_seconds_per_clip": -1.0}, "decode_seconds_per_clip must be above 0, got -1"),
        ({"num_decode_machines": 0}, "num_decode_machines must be above 0"),
        ({"decode_efficiency": 1.2}, "decode_efficiency is a share"),
        ({"network_efficiency": 0.0}, "network_efficiency is a share"),
        ({"startup_minutes": -1.0}, "startup_minutes must not be negative"),
        ({"num_gpus": 6}, "multiple of the 4 of a g6.12xlarge, got 6; take 8"),
        ({"gpu_machine": "g6.12large"}, "has no machine 'g6.12large' of aws; take one of"),
        ({"gpu_machine": "g2-standard-48"}, "has no machine 'g2-standard-48' of aws"),
        ({"gpu_machine": "c7i.8xlarge"}, "has no GPU; take one of g6.12xlarge"),
        ({"decode_machine": "g6.12xlarge"}, "has GPUs, which decoding would pay for"),
    ],
)
def test_what_cannot_be_is_refused_with_its_value_and_a_remedy(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        PlanConfig(**{"clips": 1000} | wrong)


def test_the_command_prints_a_table_or_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--clips", "1000000", "--gpu-clips-per-second", "50"]
    planner.main(arguments)
    words = capsys.readouterr().out
    assert "3 × c7i.8xlarge, spot" in words
    assert "400.0, limited by GPUs" in words
    planner.main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out)["clips_per_second"] == 400


def test_the_command_refuses_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        planner.main(["--clips", "-5"])
    assert "clips must be above 0, got -5" in capsys.readouterr().err


@pytest.mark.parametrize("table", [HEADS, DECODERS, TRAINERS])
@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_machines_of_the_files_are_known(table: dict[str, str], cloud: Cloud) -> None:
    machine = MACHINES[table[cloud]]
    assert machine.cloud == cloud
    assert bool(machine.num_gpus) == (table is TRAINERS)


def test_every_gpu_has_a_peak() -> None:
    assert {machine.gpu for machine in MACHINES.values() if machine.num_gpus} <= PEAK_TFLOPS.keys()


def test_what_the_planner_repeats_of_the_code_is_so() -> None:
    from pipeline.stream.source import BLOCK_BYTES

    root = Path(__file__).parent.parent.parent
    assert planner.BLOCK_BYTES == BLOCK_BYTES
    assert f"prefetch_batches={planner.PREFETCHED_BATCHES}" in (root / "cluster/run.py").read_text()


def rows_of_the_page(first: str) -> list[list[str]]:
    """The rows under the heading row of docs/how-to/run-on-a-cluster.md that begins with `first`, cell by cell."""
    page = (Path(__file__).parent.parent.parent / "docs/how-to/run-on-a-cluster.md").read_text()
    body = page.split(f"\n| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in body]


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_the_page_quotes_the_quotas_of_the_planner(cloud: Cloud) -> None:
    rows = {name.split(",")[0].split(" (where")[0]: int(units) for _, name, units in rows_of_the_page("| quota")}
    config = PlanConfig(clips=1000, cloud=cloud, num_gpus=16, num_decode_machines=8, gpu_clips_per_second=1.0)
    wanted = planner.quotas(config, 8)
    assert wanted.items() <= rows.items()


def test_the_page_quotes_the_measurements() -> None:
    for measured, (_, quoted, formula) in zip(MEASURED, rows_of_the_page("| measured"), strict=True):
        predicted = predicted_clips_per_second(
            decode_cores=measured.decode_cores,
            decode_seconds_per_clip=measured.decode_seconds_per_clip,
            decode_efficiency=DECODE_EFFICIENCY if measured.uses_ray else 1.0,
        )
        assert float(quoted.removesuffix(" clips/s")) == measured.clips_per_second
        assert formula == f"{predicted:.1f}"


def test_a_manifest_takes_what_was_measured_at_any_size(tmp_path: Path) -> None:
    stored, lookup, prepared = MANIFESTS
    for clips in (10_000_000, 100_000_000):
        found = plan(PlanConfig(clips=clips, gpu_clips_per_second=50.0))
        assert found.manifest_gb == clips * stored.bytes_per_clip / 1e9
        assert found.lookup_cores == pytest.approx(found.clips_per_second * lookup.cpu_us_per_clip / 1e6)
        assert found.prepare_hours == pytest.approx(clips * prepared.cpu_us_per_clip / 3.6e9)
    parts = write_synthetic(str(tmp_path / "manifest"), 20_000, str(tmp_path / "videos.bin")).parts
    num_bytes, num_rows = sum(part.num_bytes for part in parts), sum(part.num_rows for part in parts)
    assert num_bytes / num_rows == pytest.approx(stored.bytes_per_clip, rel=TOLERANCE)


@pytest.mark.slow
def test_the_arithmetic_of_a_step_is_what_torch_counts() -> None:
    """On tensors without content; tests/jobs/test_step_cost.py compares such counts with those of real steps."""
    from jobs.benchmarks.step_time import SIZES
    from jobs.run.config import OptimConfig
    from jobs.training.step_cost import StepShape, step_cost
    from snps3_model.config import ObjectiveConfig, VisualConfig

    model = dataclasses.replace(SIZES["base"], visual=VisualConfig(encoder="video_swin_small"))
    sizes = {"num_tokens": 20, "num_words": 3, "num_masked": 3, "vocabulary_size": 30_522}
    for num_frames in (1, 2):
        shape = StepShape(num_clips=2, num_ranks=1, num_frames=num_frames, size_px=224, **sizes)
        counted = step_cost(model, ObjectiveConfig(), OptimConfig(), shape).flop / 1e9 / 2
        config = PlanConfig(clips=1000, frames=num_frames, batch_per_gpu=2)
        assert planner.train_gflops_per_clip(config) == pytest.approx(counted, rel=0.05)
