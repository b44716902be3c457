"""How clips are shown: alike in all frames, by (seed, epoch, clip_id) alone, never against their captions."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batches import random_batch
from PIL import Image, ImageEnhance, ImageOps

from pipeline.decode.codec import letterbox
from pipeline.records import Batch, ClipRows
from pipeline.stream.augmentation import (
    LARGEST_MOVE,
    Augmentation,
    ColourChange,
    draw_augmentation,
    may_flip,
    sampling_map,
)
from pipeline.stream.config import AugmentationConfig, Operation
from pipeline.stream.transforms import COLOUR_CHANGES, IMAGENET_MEAN, IMAGENET_STD, augment, normalise

SQUARE_PX, NUM_FRAMES = 48, 3
SHAPES = [(48, 48), (27, 48), (48, 36), (13, 48)]
"""Heights and widths of clips, in turn."""
CROPS = AugmentationConfig(crop_px=20, short_side_px=(24, 30))
RANDAUGMENT = AugmentationConfig(num_operations=2)
PAPER = AugmentationConfig(crop_px=20, short_side_px=(24, 30), flip_probability=0.5, num_operations=2)
MIRROR = AugmentationConfig(flip_probability=1.0)


@functools.cache
def smooth_frames(height: int, width: int, seed: int) -> np.ndarray:
    """Frames that differ from each other, in soft colours, as uint8 (T, H, W, 3)."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (NUM_FRAMES * 3, 1, 5, 5))
    fine = F.interpolate(torch.from_numpy(coarse), (height, width), mode="bicubic").clamp(0, 255)
    return fine.view(NUM_FRAMES, 3, height, width).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


def make_rows(num_clips: int, *, epoch: int = 0, caption: str = "a dog", still: bool = False) -> ClipRows:
    """Clip `i` has id `1000 + i` and one of SHAPES; all its frames are equal if it is `still`."""
    clips = [smooth_frames(*SHAPES[number % len(SHAPES)], seed=number) for number in range(num_clips)]
    if still:
        clips = [np.repeat(frames[:1], NUM_FRAMES, axis=0) for frames in clips]
    boxes = [letterbox(frames, SQUARE_PX) for frames in clips]
    return ClipRows(
        clip_ids=np.arange(1000, 1000 + num_clips),
        weight=np.ones(num_clips, np.float32),
        epoch=epoch,
        captions=[caption] * num_clips,
        frames=np.stack([box.frames for box in boxes]),
        frame_pad_mask=np.stack([box.pad_mask for box in boxes]),
        num_frames=np.full(num_clips, NUM_FRAMES),
    )


def part(rows: ClipRows, start: int, stop: int) -> ClipRows:
    columns = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    return ClipRows(**{name: column if name == "epoch" else column[start:stop] for name, column in columns.items()})


def make_batch(rows: ClipRows) -> Batch:
    frames = {name: torch.from_numpy(getattr(rows, name)) for name in ("clip_ids", "frames", "frame_pad_mask")}
    return dataclasses.replace(random_batch(len(rows.weight)), **frames)


def shown(rows: ClipRows, config: AugmentationConfig, *, seed: int = 0, is_training: bool = True) -> Batch:
    return augment(make_batch(rows), draw_augmentation(rows, config, seed=seed, is_training=is_training))


def by_hand(rows: ClipRows, *operations: tuple[Operation, float]) -> Batch:
    """All clips, whole, after the same operations."""
    is_real = ~rows.frame_pad_mask[:, 0]
    sizes = np.stack([is_real.any(1).sum(1), is_real.any(2).sum(1)], 1)
    maps = [sampling_map(size, SQUARE_PX, None, False, list(operations)) for size in sizes]
    every = torch.arange(len(sizes))
    changes = tuple(
        ColourChange(operation=operation, rows=every, strengths=torch.full((len(sizes),), strength))
        for operation, strength in operations
        if operation not in LARGEST_MOVE
    )
    drawn = Augmentation(size_px=SQUARE_PX, maps=torch.from_numpy(np.stack(maps)).float(), colour_changes=changes)
    return augment(make_batch(rows), drawn)


