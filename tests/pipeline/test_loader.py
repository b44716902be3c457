"""From the plan to decoded clips: every usable clip once per epoch, in order, whatever fails and wherever it starts."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.corpus.manifest import checksum, clip_id, make_manifest, read_manifest, write_manifest
from pipeline.decode.codec import decode_clip, encode_video
from pipeline.decode.sampling import Policy
from pipeline.records import Kind, Media, Reason, Stage
from pipeline.stream import failures, loader
from pipeline.stream.epoch_plan import PADDING, Plan
from pipeline.stream.loader import (
    ClipSource,
    choose_caption,
    clip_rows,
    clip_stream,
    decode_block,
    decode_share,
    in_plan_order,
    rejected_rows,
    segments,
)
from pipeline.stream.randomness import Purpose, clip_rng

NUM_CLIPS, NUM_RANKS, BATCH = 43, 2, 8
SHARE = BATCH // NUM_RANKS
NUM_FRAMES, SIZE_PX, FPS, LENGTH = 2, 16, 8, 12
BROKEN = {5: Reason.MISSING, 17: Reason.TRUNCATED, 42: Reason.EMPTY}
"""Files that were whole when the corpus was prepared."""


def moving_square(number: int) -> np.ndarray:
    """Twelve wide frames in a shade of the clip's own, on which a square moves."""
    frames = np.full((LENGTH, 16, 24, 3), 5 * number, np.uint8)
    for time in range(LENGTH):
        frames[time, 4:8, time : time + 6] = (255, 20 * time, 255 - 5 * number)
    return frames


