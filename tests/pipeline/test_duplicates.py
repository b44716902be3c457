from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.benchmarks.dedup import FPS, drawn_texture, frames_of
from pipeline.corpus.manifest import make_manifest
from pipeline.decode.codec import encode_video, open_video
from pipeline.dedup import candidates, fingerprints, search
from pipeline.dedup.candidates import MAX_DISTANCE, Banding, entries_of, neighbours, sketches
from pipeline.dedup.duplicates import (
    MIN_CONTRAST,
    Alignment,
    Clip,
    Pair,
    PairKind,
    SimilarityConfig,
    best_alignment,
    connected_components,
    contrast,
    diagonal_sums,
    make_pair,
    normalised_caption,
    removals,
)
from pipeline.dedup.fingerprints import perceptual_hashes, thumbnails_of, video_thumbnails, write_prints
from pipeline.dedup.search import clip_table, clips_at, exact_pairs, find_copies
from pipeline.synthetic.clips import CorpusConfig, clips_of
from pipeline.synthetic.render import render_video


def thumbnails(data: bytes) -> np.ndarray:
    with open_video(data) as video:
        return video_thumbnails(video, range(video.info.num_frames))


def row(index: int, **changes) -> dict:
    known = {
        "clip_id": index,
        "uri": f"{index}.mp4",
        "captions": [f"clip {index}"],
        "kind": "video",
        "split": "train",
        "width": 10,
        "height": 10,
        "num_frames": 24,
        "bytes": 1,
        "checksum": str(index),
    }
    return known | changes


class Found:
    """The pairs among clips that show `shown`, of the manifests `toy` and, where a row says so, `other`."""

    def __init__(self, folder: Path | str, shown: list[np.ndarray], rows: list[dict] | None = None) -> None:
        rows = rows or [row(index) for index in range(len(shown))]
        corpora = {"toy": [], "other": []}
        for one in rows:
            corpora[one.pop("corpus", "toy")].append(one)
        self.listings = [make_manifest(name, "/", rows) for name, rows in corpora.items() if rows]
        folders = [f"{folder}/{listing.corpus}" for listing in self.listings]
        for listing, where in zip(self.listings, folders, strict=True):
            blobs = [shown[clip_id].tobytes() for clip_id in listing.table["clip_id"].to_pylist()]
            columns = [listing.table["clip_id"], listing.table["checksum"], pa.array(blobs, pa.large_binary())]
            write_prints(where, [pa.Table.from_arrays(columns, schema=fingerprints.SCHEMA)], max_bytes=1)
        self.table = clip_table(self.listings, folders)
        self.folder = f"{folder}/entries"

    def looked_for(self) -> tuple[list[Pair], dict[int, Clip], search.Search]:
        done = find_copies(self.table, SimilarityConfig(), self.folder, in_turn)
        clips = clips_at(self.listings, (number for pair in done.copies for number in pair))
        return [make_pair(clips, *numbers, one, "train") for numbers, one in done.copies.items()], clips, done

    def pairs(self) -> list[tuple[int, int, PairKind]]:
        pairs, clips, _ = self.looked_for()
        return [(clips[pair.copy].clip_id, clips[pair.original].clip_id, pair.kind) for pair in pairs]

    def candidates(self) -> set[tuple[int, int]]:
        _, chosen = exact_pairs(self.table)
        tables = search.candidate_pairs(self.table, chosen, 0.93, self.folder, in_turn)
        return {(one["first"], one["second"]) for table in tables for one in table.to_pylist()}


def in_turn(blocks, function):
    return list(map(function, blocks))


def clip(index: int, **changes) -> Clip:
    known = Clip(
        clip_id=index,
        uri=f"{index}.mp4",
        corpus="toy",
        split="train",
        num_pixels=100,
        content=(str(index), None, None),
        captions=frozenset({f"clip {index}"}),
        is_primary=True,
    )
    return dataclasses.replace(known, **changes)


def copy_of(frames: np.ndarray, *, scale: float = 1.0, start: float = 0.0, end: float = 0.0, crf: int = 23) -> bytes:
    """`frames` without these shares of their start and end, scaled and encoded again after a first encoding."""
    with open_video(encode_video(frames, fps=FPS)) as video:
        decoded = video.frames(range(len(frames)))
    kept = decoded[round(start * len(frames)) : len(frames) - round(end * len(frames))]
    height, width = (2 * round(side * scale / 2) for side in frames.shape[1:3])
    return encode_video(
        np.stack([np.asarray(Image.fromarray(one).resize((width, height))) for one in kept]), fps=FPS, crf=crf
    )


