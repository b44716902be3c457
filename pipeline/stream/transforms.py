"""Transforms on the training device: decoded pixels ─► augmented pixels ─► normalised floats for encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from pipeline.records import IMAGENET_MEAN, IMAGENET_STD, Batch
from pipeline.stream.augmentation import Augmentation
from pipeline.stream.config import Operation

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""
LARGEST_BLEND = 0.9
"""Weight of a blend at strength 1."""


def normalise(frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T 3 H W"]:
    """Move channels first, scale to [0, 1], subtract ImageNet's mean and divide by its standard deviation (§4.3)."""
    mean, std = constant(IMAGENET_MEAN, frames.device), constant(IMAGENET_STD, frames.device)
    return ((frames.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)


def constant(values: Sequence[float], device: torch.device) -> Float[Tensor, " n"]:
    """Return a tensor filled on the device: a copy from the host would wait for all work queued there."""
    return torch.stack([torch.full((), value, device=device) for value in values])


def augment(batch: Batch, drawn: Augmentation | None) -> Batch:
    """Augment a batch as `drawn`, on its device; None returns it unchanged.

    All geometric operations are one bilinear interpolation, and the pad mask moves with the pixels: everything outside
    a clip is padding, zero. Colours are changed afterwards, with statistics over all frames of a clip.
    """
    if drawn is None:
        return batch
    device = batch.frames.device
    shown, pad_mask = resample(
        batch.frames, batch.frame_pad_mask, drawn.maps.to(device, non_blocking=True), drawn.size_px
    )
    is_real = ~pad_mask[:, :, None]
    for change in drawn.colour_changes:
        rows = change.rows.to(device, non_blocking=True)
        strengths = change.strengths.to(device, non_blocking=True)[:, None, None, None, None]
        changed = COLOUR_CHANGES[change.operation](shown[rows], is_real[rows], strengths)
        shown[rows] = changed.clamp(0, 255)
    frames = (shown * is_real).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()
    return dataclasses.replace(batch, frames=frames, frame_pad_mask=pad_mask)


def resample(
    frames: UInt8[Tensor, "B T H W 3"],
    pad_mask: Bool[Tensor, "B T H W"],
    maps: Float[Tensor, "B 2 3"],
    size_px: int,
) -> tuple[Float[Tensor, "B T 3 S S"], Bool[Tensor, "B T S S"]]:
    """Resample each clip by its map to a square of `size_px`; return pixels in [0, 255] and the pad mask.

    A pixel is interpolated between real pixels only, and is padding if less than half of it is real.
    """
    B, T, H, W = pad_mask.shape
    planes = torch.empty(B, T, 4, H, W, device=frames.device)
    planes[:, :, 3] = ~pad_mask
    torch.mul(frames.permute(0, 1, 4, 2, 3), planes[:, :, 3:], out=planes[:, :, :3])
    grid = F.affine_grid(maps, [B, 1, size_px, size_px], align_corners=False)
    sampled = F.grid_sample(planes.flatten(1, 2), grid, align_corners=False).unflatten(1, (T, 4))
    shown, share = sampled[:, :, :3], sampled[:, :, 3:]
    return shown / share.clamp(min=1e-3), share[:, :, 0] < 0.5


ClipFrames = Float[Tensor, "n T 3 H W"]
RealPixels = Bool[Tensor, "n T 1 H W"]
Strengths = Float[Tensor, "n 1 1 1 1"]


def grey(frames: ClipFrames) -> Float[Tensor, "n T 1 H W"]:
    """Return the brightness of each pixel."""
    shares = constant(LUMINANCE, frames.device)[:, None, None]
    return (frames * shares).sum(2, keepdim=True)


def brightness(frames: ClipFrames, is_real: RealPixels, strengths: Strengths) -> ClipFrames:
    """Blend towards black, or away from it."""
    return frames * (1 + strengths * LARGEST_BLEND)


def contrast(frames: ClipFrames, is_real: RealPixels, strengths: Strengths) -> ClipFrames:
    """Blend towards the clip's mean grey, or away from it."""
    total = (grey(frames) * is_real).sum((1, 2, 3, 4), keepdim=True, dtype=torch.float64)
    mean = total / is_real.sum((1, 2, 3, 4), keepdim=True).clamp(min=1)
    return _blend(mean.float(), frames, strengths)


def saturation(frames: ClipFrames, is_real: RealPixels, strengths: Strengths) -> ClipFrames:
    """Blend towards grey, or away from it."""
    return _blend(grey(frames), frames, strengths)


def sharpness(frames: ClipFrames, is_real: RealPixels, strengths: Strengths) -> ClipFrames:
    """Blend towards a mean of 3 × 3 pixels in which the middle counts five times, or away from it."""
    around = F.avg_pool2d(F.pad(frames.flatten(0, 1), (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return _blend((9 * around.unflatten(0, frames.shape[:2]) + 4 * frames) / 13, frames, strengths)


def auto_contrast(frames: ClipFrames, is_real: RealPixels, strengths: Strengths) -> ClipFrames:
    """Stretch each channel from the clip's darkest to its lightest pixel, unless they are equal."""
    lowest = frames.masked_fill(~is_real, 255).amin((1, 3, 4), keepdim=True)
    highest = frames.masked_fill(~is_real, 0).amax((1, 3, 4), keepdim=True)
    span = highest - lowest
    return torch.where(span > 0, (frames - lowest) * (255 / span), frames)


def equalise(frames: ClipFrames, is_real: RealPixels, strengths: Strengths) -> ClipFrames:
    """Map each channel's values so that the clip has about equally many pixels of each."""
    values = frames.round().long().transpose(1, 2).flatten(2)
    weights = is_real.long().expand(frames.shape).transpose(1, 2).flatten(2)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=frames.device)
    counts.scatter_add_(2, values, weights)
    highest = 255 - (counts.flip(2) > 0).long().argmax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // 255
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=frames.device))
    moved = table.gather(2, values).view(frames.transpose(1, 2).shape)
    return moved.transpose(1, 2).float()


def invert(frames: ClipFrames, is_real: RealPixels, strengths: Strengths) -> ClipFrames:
    """Exchange light and dark."""
    return 255 - frames


def posterise(frames: ClipFrames, is_real: RealPixels, strengths: Strengths) -> ClipFrames:
    """Keep the 4 to 1 highest bits of each value; never none, which would be a black clip."""
    step = 2 ** (8 - (4 - (4 * strengths.abs()).floor()).clamp(min=1))
    return frames.round().div(step, rounding_mode="floor") * step


def solarise(frames: ClipFrames, is_real: RealPixels, strengths: Strengths) -> ClipFrames:
    """Invert pixels that are lighter than a threshold; the stronger, the darker the threshold."""
    return torch.where(frames >= 255 * (1 - strengths.abs()), 255 - frames, frames)


def _blend(towards: Tensor, frames: ClipFrames, strengths: Strengths) -> ClipFrames:
    return towards + (frames - towards) * (1 + LARGEST_BLEND * strengths)


COLOUR_CHANGES: dict[Operation, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    Operation(function.__name__): function
    for function in (
        *(brightness, contrast, saturation, sharpness, auto_contrast, equalise),
        *(invert, posterise, solarise),
    )
}
"""Colour operation → function of (frames, is_real, strengths)."""