def row_of(path: Path, kind: Kind, split: str, captions: list[str]) -> dict[str, object]:
    """The manifest row of a file, as prepare would write it."""
    is_video, data = kind == Kind.VIDEO, path.read_bytes()
    return {
        "clip_id": clip_id("tiny", path.name),
        "uri": str(path),
        "captions": captions,
        "kind": kind.value,
        "split": split,
        "width": 24,
        "height": 16,
        "fps": float(FPS) if is_video else None,
        "duration_seconds": LENGTH / FPS if is_video else None,
        "num_frames": LENGTH if is_video else 1,
        "bytes": len(data),
        "checksum": checksum(data),
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """43 training videos of which 3 were broken since, 5 images and a video as `mixed`, 4 images as `shapes`."""
    folder, rows = tmp_path_factory.mktemp("corpus"), []
    for number in range(NUM_CLIPS):
        path = folder / f"{number:02}.mp4"
        path.write_bytes(encode_video(moving_square(number), fps=FPS))
        rows.append(row_of(path, Kind.VIDEO, "train", [f"clip {number}", f"number {number}", f"a square {number}"]))
    for number in range(5):
        buffer = io.BytesIO()
        Image.fromarray(moving_square(10 * number)[0]).save(buffer, "PNG")
        path = folder / f"{number}.png"
        path.write_bytes(buffer.getvalue())
        rows.append(row_of(path, Kind.IMAGE, "mixed", [f"image {number}"]))
    for name, size in {"wide": (40, 20), "high": (8, 32), "square": (24, 24), "small": (2, 3)}.items():
        path = folder / f"{name}.png"
        Image.new("RGB", size, (200, 200, 200)).save(path)
        rows.append(row_of(path, Kind.IMAGE, "shapes", [name]) | {"width": size[0], "height": size[1]})
    rows += [row_of(folder / "00.mp4", Kind.VIDEO, "mixed", ["again"]) | {"clip_id": 7}]
    write_manifest(make_manifest("tiny", str(folder), rows), str(folder / "manifest.parquet"))
    for number, reason in BROKEN.items():
        path = folder / f"{number:02}.mp4"
        data = path.read_bytes()
        path.unlink()
        if reason != Reason.MISSING:
            path.write_bytes(b"" if reason == Reason.EMPTY else data[: len(data) // 2])
    return folder


@pytest.fixture(scope="module")
def source(corpus: Path) -> ClipSource:
    return ClipSource(
        manifest_path=str(corpus / "manifest.parquet"),
        split="train",
        num_frames=NUM_FRAMES,
        frame_size_px=SIZE_PX,
        decoder="decord",
        seed=3,
        plan=Plan(seed=3, num_videos=NUM_CLIPS, num_images=0, global_batch=BATCH),
        batch=BATCH,
    )


def shares(source: ClipSource, start_step: int, stop_step: int, rank: int, num_ranks: int) -> list[pa.Table]:
    """A rank's shares of some steps, decoded here and now."""
    return [decode_share(source, step, rank, num_ranks) for step in range(start_step, stop_step)]


def from_ray(source: ClipSource, start_step: int, stop_step: int) -> list[list[pa.Table]]:
    """Each rank's shares as Ray Data delivers them to two consumers at once."""
    import ray.data

    stream = clip_stream(source, start_step=start_step, stop_step=stop_step, num_ranks=NUM_RANKS)
    stream.context.execution_options = ray.data.ExecutionOptions(preserve_order=True)
    iterators = stream.streaming_split(NUM_RANKS, equal=True)

    def consume(rank: int) -> list[pa.Table]:
        tables = iterators[rank].iter_batches(batch_size=SHARE, batch_format="pyarrow", prefetch_batches=1)
        return list(in_plan_order(iter(tables), start_step=start_step, rank=rank, num_ranks=NUM_RANKS, share=SHARE))

    with ThreadPoolExecutor(NUM_RANKS) as threads:
        return list(threads.map(consume, range(NUM_RANKS)))


@pytest.fixture(scope="module")
def two_epochs(source: ClipSource) -> list[pa.Table]:
    """Twelve whole steps, decoded here and now."""
    return shares(source, 0, 12, 0, 1)


def number_of(row: dict) -> int:
    return int(Path(row["uri"]).stem)


def check_epochs(ranks: list[list[pa.Table]], source: ClipSource, num_epochs: int) -> None:
    """40 usable clips once per epoch, 3 rejected with their reasons, the rest padding."""
    assert source.plan is not None
    per_epoch = source.plan.steps_per_epoch
    for epoch in range(num_epochs):
        tables = [table for rank in ranks for table in rank[epoch * per_epoch : (epoch + 1) * per_epoch]]
        rows = [row for table in tables for row in table.to_pylist()]
        assert len(rows) == 48
        usable = Counter(number_of(row) for row in rows if row["weight"] == 1)
        assert usable == Counter(number for number in range(NUM_CLIPS) if number not in BROKEN)
        rejected = [one for table in tables for one in rejected_rows(table, Stage.TRAIN)]
        assert {int(Path(one.uri).stem): one.reason for one in rejected} == BROKEN
        assert len(rejected) == 3
        assert all(one.detail and one.stage == Stage.TRAIN for one in rejected)
        assert {one.clip_id for one in rejected} == {clip_id("tiny", f"{number:02}.mp4") for number in BROKEN}
        padding = [row for row in rows if row["clip_id"] == PADDING]
        assert len(padding) == 5
        assert all(row["weight"] == 0 and not row["reason"] and not row["uri"] for row in padding)


def test_each_usable_clip_comes_once_per_epoch_and_each_broken_one_has_its_reason(source, two_epochs) -> None:
    check_epochs([two_epochs], source, 2)


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_ranks_share_each_step_whatever_their_number(source: ClipSource, two_epochs, num_ranks: int) -> None:
    ranks = [shares(source, 5, 7, rank, num_ranks) for rank in range(num_ranks)]
    for index, step in enumerate((5, 6)):
        assert pa.concat_tables(tables[index] for tables in ranks) == two_epochs[step]


@pytest.mark.ray
def test_two_consumers_of_ray_get_what_decoding_here_gives_in_the_plans_order(local_ray, source, two_epochs) -> None:
    ranks = from_ray(source, 0, 12)
    check_epochs(ranks, source, 2)
    for rank, tables in enumerate(ranks):
        assert tables == [table.slice(rank * SHARE, SHARE) for table in two_epochs]


@pytest.mark.ray
def test_a_stream_from_a_later_step_goes_on_where_the_first_one_stood(local_ray, source, two_epochs) -> None:
    for rank, tables in enumerate(from_ray(source, 5, 9)):
        assert tables == [table.slice(rank * SHARE, SHARE) for table in two_epochs[5:9]]


def test_frames_and_captions_are_those_of_the_clip_and_the_epoch(source, corpus: Path, two_epochs) -> None:
    captions = set()
    for step, table in enumerate(two_epochs):
        epoch = step // 6
        rows = clip_rows(table, source=source, epoch=epoch)
        for index, row in enumerate(table.to_pylist()):
            if not row["weight"]:
                assert not rows.frames[index].any()
                assert rows.captions[index] == ""
                continue
            clip = decode_clip(
                (corpus / f"{number_of(row):02}.mp4").read_bytes(),
                kind=Kind.VIDEO,
                num_frames=NUM_FRAMES,
                size_px=SIZE_PX,
                policy=Policy.RANDOM,
                rng=clip_rng(3, epoch, row["clip_id"], Purpose.FRAMES),
            )
            np.testing.assert_array_equal(rows.frames[index], clip.frames)
            np.testing.assert_array_equal(rows.frame_pad_mask[index], clip.pad_mask)
            number = number_of(row)
            all_captions = [f"clip {number}", f"number {number}", f"a square {number}"]
            rng = clip_rng(3, epoch, row["clip_id"], Purpose.CAPTION)
            assert row["caption"] == choose_caption(all_captions, rng)
            captions.add(row["caption"].rstrip("0123456789 "))
        assert rows.clip_ids.tolist() == [row["clip_id"] for row in table.to_pylist()]
        assert rows.num_frames.tolist() == [NUM_FRAMES] * BATCH
        assert rows.epoch == epoch
    assert captions == {"clip", "number", "a square"}


def test_captions_by_source_are_the_same_after_a_stop_and_for_any_number_of_ranks(
    source: ClipSource, corpus: Path, two_epochs: list[pa.Table]
) -> None:
    manifest = read_manifest(str(corpus / "manifest.parquet"))
    rows = [
        row | {"caption_sources": [None, "one", "two"][: len(row["captions"])]} for row in manifest.table.to_pylist()
    ]
    write_manifest(make_manifest("tiny", str(corpus), rows), str(corpus / "sourced.parquet"))
    sourced = dataclasses.replace(source, manifest_path=str(corpus / "sourced.parquet"))
    assert shares(sourced, 5, 7, 0, 1) == two_epochs[5:7]  # without weights, sources change nothing
    weighted = dataclasses.replace(sourced, caption_weights=("one=1", "two=3"))
    whole = shares(weighted, 4, 8, 0, 1)
    later = [shares(weighted, 6, 8, rank, 2) for rank in range(2)]
    assert [pa.concat_tables(tables[index] for tables in later) for index in range(2)] == whole[2:]
    captions = [row["caption"].rstrip("0123456789 ") for table in whole for row in table.to_pylist() if row["weight"]]
    assert {*captions} == {"number", "a square"}
    frames = [[table["frames"] for table in tables] for tables in (whole, two_epochs[4:8])]
    assert frames[0] == frames[1]


def test_another_epoch_samples_other_frames(two_epochs) -> None:
    frames: list[dict[int, bytes]] = [{}, {}]
    for step, table in enumerate(two_epochs):
        frames[step // 6] |= {row["clip_id"]: row["frames"] for row in table.to_pylist() if row["weight"]}
    same = sum(frames[0][number] == frames[1][number] for number in frames[0])
    assert same < len(frames[0]) / 2


def test_images_and_videos_never_share_a_step(source: ClipSource) -> None:
    plan = Plan(seed=0, num_videos=1, num_images=5, global_batch=4)
    mixed = dataclasses.replace(source, split="mixed", plan=plan, batch=4)
    shapes = []
    for step, table in enumerate(shares(mixed, 0, 3, 0, 1)):
        rows = clip_rows(table, source=mixed, epoch=0)
        kinds = {Path(row["uri"]).suffix for row in table.to_pylist() if row["weight"]}
        assert kinds == {".mp4"} if plan.step(step).kind == Kind.VIDEO else {".png"}
        shapes.append((rows.frames.shape[1], int(rows.weight.sum())))
        assert rows.frame_pad_mask[rows.weight == 1].any()
    assert Counter(shapes) == Counter([(NUM_FRAMES, 1), (1, 4), (1, 1)])


def test_long_sides_are_drawn_anew_and_the_square_is_filled_up_with_padding(source, corpus: Path) -> None:
    sides = (6, 9, 16)
    drawn = dataclasses.replace(source, long_sides_px=sides)
    found = set()
    for step, table in enumerate(shares(drawn, 0, 12, 0, 1)):
        rows = clip_rows(table, source=drawn, epoch=step // 6)
        for index, row in enumerate(table.to_pylist()):
            if not row["weight"]:
                continue
            side = row["real_width"]
            clip = decode_clip(
                (corpus / f"{number_of(row):02}.mp4").read_bytes(),
                kind=Kind.VIDEO,
                num_frames=NUM_FRAMES,
                size_px=side,
                policy=Policy.RANDOM,
                rng=clip_rng(3, step // 6, row["clip_id"], Purpose.FRAMES),
            )
            np.testing.assert_array_equal(rows.frames[index][:, :side, :side], clip.frames)
            np.testing.assert_array_equal(rows.frame_pad_mask[index][:, :side, :side], clip.pad_mask)
            assert not rows.frames[index][rows.frame_pad_mask[index]].any()
            assert rows.frame_pad_mask[index][:, :, side:].all()
            found.add((row["clip_id"], side))
    assert {side for _, side in found} == {*sides}
    assert len(found) > NUM_CLIPS + 5
    evaluation = dataclasses.replace(drawn, plan=None, max_clips=8)
    assert shares(evaluation, 0, 1, 0, 1) == shares(dataclasses.replace(evaluation, long_sides_px=()), 0, 1, 0, 1)


def test_clips_of_all_shapes_share_a_batch_each_with_its_own_padding(source: ClipSource) -> None:
    plan = Plan(seed=0, num_videos=0, num_images=4, global_batch=4)
    (table,) = shares(dataclasses.replace(source, split="shapes", plan=plan, batch=4), 0, 1, 0, 1)
    rows = clip_rows(table, source=source, epoch=0)
    real = {}
    for index, row in enumerate(table.to_pylist()):
        with Image.open(row["uri"]) as image:
            height, width = (round(side * SIZE_PX / max(image.size)) for side in (image.height, image.width))
        pad_mask = np.ones((1, SIZE_PX, SIZE_PX), bool)
        pad_mask[:, :height, :width] = False
        np.testing.assert_array_equal(rows.frame_pad_mask[index], pad_mask)
        assert (rows.frames[index][~pad_mask] == 200).all()
        assert not rows.frames[index][pad_mask].any()
        real[Path(row["uri"]).stem] = (height, width)
    assert real == {"wide": (8, 16), "high": (16, 4), "square": (16, 16), "small": (16, 11)}


def test_evaluation_reads_first_captions_and_middle_frames_in_order_of_the_ids(source: ClipSource) -> None:
    evaluation = dataclasses.replace(source, plan=None, max_clips=10)
    assert evaluation.num_evaluation_steps() == 2
    rows = [row for table in shares(evaluation, 0, 2, 0, 1) for row in table.to_pylist()]
    ids = [row["clip_id"] for row in rows if row["uri"]]
    assert ids == sorted(clip_id("tiny", f"{number:02}.mp4") for number in range(NUM_CLIPS))[:10]
    usable = next(row for row in rows if row["weight"])
    assert usable["caption"] == f"clip {number_of(usable)}"
    data = Path(usable["uri"]).read_bytes()
    clip = decode_clip(data, kind=Kind.VIDEO, num_frames=NUM_FRAMES, size_px=SIZE_PX)
    height, width = usable["real_height"], usable["real_width"]
    assert usable["frames"] == clip.frames[:, :height, :width].tobytes()
    assert clip.pad_mask.sum() == NUM_FRAMES * (SIZE_PX**2 - height * width)


def test_a_long_run_is_cut_into_segments_that_cover_it(source: ClipSource) -> None:
    large = dataclasses.replace(source, frame_size_px=2048)
    assert large.steps_per_block(4) == 1
    parts = segments(large, 12_345, 4)
    assert [(name, start) for name, start, _ in parts] == [(f"train-{n}", 2500 * n) for n in range(5)]
    assert [stop for _, _, stop in parts] == [2500, 5000, 7500, 10_000, 12_345]


@pytest.mark.parametrize(("size_px", "num_ranks", "steps"), [(16, 1, 1365), (64, 2, 170), (256, 2, 10), (2048, 1, 1)])
def test_a_block_holds_as_many_steps_as_fit(source: ClipSource, size_px: int, num_ranks: int, steps: int) -> None:
    assert dataclasses.replace(source, frame_size_px=size_px).steps_per_block(num_ranks) == steps


@pytest.mark.parametrize("size", [1, 2, 3, 8, 10])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 8, 9, 25])
def test_blocks_grow_until_they_are_full_and_cover_all_steps(
    source: ClipSource, monkeypatch: pytest.MonkeyPatch, size: int, num_steps: int
) -> None:
    monkeypatch.setattr("pipeline.stream.source.BLOCK_BYTES", size * SHARE * NUM_FRAMES * SIZE_PX**2 * 3)
    num_blocks = source.num_groups(num_steps, NUM_RANKS) * NUM_RANKS
    found = [source.steps_of_block(number, 5, 5 + num_steps, NUM_RANKS) for number in range(num_blocks)]
    assert [rank for _, rank in found] == list(range(NUM_RANKS)) * (num_blocks // NUM_RANKS)
    steps = [block for block, rank in found if rank == 1]
    assert [step for block in steps for step in block] == list(range(5, 5 + num_steps))
    lengths = [len(block) for block in steps]
    grown = [1] + [2**number for number in range(10) if 2 ** (number + 1) <= size] + [size] * 25
    assert lengths[:-1] == grown[: len(lengths) - 1]
    assert 1 <= lengths[-1] <= grown[len(lengths) - 1]


def test_blocks_of_several_steps_hold_each_ranks_shares_in_turn(
    source: ClipSource, two_epochs: list[pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_bytes = SHARE * NUM_FRAMES * SIZE_PX**2 * 3
    monkeypatch.setattr("pipeline.stream.source.BLOCK_BYTES", 3 * step_bytes)
    bounds = {"start_step": 2, "stop_step": 10, "num_ranks": NUM_RANKS}
    blocks = [decode_block(pa.table({"id": [n]}), source=source, **bounds) for n in range(8)]
    assert [len(block) // SHARE for block in blocks] == [1, 1, 1, 1, 3, 3, 3, 3]
    for rank in range(NUM_RANKS):
        mine = pa.concat_tables(blocks[rank::NUM_RANKS])
        assert mine == pa.concat_tables(table.slice(rank * SHARE, SHARE) for table in two_epochs[2:10])


@pytest.mark.parametrize("change", ["swapped", "short", "late"])
def test_a_stream_out_of_order_stops_the_run(change: str) -> None:
    def table(first: int, count: int = SHARE) -> pa.Table:
        return pa.table({"slot": pa.array(range(first, first + count), pa.int64())})

    right = [table(84), table(92)]
    assert list(in_plan_order(iter(right), start_step=10, rank=1, num_ranks=2, share=4)) == right
    wrong = {"swapped": [table(92), table(84)], "short": [table(84, 3)], "late": [table(84), table(100)]}[change]
    with pytest.raises(RuntimeError, match=r"rank 1 expected slots \[.*not delivered in the order of the plan"):
        list(in_plan_order(iter(wrong), start_step=10, rank=1, num_ranks=2, share=4))


@pytest.mark.parametrize("num_ranks", [3, 5, 16])
def test_ranks_that_do_not_divide_the_batch_share_the_same_slots(
    source: ClipSource, two_epochs: list[pa.Table], num_ranks: int
) -> None:
    """The clips of a step are the same on any number of ranks; what is too much has weight 0, at the end."""
    share = source.share(num_ranks)
    assert share == {3: 3, 5: 2, 16: 1}[num_ranks]
    for step in (0, 5):
        tables = [decode_share(source, step, rank, num_ranks) for rank in range(num_ranks)]
        assert {len(table) for table in tables} == {share}
        whole = pa.concat_tables(tables)
        same = whole.slice(0, BATCH).drop(["slot", "num_retries"])
        assert same == two_epochs[step].drop(["slot", "num_retries"])
        assert whole["weight"].to_pylist()[BATCH:] == [0.0] * (share * num_ranks - BATCH)
        for rank, table in enumerate(tables):
            seen = in_plan_order(iter([table]), start_step=step, rank=rank, num_ranks=num_ranks, share=share)
            assert list(seen) == [table]


def test_a_block_without_its_own_number_is_refused(source: ClipSource) -> None:
    with pytest.raises(RuntimeError, match="a block has 3 numbers instead of its own"):
        decode_block(pa.table({"id": [0, 1, 2]}), source=source, start_step=0, stop_step=9, num_ranks=2)


def test_a_clip_that_does_not_decode_is_decoded_once_in_a_run(
    source: ClipSource, two_epochs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers decode two epochs in turn; what the store did not have is asked for again."""
    lengths, isolated = [], loader.isolated

    def counted(function: Callable[..., Any], data: Media, **arguments: Any) -> Any:
        lengths.append(len(data))
        return isolated(function, data, **arguments)

    monkeypatch.setattr(loader, "isolated", counted)
    remembering = dataclasses.replace(source, failures=str(tmp_path / "undecoded"))
    done = []
    for start, stop in [(0, 6), (6, 12)]:
        failures._read.cache_clear()  # as in another process
        for number in range(source.num_groups(stop - start, 1)):
            numbers = pa.table({"id": [number]})
            block = decode_block(numbers, source=remembering, start_step=start, stop_step=stop, num_ranks=1)
            done.append(block.drop_columns(["num_retries"]))
    expected = pa.concat_tables(two_epochs).drop_columns(["num_retries"])
    assert pa.concat_tables(done).equals(expected)
    broken = [tmp_path / "undecoded" / f"{clip_id('tiny', f'{number:02}.mp4')}.json" for number in BROKEN]
    noted = {json.loads(path.read_text())["reason"] for path in broken if path.exists()}
    assert noted == {reason for reason in BROKEN.values() if reason != Reason.MISSING}
    assert len(lengths) == 2 * (NUM_CLIPS - len(BROKEN)) + len(noted)