COPIES = {
    "encoded again": {"crf": 35},
    "half as large": {"scale": 0.5},
    "larger": {"scale": 1.5},
    "without its start": {"start": 0.2},
    "without its end": {"end": 0.2},
    "the middle alone": {"start": 0.2, "end": 0.2},
    "a start between two samples": {"start": 1.5 / 48},
    "everything": {"crf": 35, "scale": 0.5, "start": 0.13, "end": 0.07},
}
"""What was done to a copy."""


@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("index", [5, 21])
def test_a_copy_is_a_candidate_and_fits_where_it_was_cut(how, index, tmp_path):
    frames = frames_of(0, index)
    original, copy = thumbnails(encode_video(frames, fps=FPS)), thumbnails(copy_of(frames, **how))
    assert Found(tmp_path, [original, copy]).candidates() == {(0, 1)}
    found = best_alignment(copy, original, 0.6)
    assert found is not None
    assert found.picture > 0.9
    assert found.change > 0.7
    assert found.shift_seconds == pytest.approx(round(how.get("start", 0) * len(frames)) / FPS, abs=0.063)


def test_clips_that_share_texture_or_things_are_no_copies():
    found = []
    for first in (0, 40):
        family = [thumbnails(encode_video(frames_of(0, first + index), fps=FPS)) for index in range(5)]
        found += [best_alignment(one, other, 0.6) for one, other in itertools.combinations(family, 2)]
    assert max(one.picture for one in found if one) > 0.85
    assert not any(one.is_copy(SimilarityConfig()) for one in found if one)


def test_a_cut_clip_fits_its_original_entirely_and_the_shift_turns_with_the_order():
    whole = thumbnails_of(np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8))
    forth, back = best_alignment(whole[3:15], whole, 0.6), best_alignment(whole, whole[3:15], 0.6)
    assert forth is not None
    assert back is not None
    assert (forth.picture, forth.change, forth.overlap_seconds) == (pytest.approx(1), 1, 1.5)
    assert (forth.shift_seconds, back.shift_seconds) == (0.375, -0.375)


def test_a_clip_played_backwards_is_another_one():
    frames = frames_of(0, 5)
    forth, back = (thumbnails(encode_video(one, fps=FPS)) for one in (frames, frames[::-1]))
    found = best_alignment(forth, back, 0.6)
    assert found is not None
    assert found.change < 0.5


def noisy(picture: np.ndarray, seed: int, num_frames: int = 36) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 3, (num_frames, *picture.shape))
    return (picture + noise).clip(0, 255).astype(np.uint8)


def test_still_pictures_match_by_what_they_show_and_plain_ones_never(tmp_path):
    one, other = (np.asarray(drawn_texture(np.random.default_rng(seed)).resize((96, 96))) for seed in range(2))
    dark, grey = np.full((96, 96, 3), 4), np.full((96, 96, 3), 128)
    pictures = [one, one, other, dark, dark, grey, grey]
    data = [encode_video(noisy(picture, seed), fps=FPS) for seed, picture in enumerate(pictures)]
    assert Found(tmp_path, [thumbnails(one) for one in data]).pairs() == [(1, 0, "near")]


def test_candidates_are_the_pairs_of_which_two_frames_have_nearly_the_same_hash(tmp_path):
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (4, 384), np.uint8) for _ in range(60)]
    for index in range(0, 60, 3):  # a frame of the next clip, somewhat noisier than this one's
        clips[index + 1][2] = (clips[index][1] + rng.normal(0, 4, 384)).clip(0, 255).astype(np.uint8)
    hashes = perceptual_hashes(np.concatenate(clips)).reshape(60, 4)
    near = {
        (one, other)
        for one, other in itertools.combinations(range(60), 2)
        if np.bitwise_count(hashes[one][:, None] ^ hashes[other][None]).min() <= 4
    }
    assert len(near) > 10
    found = Found(tmp_path, clips).candidates()
    assert near <= found
    assert all(
        np.bitwise_count(hashes[one][:, None] ^ hashes[other][None]).min() <= MAX_DISTANCE for one, other in found
    )


def test_buckets_hold_the_pairs_that_one_bucket_holds():
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 256, (300, 384), np.uint8)
    shown = np.concatenate([shown, (shown + rng.normal(0, 4, shown.shape)).clip(0, 255).astype(np.uint8)])
    entries = entries_of(shown, np.arange(len(shown)))
    one, several = (Banding(num_bits=12, num_buckets=number, max_sketch_distance=10) for number in (1, 7))
    for band in range(candidates.NUM_BANDS):
        buckets = several.buckets(entries["hash"], band)
        split = np.concatenate(
            [candidates.candidates(entries[buckets == number], several, band) for number in range(7)]
        )
        whole = candidates.candidates(entries, one, band)
        assert len(whole) > 100
        assert sorted(split.tolist()) == whole.tolist()