def distance(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


@pytest.mark.parametrize("operation", Operation)
def test_all_frames_of_a_clip_undergo_the_same_operation(operation: Operation) -> None:
    rows = make_rows(4, still=True)
    batch = by_hand(rows, (operation, 0.8))
    assert (batch.frames == batch.frames[:, :1]).all()
    assert (batch.frame_pad_mask == batch.frame_pad_mask[:, :1]).all()
    assert not torch.equal(batch.frames, make_batch(rows).frames)


def test_a_still_clip_stays_still_under_everything_at_once_and_clips_differ() -> None:
    batch = shown(make_rows(64, still=True), dataclasses.replace(PAPER, operation_probability=1.0))
    assert batch.frames.shape == (64, NUM_FRAMES, 20, 20, 3)
    assert (batch.frames == batch.frames[:, :1]).all()
    same_clip = [np.repeat(column[:1], 64, axis=0) for column in (make_rows(1).frames, make_rows(1).frame_pad_mask)]
    rows = dataclasses.replace(make_rows(64), frames=same_clip[0], frame_pad_mask=same_clip[1])
    views = {clip.numpy().tobytes() for clip in shown(rows, PAPER).frames}
    assert len(views) > 60


@pytest.mark.parametrize(("num_ranks", "config"), [(2, PAPER), (8, PAPER), (4, RANDAUGMENT)])
def test_a_clip_is_shown_alike_on_any_number_of_ranks(config: AugmentationConfig, num_ranks: int) -> None:
    rows, share = make_rows(16), 16 // num_ranks
    whole = shown(rows, config)
    parts = [shown(part(rows, rank * share, (rank + 1) * share), config) for rank in range(num_ranks)]
    assert torch.equal(torch.cat([one.frames for one in parts]), whole.frames)
    assert torch.equal(torch.cat([one.frame_pad_mask for one in parts]), whole.frame_pad_mask)


def test_each_epoch_and_seed_shows_a_clip_anew_and_the_same_ones_alike() -> None:
    rows, later = make_rows(16), make_rows(16, epoch=1)
    first = shown(rows, PAPER).frames
    assert torch.equal(first, shown(rows, PAPER).frames)
    for other in (shown(later, PAPER).frames, shown(rows, PAPER, seed=1).frames):
        assert sum(torch.equal(one, two) for one, two in zip(first, other, strict=True)) < 2


def test_the_same_clip_is_drawn_the_same_for_good() -> None:
    """Recorded: other draws under the same seed would make a resumed run another one."""
    drawn = draw_augmentation(make_rows(3, epoch=2), PAPER, seed=7, is_training=True)
    assert drawn is not None
    expected = [[[0.7143, 0, -0.1534], [0, 0.7143, -0.2662]], [[-0.5769, 0, -0.1011], [0, 0.5769, -0.3611]]]
    torch.testing.assert_close(drawn.maps[[0, 2]], torch.tensor(expected), rtol=0, atol=1e-4)
    changes = [(change.operation.value, change.rows.tolist()) for change in drawn.colour_changes]
    assert changes == [("contrast", [0]), ("equalise", [2]), ("saturation", [1]), ("invert", [2])]


def test_a_mirror_shows_the_clip_reversed_beside_its_padding() -> None:
    rows = make_rows(8)
    mirrored = shown(rows, MIRROR)
    for row, frames in enumerate(mirrored.frames.numpy()):
        height, width = SHAPES[row % len(SHAPES)]
        np.testing.assert_array_equal(frames[:, :height, :width], rows.frames[row, :, :height, :width][:, :, ::-1])
    np.testing.assert_array_equal(mirrored.frame_pad_mask.numpy(), rows.frame_pad_mask)


def test_a_mirror_in_a_mirror_shows_the_clip() -> None:
    rows = make_rows(8)
    once = shown(rows, MIRROR)
    twice = shown(dataclasses.replace(rows, frames=once.frames.numpy()), MIRROR)
    np.testing.assert_array_equal(twice.frames.numpy(), rows.frames)


@pytest.mark.parametrize(
    "caption",
    [
        "a car turns left",
        "Right-hand traffic",
        "the leftmost of three dogs",
        "moving rightwards.",
        "a wheel spins counterclockwise",
        "a wheel spins counter-clockwise",
        "an anticlockwise turn",
        "CLOCKWISE",
    ],
)
def test_a_caption_that_names_a_side_or_a_turn_keeps_its_clip_out_of_the_mirror(caption: str) -> None:
    assert not may_flip(caption)
    rows = make_rows(8, caption=caption)
    np.testing.assert_array_equal(shown(rows, MIRROR).frames.numpy(), rows.frames)
    assert may_flip(caption.lower().replace("left", "up").replace("right", "up").replace("clockwise", "fast"))


@pytest.mark.parametrize("caption", ["a bright cleft in upright rock", "a clock", "", "a wise man copyrights it"])
def test_letters_of_a_side_inside_a_word_are_no_side(caption: str) -> None:
    assert may_flip(caption)


def test_half_of_the_clips_are_mirrored_if_half_are_to_be() -> None:
    drawn = draw_augmentation(
        make_rows(200), dataclasses.replace(MIRROR, flip_probability=0.5), seed=0, is_training=True
    )
    assert drawn is not None
    num_mirrored = int((drawn.maps[:, 0, 0] < 0).sum())
    assert abs(num_mirrored - 100) < 4 * np.sqrt(200 / 4)


@pytest.mark.parametrize("config", [PAPER, RANDAUGMENT, dataclasses.replace(RANDAUGMENT, flip_probability=0.5)])
def test_padding_moves_with_the_pixels_and_never_mixes_into_them(config: AugmentationConfig) -> None:
    """Clips of one value on a canvas of another: geometry alone leaves only that value and the zero of padding."""
    rows = make_rows(64)
    rows.frames[...] = np.where(rows.frame_pad_mask[..., None], 255, 90)
    drawn = draw_augmentation(rows, dataclasses.replace(config, operation_probability=1.0), seed=0, is_training=True)
    assert drawn is not None
    batch = augment(make_batch(rows), dataclasses.replace(drawn, colour_changes=()))
    pad_mask = batch.frame_pad_mask
    assert (batch.frames[~pad_mask] == 90).all()
    assert (batch.frames[pad_mask] == 0).all()
    assert 0.02 < pad_mask.float().mean() < 0.7
    assert ((~pad_mask).float().mean((1, 2, 3)) > 0.05).all()


def test_colours_never_reach_the_padding_nor_it_them() -> None:
    rows = make_rows(4)
    for operation in COLOUR_CHANGES:
        batch = by_hand(rows, (operation, 0.7))
        np.testing.assert_array_equal(batch.frame_pad_mask.numpy(), rows.frame_pad_mask)
        assert (batch.frames[batch.frame_pad_mask] == 0).all()
        alone = dataclasses.replace(part(rows, 0, 1), frames=rows.frames[:1])
        assert torch.equal(by_hand(alone, (operation, 0.7)).frames[0], batch.frames[0])


def test_crops_are_full_squares_of_the_clip_of_the_drawn_scale() -> None:
    """A clip that shows its own coordinates tells where each crop was cut, and how large it was."""
    across, down = np.meshgrid(np.arange(48) * 4, np.arange(48) * 4)
    ramps = np.broadcast_to(np.stack([across, down, 0 * down], -1), (100, 1, 48, 48, 3)).astype(np.uint8)
    rows = make_rows(100)
    rows = dataclasses.replace(rows, frames=ramps.repeat(NUM_FRAMES, 1), frame_pad_mask=0 * rows.frame_pad_mask > 0)
    batch = shown(rows, CROPS)
    assert not batch.frame_pad_mask.any()
    x, y = batch.frames[:, 0, ..., 0].float() / 4, batch.frames[:, 0, ..., 1].float() / 4
    sides = (x[:, 5, -1] - x[:, 5, 0]) * 20 / 19
    np.testing.assert_allclose(sides, (y[:, -1, 5] - y[:, 0, 5]) * 20 / 19, atol=0.6)
    short_px = 48 * 20 / sides.numpy()
    assert 23.5 < short_px.min() < 24.6
    assert 29.2 < short_px.max() < 30.6
    assert x[:, 0, 0].min() < 2
    assert x[:, 0, -1].max() > 45


def test_a_crop_of_the_whole_short_side_is_torchs_own_interpolation() -> None:
    rows = part(make_rows(4), 0, 1)
    config = AugmentationConfig(crop_px=20, short_side_px=(20, 20))
    frames = torch.from_numpy(rows.frames[0]).permute(0, 3, 1, 2).float()
    expected = F.interpolate(frames, (20, 20), mode="bilinear").permute(0, 2, 3, 1)
    assert (shown(rows, config, is_training=False).frames[0] - expected).abs().max() <= 0.501


def test_evaluation_shows_the_middle_and_nothing_else() -> None:
    rows = make_rows(8, caption="a dog")
    config = dataclasses.replace(PAPER, crop_px=9, short_side_px=(13, 40))
    batch = shown(rows, config, is_training=False)
    assert torch.equal(
        batch.frames, shown(dataclasses.replace(rows, epoch=9), config, seed=5, is_training=False).frames
    )
    wide = rows.frames[3]  # 13 × 48 px: the scale is 1, so that the crop is a slice between pixels 19 and a half
    between = (wide[:, 2:11, 19:28].astype(int) + wide[:, 2:11, 20:29]) / 2
    assert np.abs(batch.frames[3].numpy() - between).max() <= 0.501
    whole = make_batch(rows)
    assert (
        augment(
            whole, draw_augmentation(rows, dataclasses.replace(MIRROR, num_operations=2), seed=0, is_training=False)
        )
        is whole
    )


def test_nothing_is_drawn_and_nothing_done_unless_asked_for() -> None:
    rows = make_rows(2)
    assert draw_augmentation(rows, AugmentationConfig(), seed=0, is_training=True) is None
    batch = make_batch(rows)
    assert augment(batch, None) is batch


def as_image(rows: ClipRows, row: int) -> Image.Image:
    return Image.fromarray(rows.frames[row, 0])


BLEND = 1 + 0.9 * 0.6
BY_PILLOW = {
    (Operation.BRIGHTNESS, 0.6): lambda image: ImageEnhance.Brightness(image).enhance(BLEND),
    (Operation.BRIGHTNESS, -0.6): lambda image: ImageEnhance.Brightness(image).enhance(2 - BLEND),
    (Operation.CONTRAST, 0.6): lambda image: ImageEnhance.Contrast(image).enhance(BLEND),
    (Operation.CONTRAST, -0.6): lambda image: ImageEnhance.Contrast(image).enhance(2 - BLEND),
    (Operation.SATURATION, 0.6): lambda image: ImageEnhance.Color(image).enhance(BLEND),
    (Operation.SHARPNESS, 0.6): lambda image: ImageEnhance.Sharpness(image).enhance(BLEND),
    (Operation.SHARPNESS, -0.6): lambda image: ImageEnhance.Sharpness(image).enhance(2 - BLEND),
    (Operation.AUTO_CONTRAST, 0.6): ImageOps.autocontrast,
    (Operation.EQUALISE, 0.6): ImageOps.equalize,
    (Operation.INVERT, 0.6): ImageOps.invert,
    (Operation.POSTERISE, 0.6): lambda image: ImageOps.posterize(image, 2),
    (Operation.POSTERISE, -1.0): lambda image: ImageOps.posterize(image, 1),
    (Operation.SOLARISE, 0.602): lambda image: ImageOps.solarize(image, 102),
}


@pytest.mark.parametrize(("change", "by_pillow"), BY_PILLOW.items(), ids=[f"{o}{s}" for o, s in BY_PILLOW])
def test_colours_change_as_pillow_changes_them(change: tuple[Operation, float], by_pillow) -> None:
    rows = make_rows(1)
    rows = dataclasses.replace(rows, frames=rows.frames[:, :1], frame_pad_mask=rows.frame_pad_mask[:, :1])
    found = by_hand(rows, change).frames[0, 0]
    expected = torch.from_numpy(np.array(by_pillow(as_image(rows, 0))))
    inner = slice(1, -1)  # Pillow leaves the outermost pixels as they are where it looks at neighbours
    assert distance(found[inner, inner], expected[inner, inner]) <= 2


def test_every_operation_of_colour_has_its_function() -> None:
    assert {*COLOUR_CHANGES, *LARGEST_MOVE} == {*Operation}
    assert not {*COLOUR_CHANGES} & {*LARGEST_MOVE}


@pytest.mark.parametrize(
    ("operation", "inverse"),
    [
        (Operation.ROTATE, (np.cos(np.pi / 12), -np.sin(np.pi / 12), np.sin(np.pi / 12), np.cos(np.pi / 12), 0, 0)),
        (Operation.SHEAR_X, (1, 0.15, 0, 1, 0, 0)),
        (Operation.SHEAR_Y, (1, 0, 0.15, 1, 0, 0)),
        (Operation.TRANSLATE_X, (1, 0, 0, 1, 0.225, 0)),
        (Operation.TRANSLATE_Y, (1, 0, 0, 1, 0, 0.225)),
    ],
)
def test_pixels_move_as_pillow_moves_them(operation: Operation, inverse: tuple[float, ...]) -> None:
    rows = make_rows(4)
    batch = by_hand(rows, (operation, 0.5))
    for row, (height, width) in enumerate(SHAPES):
        a, b, c, d, along, below = inverse
        shift = (
            width / 2 * (1 - a) - height / 2 * b + along * width,
            height / 2 * (1 - d) - width / 2 * c + below * height,
        )
        image = as_image(rows, row).crop((0, 0, width, height))
        moved = image.transform(
            image.size, Image.Transform.AFFINE, (a, b, shift[0], c, d, shift[1]), Image.Resampling.BILINEAR
        )
        there = (
            image.convert("L")
            .point(lambda _: 255)
            .transform(image.size, Image.Transform.AFFINE, (a, b, shift[0], c, d, shift[1]))
        )
        is_inside = torch.from_numpy(np.array(there) > 0)
        is_shown = ~batch.frame_pad_mask[row, 0, :height, :width]
        assert (is_inside != is_shown).float().mean() < 0.02
        expected, found = torch.from_numpy(np.array(moved)), batch.frames[row, 0, :height, :width]
        both = is_inside & is_shown
        assert (expected[both].int() - found[both].int()).abs().float().mean() < 1.5
        assert not batch.frames[row, 0][batch.frame_pad_mask[row, 0]].any()


def test_as_many_operations_are_drawn_and_as_strong_ones_as_configured() -> None:
    rows = make_rows(200)
    config = AugmentationConfig(num_operations=14, operation_probability=0.5, magnitude=5.0)
    drawn = draw_augmentation(rows, config, seed=0, is_training=True)
    assert drawn is not None
    counts: Counter[Operation] = Counter()
    strengths = []
    for change in drawn.colour_changes:
        counts[change.operation] += len(change.rows)
        strengths.append(change.strengths)
    assert {*counts} == {*COLOUR_CHANGES}
    assert all(abs(count - 100) < 35 for count in counts.values())
    sizes = torch.cat(strengths).abs()
    assert float(sizes.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(sizes.std()) == pytest.approx(0.05, abs=0.005)
    assert 0.45 < float((torch.cat(strengths) > 0).float().mean()) < 0.55


def test_floats_have_the_mean_and_deviation_of_imagenet_taken_out() -> None:
    batch = shown(make_rows(8), PAPER)
    frames = normalise(batch.frames)
    assert frames.shape == (8, NUM_FRAMES, 3, 20, 20)
    restored = frames * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
    torch.testing.assert_close(restored * 255, batch.frames.permute(0, 1, 4, 2, 3).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_px": 20}, "must be set both or neither, got 20 and None"),
        ({"short_side_px": (20, 30)}, r"must be set both or neither, got None and \(20, 30\)"),
        ({"crop_px": 20, "short_side_px": (19, 30)}, r"short_side_px must be a range .* got \(19, 30\) for 20"),
        ({"crop_px": 20, "short_side_px": (30, 24)}, r"short_side_px must be a range .* got \(30, 24\) for 20"),
        ({"crop_px": 20, "short_side_px": (24, 30), "long_sides_px": (20,)}, "long_sides_px is for whole frames"),
        ({"long_sides_px": (0, 20)}, r"long_sides_px must be at least 1 each, got \(0, 20\)"),
        ({"flip_probability": 1.5}, r"flip_probability must lie in \[0, 1\], got 1\.5"),
        ({"operation_probability": -0.5}, r"operation_probability must lie in \[0, 1\], got -0\.5"),
        ({"magnitude": 11.0}, r"magnitude must lie in \[0, 10\], got 11"),
        ({"num_operations": 15}, r"num_operations must lie in \[0, 14\], got 15"),
    ],
)
def test_what_cannot_be_shown_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentationConfig(**fields)
