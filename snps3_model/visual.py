"""Frames to features: the CNNs that learn from scratch, and pooling.

frames (B, T, 3, H, W) ──encoder──► grid (B, T, D, h, w) ──pool──► one token per frame (B, T, D)
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from snps3_model.config import VisualConfig
from snps3_model.gather import Gather
from snps3_model.padded_norm import PaddedBatchNorm


class SmallCNN(nn.Module):
    """A few 3×3 convolutions with batch normalisation, trained from scratch: the encoder of `tiny` until version 0.1.0.

    Each convolution gets two more channels with every pixel's position in the real frame (x, y in [−1, 1]; Liu et al.,
    NeurIPS 2018), since pooling over the grid would otherwise lose where in the frame an object is. For each but the
    first, an eighth of the channels comes from the previous frame and an eighth from the next (temporal shift; Lin et
    al., ICCV 2019), so that features can encode motion, as those of Video Swin do.
    """

    def __init__(self, config: VisualConfig, hidden: int) -> None:
        super().__init__()
        first, *_, last = config.channels
        self.convolutions = nn.ModuleList([self.make_stem(first)])
        for layer, (i, o) in enumerate(itertools.pairwise(config.channels), 2):
            stride = 1 if layer == len(config.channels) else 2
            self.convolutions.append(nn.Conv2d(i + 2, o, kernel_size=3, stride=stride, padding=1, bias=False))
        self.norms = nn.ModuleList(PaddedBatchNorm(o, frozen=config.frozen_batch_norm) for o in config.channels)
        self.projection = self.make_projection(last, hidden)

    def make_stem(self, channels: int) -> nn.Conv2d:
        """Return the first convolution."""
        return nn.Conv2d(3 + 2, channels, kernel_size=3, stride=2, padding=1, bias=False)

    def make_projection(self, channels: int, hidden: int) -> nn.Module:
        """Return the projection from features to tokens of the network's width."""
        return nn.Conv2d(channels, hidden, kernel_size=1)

    def forward(
        self, frames: Float[Tensor, "B T 3 H W"], pad_mask: Bool[Tensor, "B T H W"]
    ) -> tuple[Float[Tensor, "B T D h w"], Bool[Tensor, "B T h w"]]:
        """Return the feature grid and its pad mask (True = padding)."""
        features, is_real = self.features(frames, pad_mask)
        grid, is_padding = self.projection(features), (is_real < 0.5)[:, 0]
        return grid.unflatten(0, frames.shape[:2]), is_padding.unflatten(0, frames.shape[:2])

    def features(
        self, frames: Float[Tensor, "B T 3 H W"], pad_mask: Bool[Tensor, "B T H W"]
    ) -> tuple[Float[Tensor, "N C h w"], Float[Tensor, "N 1 h w"]]:
        """Return the convolutions' features of N = B·T frames, 0 on padding, and a mask that is 1 on real cells."""
        is_real = (~pad_mask).flatten(0, 1)[:, None].to(frames.dtype)
        features = frames.flatten(0, 1) * is_real
        for layer, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            assert isinstance(convolution, nn.Conv2d)
            if convolution.in_channels > features.shape[1]:  # all but the first of `ClipCNN`
                # channels last: up to 1.7 times as fast on a CPU
                parts = features.permute(0, 2, 3, 1), places(is_real) * is_real
                clips, planes = (part.unflatten(0, frames.shape[:2]) for part in parts)
                shifted = TemporalShift.apply(clips, planes, clips.shape[-1] // 8 if layer else 0)
                features = shifted.flatten(0, 1).permute(0, 3, 1, 2)
            rows, columns = convolution.stride
            is_real = is_real[..., ::rows, ::columns]  # the pixels on which the kernel is centred
            features = norm(convolution(features), is_real, rectified=True)
        return features, is_real


class ClipCNN(SmallCNN):
    """The encoder of the `tiny` preset: a CNN with one cell per frame, computed from it and its two neighbours.

    | `SmallCNN` | here | why |
    |---|---|---|
    | first convolution 3 × 3, stride 2 | 7 × 7, stride 4 | large feature maps dominate the run time |
    | mean of each frame | its mean and its maximum, normalised | an object of 16 px makes up a sixteenth of the mean |
    | an eighth of the channels from each neighbour | after pooling all of them too | motion is a difference |
    """

    def __init__(self, config: VisualConfig, hidden: int) -> None:
        super().__init__(config, hidden)
        self.pooled_norm = PaddedBatchNorm(2 * config.channels[-1], frozen=config.frozen_batch_norm)

    def make_stem(self, channels: int) -> nn.Conv2d:
        """Return the first convolution; positions join later, where they cost less."""
        return nn.Conv2d(3, channels, kernel_size=7, stride=4, padding=3, bias=False)

    def make_projection(self, channels: int, hidden: int) -> nn.Module:
        """Return the projection of mean and maximum of three consecutive frames."""
        return nn.Linear(6 * channels, hidden)

    def forward(
        self, frames: Float[Tensor, "B T 3 H W"], pad_mask: Bool[Tensor, "B T H W"]
    ) -> tuple[Float[Tensor, "B T D 1 1"], Bool[Tensor, "B T 1 1"]]:
        """Return a cell per frame, and True where a frame is all padding."""
        features, is_real = self.features(frames, pad_mask)
        mean = features.sum((-2, -1)) / is_real.sum((-2, -1)).clamp(min=1.0)
        pooled, is_seen = torch.cat([mean, features.amax((-2, -1))], dim=1), is_real.amax((-2, -1), keepdim=True)
        pooled = self.pooled_norm(pooled[..., None, None], is_seen) * is_seen
        pooled = pooled.flatten(1).unflatten(0, frames.shape[:2])
        around = F.pad(pooled, (0, 0, 1, 1))
        cells = self.projection(torch.cat([around[:, :-2], pooled, around[:, 2:]], dim=-1))
        return cells[..., None, None], (is_seen < 0.5)[:, 0].unflatten(0, frames.shape[:2])


class TemporalShift(torch.autograd.Function):
    """Take the first `fold` channels from the previous frame, as many more from the next; zeros at both ends.

    Planes, channels without a gradient, are appended. Every channel is copied once, forward and backward, into the
    order in which a convolution on a CPU reads it.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Float[Tensor, "B T h w C"], planes: Float[Tensor, "B T c h w"], fold: int
    ) -> Float[Tensor, "B T h w C+c"]:
        ctx.num_channels, ctx.fold = features.shape[-1], fold
        shifted = features.new_empty((*features.shape[:-1], ctx.num_channels + planes.shape[2]))
        first, second = slice(0, fold), slice(fold, 2 * fold)
        copy_shifted(shifted[..., : ctx.num_channels], features, later=first, earlier=second)
        for place in range(planes.shape[2]):
            shifted[..., ctx.num_channels + place] = planes[:, :, place]
        return shifted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0][..., : ctx.num_channels]
        result = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        first, second = slice(0, ctx.fold), slice(ctx.fold, 2 * ctx.fold)
        copy_shifted(result, gradient, later=second, earlier=first)
        return result, None, None


def copy_shifted(
    into: Float[Tensor, "B T h w C"], features: Float[Tensor, "B T h w C"], *, later: slice, earlier: slice
) -> None:
    """Copy features; the channels `later` move one frame on, `earlier` one back, and zeros take their place."""
    into.copy_(features)
    # pad before slicing: the other order leaves one frame of clips of two, which torch.export rejects
    into[..., later] = F.pad(features[..., later], (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
    into[..., earlier] = F.pad(features[..., earlier], (0, 0, 0, 0, 0, 0, 0, 1))[:, 1:]


def places(is_real: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N 2 H W"]:
    """Return each pixel's x and y: −1 and 1 at the first and last real column and row, whatever the padding."""
    x = steps(is_real.amax(-2, keepdim=True), dim=-1)
    y = steps(is_real.amax(-1, keepdim=True), dim=-2)
    return torch.cat([x.expand_as(is_real), y.expand_as(is_real)], dim=1)


def steps(is_real: Tensor, dim: int) -> Tensor:
    """Return equal steps along `dim` from −1 at the first real position to 1 at the last; 0 if there is only one."""
    last = is_real.sum(dim, keepdim=True) - 1
    return (2 * (is_real.cumsum(dim) - 1) - last) / last.clamp(min=1)


def pool(grid: Float[Tensor, "B T D h w"], pad_mask: Bool[Tensor, "B T h w"]) -> Float[Tensor, "B T D"]:
    """Return one token per frame: the mean over the real cells of its grid; 0 for a frame that is all padding."""
    is_real = (~pad_mask)[:, :, None].to(grid.dtype)
    return (grid * is_real).sum((-2, -1)) / is_real.sum((-2, -1)).clamp(min=1.0)


def pool_parts(
    grid: Float[Tensor, "B T D h w"], pad_mask: Bool[Tensor, "B T h w"], side: int
) -> Float[Tensor, "B S D"]:
    """Return `side` × `side` tokens per frame, frame by frame and row by row: the mean over each part's real cells.

    Parts are equal shares of the real frame, whatever its padding; 0 for a part without cells.
    """
    is_real = (~pad_mask).flatten(0, 1)[:, None].to(grid.dtype)
    column, row = ((place + 1) / 2 * side for place in places(is_real).unbind(1))
    part = row.long().clamp(0, side - 1) * side + column.long().clamp(0, side - 1)
    share = F.one_hot(part, side * side).to(grid.dtype) * is_real[:, 0, ..., None]
    share = share / share.sum((1, 2), keepdim=True).clamp(min=1.0)
    tokens = torch.einsum("ndhw,nhwk->nkd", grid.flatten(0, 1), share)
    return tokens.unflatten(0, grid.shape[:2]).flatten(1, 2)


def synchronise(model: nn.Module, gather: Gather) -> None:
    """Make every batch normalisation of `model` use the statistics of all ranks."""
    for module in model.modules():
        if isinstance(module, PaddedBatchNorm):
            module.gather = gather
