"""The plan shows each clip exactly once per epoch, in an order that only (seed, epoch) decide."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.parts import GROUP_ROWS
from pipeline.records import Kind
from pipeline.stream.config import MixingConfig, OrderConfig
from pipeline.stream.epoch_plan import PADDING, Plan, permute, sequential
from pipeline.stream.permutation import BLOCK_CLIPS, permute_in_windows

SIZES = st.integers(0, 40)


def make_plan(num_videos: int, num_images: int = 0, global_batch: int = 8, seed: int = 0) -> Plan:
    return Plan(seed=seed, num_videos=num_videos, num_images=num_images, global_batch=global_batch)


def epoch_rows(plan: Plan, epoch: int) -> list[tuple[Kind, int]]:
    """Kind and row of every slot of an epoch in order, padding left out."""
    steps = (plan.step(epoch * plan.steps_per_epoch + position) for position in range(plan.steps_per_epoch))
    return [(step.kind, row) for step in steps for row in step.rows.tolist() if row != PADDING]


@settings(deadline=None, max_examples=40)
@given(
    num_videos=SIZES,
    num_images=SIZES,
    global_batch=st.integers(1, 20),
    seed=st.integers(-5, 2**40),
    epoch=st.integers(0, 9),
)
def test_every_clip_is_shown_exactly_once_per_epoch(
    num_videos: int, num_images: int, global_batch: int, seed: int, epoch: int
) -> None:
    if num_videos + num_images:
        plan = make_plan(num_videos, num_images, global_batch, seed)
        clips = [(Kind.VIDEO, row) for row in range(num_videos)] + [(Kind.IMAGE, row) for row in range(num_images)]
        assert Counter(epoch_rows(plan, epoch)) == Counter(clips)


@settings(deadline=None, max_examples=40)
@given(num_videos=SIZES, num_images=SIZES, global_batch=st.integers(1, 20))
def test_each_kind_has_one_padded_tail_per_epoch_and_every_step_the_full_width(
    num_videos: int, num_images: int, global_batch: int
) -> None:
    if num_videos + num_images:
        plan = make_plan(num_videos, num_images, global_batch)
        steps = [plan.step(number) for number in range(plan.steps_per_epoch)]
        for kind, length in ((Kind.VIDEO, num_videos), (Kind.IMAGE, num_images)):
            tails = [step.rows for step in steps if step.kind == kind and (step.rows == PADDING).any()]
            assert len(tails) == bool(length % global_batch)
            for tail in tails:
                assert (tail[: length % global_batch] >= 0).all()
                assert (tail[length % global_batch :] == PADDING).all()
        assert all(step.rows.shape == (global_batch,) and step.epoch == 0 for step in steps)
        assert [step.step for step in steps] == list(range(plan.steps_per_epoch))


def test_images_and_videos_come_in_mixed_order() -> None:
    plan = make_plan(200, 200)
    kinds = [plan.step(number).kind for number in range(2 * plan.steps_per_epoch)]
    first, second = kinds[: plan.steps_per_epoch], kinds[plan.steps_per_epoch :]
    assert Counter(first) == Counter(second) == {Kind.VIDEO: 25, Kind.IMAGE: 25}
    assert first != second
    changes = sum(one != other for one, other in itertools.pairwise(first))
    assert changes > 12


def epochs_of(plan: Plan, kind: Kind, num_steps: int) -> list[list[int]]:
    """The rows of each whole epoch of `kind` within the first `num_steps` of the plan."""
    planned = [step for step in map(plan.step, range(num_steps)) if step.kind == kind]
    size = plan.num_steps(kind)
    epochs = [planned[start : start + size] for start in range(0, len(planned) - size + 1, size)]
    assert all(len({step.epoch for step in epoch}) == 1 for epoch in epochs)
    assert len({epoch[0].epoch for epoch in epochs}) == len(epochs)
    return [[row for step in epoch for row in step.rows.tolist() if row != PADDING] for epoch in epochs]


MIXINGS = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda weights: MixingConfig(weights=weights)),
    st.integers(1, 4).map(lambda epochs: MixingConfig(image_epochs=epochs)),
)


@settings(deadline=None, max_examples=40)
@given(
    num_videos=st.integers(1, 30),
    num_images=st.integers(1, 30),
    global_batch=st.integers(1, 12),
    mixing=MIXINGS,
)
def test_each_kind_shows_each_of_its_clips_once_in_each_of_its_epochs(
    num_videos: int, num_images: int, global_batch: int, mixing: MixingConfig
) -> None:
    plan = Plan(seed=1, num_videos=num_videos, num_images=num_images, global_batch=global_batch, mixing=mixing)
    num_steps = plan.first_step(6)
    of_videos, of_images = (epochs_of(plan, kind, num_steps) for kind in (Kind.VIDEO, Kind.IMAGE))
    assert len(of_videos) == 6 - (mixing.image_epochs or 0)
    assert all(sorted(epoch) == list(range(num_videos)) for epoch in of_videos)
    assert all(sorted(epoch) == list(range(num_images)) for epoch in of_images)
    if num_videos > 12:
        assert len({tuple(epoch) for epoch in of_videos}) == len(of_videos)


@settings(deadline=None, max_examples=40)
@given(weights=st.tuples(st.integers(1, 7), st.integers(1, 7)), start=st.integers(0, 2**40))
def test_by_turns_every_window_of_a_period_has_each_kinds_share(weights: tuple[int, int], start: int) -> None:
    plan = Plan(seed=0, num_videos=90, num_images=50, global_batch=8, mixing=MixingConfig(weights=weights))
    kinds = Counter(plan.step(start + number).kind for number in range(sum(weights)))
    assert (kinds[Kind.IMAGE], kinds[Kind.VIDEO]) == weights


@settings(deadline=None, max_examples=40)
@given(mixing=st.one_of(st.just(MixingConfig()), MIXINGS), num_images=st.integers(1, 30), epoch=st.integers(0, 6))
def test_an_epoch_of_the_run_begins_where_the_one_before_has_ended(
    mixing: MixingConfig, num_images: int, epoch: int
) -> None:
    plan = Plan(seed=0, num_videos=20, num_images=num_images, global_batch=8, mixing=mixing)
    first = plan.first_step(epoch)
    if mixing.weights is None:
        assert all(plan.step(number).epoch < epoch for number in range(first))
        assert plan.step(first).epoch == epoch
        return
    shown = [plan.step(number).kind for number in range(first)]
    assert Counter(shown)[Kind.VIDEO] == epoch * plan.num_steps(Kind.VIDEO)
    assert not shown or shown[-1] == Kind.VIDEO


def test_in_sequence_all_images_come_before_the_first_video() -> None:
    plan = Plan(seed=0, num_videos=20, num_images=40, global_batch=8, mixing=MixingConfig(image_epochs=2))
    kinds = [plan.step(number).kind for number in range(100)]
    assert kinds == [Kind.IMAGE] * 10 + [Kind.VIDEO] * 90
    assert [plan.step(number).epoch for number in (0, 4, 5, 9, 10, 12, 13)] == [0, 0, 1, 1, 2, 2, 3]


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    orders = [epoch_rows(make_plan(100, seed=seed), epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    for order in orders:
        rows = np.array([row for _, row in order])
        assert np.abs(np.corrcoef(rows, np.arange(100))[0, 1]) < 0.4
        assert (np.diff(rows) == 1).sum() < 10


def test_the_same_seed_gives_the_same_order_for_good() -> None:
    """Recorded: another order under the same seed would make a resumed run repeat and miss clips."""
    plan = make_plan(43, 5, seed=7)
    assert plan.steps_per_epoch == 7
    assert [plan.step(number).kind.value for number in range(7)] == [*["video"] * 2, "image", *["video"] * 4]
    assert plan.step(8).rows.tolist() == [24, 22, 0, 15, 42, 6, 14, 16]


def test_a_clip_stands_in_every_place_equally_often() -> None:
    counts = np.zeros((10, 10))
    for epoch in range(500):
        counts[np.arange(10), permute(np.arange(10), 10, key=(0, epoch))] += 1
    assert np.abs(counts - 50).max() < 5 * np.sqrt(500 * 0.1 * 0.9)


def test_a_wider_batch_holds_the_same_clips_in_the_same_order() -> None:
    """An epoch of videos is one permutation; the batch only cuts it."""
    whole = make_plan(64, global_batch=64).step(0).rows
    narrow = {tuple(make_plan(64, global_batch=8).step(number).rows.tolist()) for number in range(8)}
    assert narrow == {tuple(rows) for rows in whole.reshape(8, 8).tolist()}


@pytest.mark.parametrize("num_workers", [1, 2, 4, 8])
def test_global_batches_do_not_know_of_workers(num_workers: int) -> None:
    plan, share = make_plan(43), 8 // num_workers
    whole = plan.step(5).rows
    parts = [make_plan(43).step(5).rows[rank * share : (rank + 1) * share] for rank in range(num_workers)]
    assert np.concatenate(parts).tolist() == whole.tolist()


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 3000), key=st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 2**63)))
def test_permuting_is_one_to_one(length: int, key: tuple[int, int]) -> None:
    moved = permute(np.arange(length), length, key=key)
    assert sorted(moved.tolist()) == list(range(length))


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 2**40), data=st.data())
def test_a_position_moves_alike_alone_and_among_others(length: int, data) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=6)), dtype=np.int64)
    together = permute(positions, length, key=(3, 1))
    alone = [permute(positions[[index]], length, key=(3, 1))[0] for index in range(len(positions))]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < length)).all()
    assert len(set(together.tolist())) == len(set(positions.tolist()))


def test_a_hundred_million_clips_cost_no_more_memory_than_a_hundred() -> None:
    peaks = []
    for num_videos in (100, 100_000_000):
        plan = make_plan(num_videos, global_batch=64)
        plan.step(0)
        tracemalloc.start()
        rows = [plan.step(number).rows for number in (0, plan.steps_per_epoch - 1, 3 * plan.steps_per_epoch)]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert all(step.max() < num_videos for step in rows)
    assert peaks[1] < peaks[0] + 20_000


def test_rows_far_apart_in_a_large_corpus_never_meet_twice() -> None:
    plan = make_plan(100_000_000, global_batch=1000)
    assert plan.steps_per_epoch == 100_000
    rows = np.concatenate([plan.step(number).rows for number in range(0, 100_000, 1000)])
    assert len(np.unique(rows)) == len(rows) == 100_000
    assert rows.mean() == pytest.approx(50_000_000, rel=0.02)


def digest(plan: Plan, steps: Iterable[int]) -> str:
    """16 hex digits of some steps of a plan."""
    hashed = hashlib.blake2b(digest_size=8)
    for planned in map(plan.step, steps):
        hashed.update(f"{planned.epoch} {planned.kind}".encode() + planned.rows.astype("<i8").tobytes())
    return hashed.hexdigest()


@pytest.mark.parametrize(
    ("num_videos", "num_images", "global_batch", "expected"),
    [
        (43, 5, 8, "b87a1154b7be80a8"),
        (1280, 640, 128, "ea5516910dae0553"),
        (100_000, 0, 64, "e9eb5a5948bc2eaa"),
        (10_000_000, 0, 1024, "dd1e2bc8fcff4be8"),
    ],
)
def test_the_order_of_a_run_that_was_begun_is_the_same_in_every_version(
    num_videos: int, num_images: int, global_batch: int, expected: str
) -> None:
    plan = make_plan(num_videos, num_images, global_batch, seed=7)
    assert digest(plan, (0, 1, 5, 17, 100)) == expected


def windowed(num_videos: int, num_images: int = 0, *, whole_up_to: int = 1024, **fields: Any) -> Plan:
    """A plan of a corpus in parts with windows of four blocks."""
    order = OrderConfig(whole_up_to=whole_up_to, window_blocks=4)
    plan: dict[str, Any] = {"seed": 7, "num_videos": num_videos, "num_images": num_images, "global_batch": 64}
    return Plan(**plan | {"order": order} | fields)


@settings(deadline=None, max_examples=30)
@given(length=st.integers(1024, 12_000), window_blocks=st.integers(2, 6), key=st.integers(0, 2**40))
def test_windows_of_blocks_hold_each_row_once_and_any_position_is_found_alone(
    length: int, window_blocks: int, key: int
) -> None:
    rows = permute_in_windows(np.arange(length), length, window_blocks=window_blocks, key=(key, 1))
    assert np.sort(rows).tolist() == list(range(length))
    for position in (0, length // 3, length - 1):
        alone = permute_in_windows(np.array([position]), length, window_blocks=window_blocks, key=(key, 1))
        assert alone.tolist() == [rows[position]]


def test_a_block_of_the_order_is_what_a_manifest_in_parts_reads_at_a_time() -> None:
    assert BLOCK_CLIPS == GROUP_ROWS


@pytest.mark.parametrize(
    "mixing",
    [MixingConfig(), MixingConfig(weights=(1, 2)), MixingConfig(image_epochs=1)],
    ids=["mixed", "turns", "seq"],
)
def test_in_windows_too_each_clip_is_shown_once_per_epoch(mixing: MixingConfig) -> None:
    plan = windowed(5000, 700, mixing=mixing, global_batch=250)
    shown = {kind: Counter[tuple[int, int]]() for kind in Kind}
    for step in range(3 * plan.steps_per_epoch):
        planned = plan.step(step)
        shown[planned.kind].update((planned.epoch, row) for row in planned.rows.tolist() if row != PADDING)
    for kind, length in ((Kind.VIDEO, 5000), (Kind.IMAGE, 700)):
        assert set(shown[kind].values()) == {1}
        epochs = Counter(epoch for epoch, _ in shown[kind])
        assert [count for _, count in sorted(epochs.items())][:-1] == [length] * (len(epochs) - 1)


def test_a_small_corpus_in_parts_has_the_order_of_one_file() -> None:
    steps = range(0, 400, 7)
    parted, whole = windowed(5000, 700, whole_up_to=5000), windowed(5000, 700, order=None)
    assert digest(parted, steps) == digest(whole, steps) != digest(windowed(5000, 700), steps)
    assert parted.step_to_prefetch(0) is None


def test_a_step_in_windows_reads_few_blocks_and_the_next_window_is_known_ahead() -> None:
    plan, whole = windowed(1_000_003), windowed(1_000_003, order=None)
    for step in range(0, plan.steps_per_epoch - 1, 501):
        assert len(np.unique(plan.step(step).rows // BLOCK_CLIPS)) <= 2 * 5
        assert len(np.unique(whole.step(step).rows // BLOCK_CLIPS)) > 40
    ahead = plan.step_to_prefetch(3)
    assert ahead is not None
    assert ahead.rows.tolist() == plan.step(3 + 4 * BLOCK_CLIPS // 64).rows.tolist()
    last = plan.step_to_prefetch(plan.steps_per_epoch - 1)
    assert last is not None
    assert last.epoch == 1


def test_the_order_in_windows_is_random_enough() -> None:
    """Blocks of a manifest are random samples of the corpus, as ids are hashes. Of a window of W blocks two clips of a
    step share a block as often as chance makes them, 1 time in W; and nothing of an epoch is left in the next."""
    length, window_blocks = 200 * BLOCK_CLIPS, 4
    orders = [
        permute_in_windows(np.arange(length), length, window_blocks=window_blocks, key=(7, epoch, 1))
        for epoch in range(2)
    ]
    blocks = (orders[0] // BLOCK_CLIPS).reshape(-1, 64)
    same = (blocks[:, ::2] == blocks[:, 1::2]).mean()
    expected, pairs = (BLOCK_CLIPS - 1) / (window_blocks * BLOCK_CLIPS - 1), blocks.size / 2
    assert abs(same - expected) < 5 * (expected / pairs) ** 0.5
    positions = [np.argsort(order) for order in orders]
    for first, second, independent in (
        (np.arange(length), positions[0], length / BLOCK_CLIPS),  # where a clip lies, and when it comes
        (positions[0], positions[1], length / BLOCK_CLIPS),  # and when in the next epoch
        (np.arange(length) % BLOCK_CLIPS, positions[0] % (4 * BLOCK_CLIPS), length),  # within block and window
        (orders[0][:-1] % BLOCK_CLIPS, orders[0][1:] % BLOCK_CLIPS, length),  # one after the other
    ):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / independent**0.5


def test_evaluation_goes_through_the_clips_once_in_order() -> None:
    steps = [sequential(number, length=11, batch=4, kind=Kind.VIDEO) for number in range(3)]
    assert np.concatenate([step.rows for step in steps]).tolist() == [*range(11), PADDING]
    assert {(step.epoch, step.kind) for step in steps} == {(0, Kind.VIDEO)}


def test_plans_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one clip; the training split is empty"):
        make_plan(0)
    with pytest.raises(ValueError, match=r"optim\.global_batch must be at least 1, got 0"):
        make_plan(5, global_batch=0)
    one_kind = (
        r"data\.mixing\.weights=\(1, 1\) needs images and videos, but the training split has 0 images and 5 videos"
    )
    with pytest.raises(ValueError, match=one_kind):
        Plan(seed=0, num_videos=5, num_images=0, global_batch=8, mixing=MixingConfig(weights=(1, 1)))


@pytest.mark.parametrize(("num_videos", "num_images"), [(50, 0), (0, 50)])
def test_a_corpus_of_one_kind_has_no_images_to_put_first(num_videos: int, num_images: int) -> None:
    plain, in_sequence = (
        Plan(seed=0, num_videos=num_videos, num_images=num_images, global_batch=8, mixing=mixing)
        for mixing in (MixingConfig(), MixingConfig(image_epochs=2))
    )
    assert in_sequence == plain
    assert [in_sequence.first_step(epoch) for epoch in range(4)] == [0, 7, 14, 21]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": (1, 2), "image_epochs": 3}, r"weights=\(1, 2\) \(by turns\) and .*=3 \(in sequence\) exclude"),
        ({"weights": (0, 2)}, r"data\.mixing\.weights must be at least 1 each, got \(0, 2\)"),
        ({"image_epochs": 0}, r"data\.mixing\.image_epochs must be at least 1 or None, got 0"),
    ],
)
def test_orders_that_cannot_be_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixingConfig(**fields)