def test_bits_of_sketches_differ_as_angles_do():
    rng = np.random.default_rng(0)
    one, noise = rng.normal(0, 1, (2, 4000, 384))
    for share in (0.1, 0.5, 1.0):
        other = 128 + 30 * (one + share * noise)
        first, second = ((128 + 30 * one).clip(0, 255).astype(np.uint8), other.clip(0, 255).astype(np.uint8))
        differing = np.bitwise_count(sketches(first) ^ sketches(second)).mean() / 64
        assert differing == pytest.approx(np.arctan(share) / np.pi, abs=0.01)


def test_connected_clips_are_those_that_a_walk_over_pairs_reaches():
    pairs = np.random.default_rng(0).integers(0, 60, (40, 2)).tolist()
    reached = {number: {number} for pair in pairs for number in pair}
    for _ in pairs:
        for one, other in pairs:
            reached[one] = reached[other] = reached[one] | reached[other]
    assert connected_components(map(tuple, pairs)) == {number: min(others) for number, others in reached.items()}


def test_neighbours_are_all_pairs_of_equal_keys_until_there_is_a_crowd():
    rng = np.random.default_rng(0)
    keys, owners = rng.integers(0, 40, 200).astype(np.uint64), rng.integers(0, 50, 200)
    entries = {(int(key), int(owner)) for key, owner in zip(keys, owners, strict=True)}
    expected = {(a, b) for a, b in itertools.combinations(sorted(entries), 2) if a[0] == b[0]}
    found = [
        ((int(keys[a]), int(owners[a])), (int(keys[b]), int(owners[b])))
        for left, right in neighbours(keys, owners)
        for a, b in zip(left, right, strict=True)
    ]
    assert len(found) == len(expected)
    assert set(found) == expected
    crowd = sum(len(left) for left, _ in neighbours(np.zeros(1000, np.uint64), np.arange(1000)))
    assert crowd < 64 * 1000


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1), (4, 7), (7, 4)])
def test_diagonal_sums_are_the_traces(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    traces = [np.trace(matrix, offset) for offset in range(1 - shape[0], shape[1])]
    assert diagonal_sums(matrix) == pytest.approx(np.array(traces), abs=1e-5)


def test_contrast_is_the_variance_within_planes():
    thumbnails = np.random.default_rng(0).integers(0, 256, (3, 384), np.uint8)
    planes = (thumbnails[:, :256], thumbnails[:, 256:320], thumbnails[:, 320:])
    expected = sum(plane.var(axis=1) * plane.shape[1] for plane in planes) / 384
    assert contrast(thumbnails) == pytest.approx(expected, rel=1e-4)
    assert (contrast(np.full((1, 384), 90, np.uint8)) < MIN_CONTRAST**2).all()


SHOWN = thumbnails_of(frames_of(0, 5)[::3, ::2, 32:160:2][:, :, :64].repeat(2, axis=1)[:, :64])


EQUAL = {"checksum": "x"}


@pytest.mark.parametrize(
    ("clips", "pairs"),
    [
        ([{}, {}], [(1, 0, "near")]),
        ([{}, {"width": 20}], [(0, 1, "near")]),
        ([EQUAL, EQUAL], [(1, 0, "exact")]),
        ([EQUAL, EQUAL | {"start_seconds": 0.0, "end_seconds": 2.0}], [(1, 0, "near")]),
        ([{}, {"split": "test"}], [(0, 1, "leak")]),
        ([{"split": "test"}, {"split": "train"}], [(1, 0, "leak")]),
        ([EQUAL, EQUAL | {"split": "val"}], [(0, 1, "leak")]),
        ([{}, {"corpus": "other"}], [(0, 1, "leak")]),
        (
            [{}, {"corpus": "other", "checksum": "x"}, {"corpus": "other", "checksum": "y"}],
            [(0, 1, "leak"), (0, 2, "leak")],
        ),
        ([{"group": "g"}, {"group": "g"}], []),
        ([{"kind": "image"}, {}], []),
        ([{"kind": "image"}, {"split": "test"}], [(0, 1, "leak")]),
    ],
)
def test_what_a_pair_is_called_and_which_of_both_is_the_copy(clips, pairs, tmp_path):
    rows = [row(index, **one) for index, one in enumerate(clips)]
    assert Found(tmp_path, [SHOWN] * len(rows), rows).pairs() == pairs


def test_copies_in_a_bucket_are_those_in_a_folder(bucket, tmp_path):
    rng = np.random.default_rng(0)
    shown = [thumbnails_of(rng.integers(0, 256, (length, 64, 64, 3), np.uint8)) for length in (9, 12, 10)]
    shown += [shown[1][2:11], shown[0]]
    pairs = Found(tmp_path, shown).pairs()
    assert [pair[:2] for pair in pairs] == [(4, 0), (3, 1)]
    assert Found(bucket, shown).pairs() == pairs


def test_of_equal_files_one_is_compared_with_the_others(tmp_path):
    rows = [row(index, **one) for index, one in enumerate((EQUAL, EQUAL, EQUAL, {}))]
    pairs = Found(tmp_path, [SHOWN] * 4, rows).pairs()
    assert set(pairs) == {(1, 0, "exact"), (2, 0, "exact"), (3, 0, "near")}


def test_equal_captions_across_splits_are_suspected_and_frames_decide(tmp_path):
    family = [thumbnails(encode_video(frames_of(0, index), fps=FPS)) for index in (5, 6)]
    rows = [row(0, captions=["a dog"]), row(1, captions=["A dog.", "a cat"], split="test")]
    pairs, _, done = Found(tmp_path / "family", family, rows).looked_for()
    assert (pairs, done.num_suspected) == ([], 1)
    pairs, _, done = Found(tmp_path / "same", [family[0]] * 2, rows).looked_for()
    assert ([pair.same_caption for pair in pairs], done.num_suspected) == ([True], 0)


def test_captions_are_equal_whatever_their_case_marks_and_spaces():
    assert (
        normalised_caption("  A dog, running! ") == normalised_caption("a dog running") != normalised_caption("a dog")
    )


SAME = Alignment(picture=1.0, region=1.0, change=1.0, shift_seconds=0.0, overlap_seconds=1.0)


def pair(copy: int, original: int, kind: PairKind) -> Pair:
    return Pair(copy=copy, original=original, kind=kind, alignment=SAME, same_caption=False)


def test_what_is_removed_copies_something_that_stays():
    clips = [clip(index) for index in range(4)]
    chain = [pair(1, 0, PairKind.NEAR), pair(2, 1, PairKind.NEAR), pair(3, 2, PairKind.NEAR)]
    assert {gone: why.original for gone, why in removals(dict(enumerate(clips)), chain[::-1], "train").items()} == {
        1: 0,
        3: 2,
    }


def test_training_clips_that_leak_are_removed_first_and_evaluation_clips_stay():
    clips = [clip(0), clip(1), clip(2, split="test"), clip(3, split="val"), clip(4, corpus="other", is_primary=False)]
    found = [
        pair(0, 2, PairKind.LEAK),
        pair(1, 0, PairKind.NEAR),
        pair(2, 3, PairKind.LEAK),
        pair(3, 4, PairKind.LEAK),
    ]
    assert {gone: why.original for gone, why in removals(dict(enumerate(clips)), found, "train").items()} == {0: 2}


def test_equal_files_go_even_where_the_one_that_they_equal_leaks():
    clips = [clip(0), clip(1), clip(2, split="test")]
    found = [pair(0, 2, PairKind.LEAK), pair(1, 0, PairKind.EXACT)]
    assert set(removals(dict(enumerate(clips)), found, "train")) == {0, 1}


def test_clips_of_the_embedded_corpus_are_hardly_ever_taken_for_copies(tmp_path):
    config = CorpusConfig(num_train_videos=80, num_train_images=0, num_val=10, num_test=10, num_temporal_groups=5)
    scenes = clips_of(config)
    shown = [render_video(one.scene, num_frames=config.num_frames, size_px=config.size_px) for one in scenes]
    data = [encode_video(frames, fps=config.fps) for frames in shown]
    rows = [row(index, split=one.split, group=one.group) for index, one in enumerate(scenes)]
    assert len(Found(tmp_path, [thumbnails(one) for one in data], rows).pairs()) <= 1


@pytest.mark.parametrize("name", ["video1.mp4", "video9770.mp4", "video9771.mp4"])
def test_copies_of_real_clips_are_found(real_files, name, tmp_path):
    data = (real_files / "videos" / name).read_bytes()
    with open_video(data) as video:
        fps = round(video.info.fps)
        kept = range(int(0.13 * video.info.num_frames), int(0.93 * video.info.num_frames))
        width, height = (2 * round(0.3 * side) for side in (video.info.width, video.info.height))
        copy = encode_video(video.frames(kept, (width, height)), fps=fps, crf=35)
    shown = [thumbnails(data), thumbnails(copy)]
    assert Found(tmp_path, shown).candidates() == {(0, 1)}
    found = best_alignment(shown[1], shown[0], 0.6)
    assert found is not None
    assert found.similarity > 0.85
    assert found.shift_seconds == pytest.approx(kept.start / fps, abs=0.07)
