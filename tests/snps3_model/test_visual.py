"""A frame's features depend on its real pixels alone; batch normalisation against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snps3_model.config import VisualConfig
from snps3_model.gather import local_gather
from snps3_model.padded_norm import PaddedBatchNorm
from snps3_model.visual import (
    ClipCNN,
    SmallCNN,
    TemporalShift,
    places,
    pool,
    pool_parts,
    synchronise,
)

CONFIG = VisualConfig(channels=(4, 6, 8))
HIDDEN = 5


def small_cnn(kind: type[SmallCNN] = SmallCNN) -> SmallCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(CONFIG, HIDDEN).double()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def padded(frames: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """`frames` (B, T, 3, H, W) in the upper left corner of a larger canvas of noise, and the mask of its padding."""
    B, T, _, real_height, real_width = frames.shape
    canvas = noise(B, T, 3, height, width, seed=99)
    canvas[..., :real_height, :real_width] = frames
    pad_mask = torch.ones(B, T, height, width, dtype=torch.bool)
    pad_mask[..., :real_height, :real_width] = False
    return canvas, pad_mask


@pytest.mark.parametrize("kind", [SmallCNN, ClipCNN])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("canvas", [(8, 8), (8, 16), (24, 9), (11, 13)])
@pytest.mark.parametrize("real", [(4, 8), (8, 4), (8, 8), (5, 7), (7, 1)])
def test_a_frame_has_the_same_feature_whatever_the_padding(
    real: tuple[int, int], canvas: tuple[int, int], is_training: bool, kind: type[SmallCNN]
) -> None:
    frames = noise(2, 2, 3, *real)
    alone, inside = small_cnn(kind).train(is_training), small_cnn(kind).train(is_training)
    expected = pool(*alone(*padded(frames, *real)))
    found = pool(*inside(*padded(frames, *canvas)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(alone.buffers(), inside.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [SmallCNN, ClipCNN])
def test_a_frame_has_the_same_feature_whatever_its_batch_mates(kind: type[SmallCNN]) -> None:
    frames, pad_mask = padded(noise(3, 2, 3, 4, 8), 8, 8)
    network = small_cnn(kind).eval()
    expected = pool(*network(frames[:1], pad_mask[:1]))
    mates = frames.clone()
    mates[1:] = noise(2, 2, 3, 8, 8, seed=7)
    other_mask = pad_mask.clone()
    other_mask[1, ..., 4:, :] = False
    other_mask[2] = True
    torch.testing.assert_close(pool(*network(mates, other_mask))[:1], expected, rtol=1e-12, atol=1e-13)


def test_the_mask_of_the_grid_marks_strips_and_not_only_the_corner() -> None:
    network = small_cnn()
    _, wide = network(*padded(noise(1, 1, 3, 4, 8), 8, 8))
    _, high = network(*padded(noise(1, 1, 3, 8, 4), 8, 8))
    assert wide[0, 0].tolist() == [[False, False], [True, True]]
    assert high[0, 0].tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("kind", [SmallCNN, ClipCNN])
def test_frames_that_are_all_padding_give_zeros_and_no_gradient(kind: type[SmallCNN]) -> None:
    network = small_cnn(kind)
    frames = noise(2, 2, 3, 8, 8).requires_grad_()
    pad_mask = torch.zeros(2, 2, 8, 8, dtype=torch.bool)
    pad_mask[1] = True
    tokens = pool(*network(frames, pad_mask))
    tokens.square().sum().backward()
    assert not tokens[1].any()
    assert tokens[0].any()
    assert frames.grad is not None
    assert not frames.grad[1].any()
    assert frames.grad[0].any()


def test_without_padding_the_cell_of_a_frame_is_what_torchs_layers_give_for_it_and_its_neighbours() -> None:
    network, frames = small_cnn(ClipCNN), noise(2, 3, 3, 16, 12)
    features = frames.flatten(0, 1)
    for layer, convolution in enumerate(network.convolutions):
        if layer:
            height, width = features.shape[-2:]
            y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
            features = shifted(features.unflatten(0, (2, 3))).flatten(0, 1)
            features = torch.cat([features, torch.stack([x, y]).double().expand(6, 2, height, width)], dim=1)
        features = F.relu(F.batch_norm(convolution(features), None, None, training=True))
    pooled = torch.cat([features.mean((-2, -1)), features.flatten(2).max(-1).values], dim=-1)
    pooled = F.batch_norm(pooled, None, None, training=True).unflatten(0, (2, 3))
    nothing = torch.zeros_like(pooled[0, 0])
    for clip, cells in enumerate(network(frames, torch.zeros(2, 3, 16, 12, dtype=torch.bool))[0]):
        row = [nothing, *pooled[clip], nothing]
        expected = torch.stack([network.projection(torch.cat(row[frame : frame + 3])) for frame in range(3)])
        torch.testing.assert_close(cells[..., 0, 0], expected, rtol=1e-6, atol=1e-6)


def shifted(features: Tensor) -> Tensor:
    """The temporal shift of (B, T, C, h, w) in torch's own operations."""
    fold = features.shape[2] // 8
    before, after, still = features.split([fold, fold, features.shape[2] - 2 * fold], dim=2)
    nothing = torch.zeros_like(before[:, :1])
    parts = [torch.cat([nothing, before[:, :-1]], 1), torch.cat([after[:, 1:], nothing], 1), still]
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_the_shift_and_its_gradient_are_those_of_torchs_operations(num_frames: int) -> None:
    clips, planes = noise(2, num_frames, 3, 4, 17).requires_grad_(), noise(2, num_frames, 2, 3, 4, seed=1)
    found = TemporalShift.apply(clips, planes, 2)
    expected = torch.cat([shifted(clips.movedim(-1, 2)), planes], dim=2).movedim(2, -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    weights = noise(*found.shape, seed=2)
    gradients = [torch.autograd.grad((output * weights).sum(), clips)[0] for output in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_reversed_clip_has_other_features() -> None:
    frames, pad_mask = noise(1, 3, 3, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.bool)
    network = small_cnn(ClipCNN).eval()
    forth, back = (pool(*network(clip, pad_mask)) for clip in (frames, frames.flip(1)))
    assert (forth - back.flip(1)).abs().amax(-1).min() > 1e-3


def test_places_run_from_corner_to_corner_of_the_real_frame() -> None:
    _, pad_mask = padded(noise(1, 2, 3, 3, 5), 4, 8)
    x, y = places((~pad_mask).flatten(0, 1)[:, None].float()).unbind(1)
    assert x[1, 0, :5].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert y[1, :3, 4].tolist() == [-1.0, 0.0, 1.0]
    assert torch.equal(x[0], x[1])


def test_without_padding_batch_norm_is_torchs() -> None:
    ours, torchs = PaddedBatchNorm(6).double(), nn.BatchNorm2d(6).double()
    with torch.no_grad():
        for norm in (ours, torchs):
            norm.weight.copy_(noise(6, seed=1))
            norm.bias.copy_(noise(6, seed=2))
    for step in range(3):
        features = (3 * noise(4, 6, 5, 5, seed=10 + step) + 2).requires_grad_()
        gradients = []
        for output in (ours(features, torch.ones(4, 1, 5, 5).double()), torchs(features)):
            gradients.append((output, *torch.autograd.grad(output.sin().sum(), features)))
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean)
    torch.testing.assert_close(ours.running_variance, torchs.running_var)
    features = noise(4, 6, 5, 5, seed=20)
    torch.testing.assert_close(ours.eval()(features, torch.ones(4, 1, 5, 5).double()), torchs.eval()(features))


def test_gradients_of_a_rectified_normalisation_are_those_of_its_formula() -> None:
    norm, features = PaddedBatchNorm(3).double(), noise(4, 3, 6, 6).requires_grad_()
    is_real = (noise(4, 1, 6, 6, seed=1) > 0).double()
    with torch.no_grad():
        norm.weight.copy_(noise(3, seed=2))
        norm.bias.copy_(noise(3, seed=3))
    total = is_real.sum()
    mean = (features * is_real).sum((0, 2, 3), keepdim=True) / total
    variance = ((features - mean).square() * is_real).sum((0, 2, 3), keepdim=True) / total
    weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
    expected = F.relu((features - mean) / (variance + norm.eps).sqrt() * weight + bias) * is_real
    found = norm(features, is_real, rectified=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs, sensitivity = (features, norm.weight, norm.bias), noise(4, 3, 6, 6, seed=4)
    gradients = [torch.autograd.grad((output * sensitivity).sum(), inputs) for output in (found, expected)]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


def test_batch_norm_counts_real_pixels_only() -> None:
    ours, torchs = PaddedBatchNorm(3).double(), nn.BatchNorm2d(3).double()
    features, is_real = noise(4, 3, 6, 6), torch.ones(4, 1, 6, 6, dtype=torch.float64)
    is_real[:2, :, 3:] = 0
    is_real[3] = 0
    chosen = is_real[:, 0] > 0
    as_one_column = features.movedim(1, -1)[chosen].T[None, :, :, None]
    found = ours(features, is_real).movedim(1, -1)[chosen]
    torch.testing.assert_close(found, torchs(as_one_column)[0, :, :, 0].T)
    torch.testing.assert_close(ours.running_variance, torchs.running_var)


def test_a_batch_without_real_pixels_leaves_the_stored_statistics_alone() -> None:
    norm = PaddedBatchNorm(3)
    norm.running_mean.fill_(5.0)
    norm.running_variance.fill_(4.0)
    output = norm(torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
    assert output.isfinite().all()
    assert norm.running_mean.tolist() == [5.0] * 3
    assert norm.running_variance.tolist() == [4.0] * 3


def test_frozen_batch_norm_uses_and_keeps_the_stored_statistics() -> None:
    norm = PaddedBatchNorm(2, frozen=True).train()
    norm.running_mean.fill_(1.0)
    norm.running_variance.fill_(4.0)
    output = norm(torch.full((1, 2, 3, 3), 3.0), torch.ones(1, 1, 3, 3))
    torch.testing.assert_close(output, torch.full((1, 2, 3, 3), 1.0))
    assert norm.running_mean.tolist() == [1.0, 1.0]


def test_synchronised_means_every_batch_norm_gathers() -> None:
    network = small_cnn()
    calls = []

    def gather(rows: Tensor) -> Tensor:
        calls.append(rows.shape)
        return torch.cat([rows, rows])

    synchronise(network, gather)
    frames, pad_mask = padded(noise(2, 2, 3, 8, 8), 8, 8)
    twice = network(frames, pad_mask)[0]
    assert calls == [(1, 2 * channels + 1) for channels in CONFIG.channels]
    synchronise(network, local_gather)
    torch.testing.assert_close(network(frames, pad_mask)[0], twice)


def test_one_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.visual\.channels needs at least 2 convolutions, got \(8,\)"):
        VisualConfig(channels=(8,))


def test_parts_are_the_means_of_the_blocks_of_the_real_frame() -> None:
    grid = noise(2, 3, 5, 6, 4)
    is_padding = torch.zeros(2, 3, 6, 4, dtype=torch.bool)
    is_padding[1, :, 4:] = True  # the second clip is 4 × 4, below it is padding
    tokens = pool_parts(grid, is_padding, 2).unflatten(1, (3, 2, 2))
    for clip, height in enumerate((6, 4)):
        blocks = grid[clip, :, :, :height].unflatten(-2, (2, height // 2)).unflatten(-1, (2, 2)).mean((-3, -1))
        torch.testing.assert_close(tokens[clip], blocks.movedim(1, -1))


def test_one_part_is_the_mean_and_padding_changes_no_part() -> None:
    grid, is_padding = noise(2, 2, 3, 5, 7), torch.zeros(2, 2, 5, 7, dtype=torch.bool)
    torch.testing.assert_close(pool_parts(grid, is_padding, 1), pool(grid, is_padding))
    wider, padding = (torch.nn.functional.pad(tensor, (0, 3, 0, 2), value=1) for tensor in (grid, is_padding))
    torch.testing.assert_close(pool_parts(wider, padding, 3), pool_parts(grid, is_padding, 3))
    nothing = pool_parts(grid, torch.ones_like(is_padding), 2)
    assert torch.equal(nothing, torch.zeros_like(nothing))
