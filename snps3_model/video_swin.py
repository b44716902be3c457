"""Video Swin (Liu et al., CVPR 2022) that keeps every frame: attention in shifted windows of 8 frames × 7 × 7 cells.

frames (B, T, 3, H, W) ─ patches 4 × 4 px, two frames each, every frame ─► cells (B, T, H/4, W/4, C)
  ─► four stages of blocks, every second with shifted windows; between stages 2 × 2 cells merge into one, twice as wide
  ─► grid (B, T, 8C, H/32, W/32)

Module names are those of the public releases, so their weights load by name.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Triple = tuple[int, ...]
"""Time, height, width."""


@dataclass(frozen=True, kw_only=True)
class SwinGeometry:
    """Sizes of a Video Swin."""

    embed: int
    """Width of the first stage; each later one is twice as wide."""
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: Triple = (8, 7, 7)
    patch: tuple[int, int, int] = (2, 4, 4)

    @property
    def width(self) -> int:
        """Channels of the grid."""
        return self.embed * 2 ** (len(self.depths) - 1)


GEOMETRIES = {
    "video_swin_tiny": SwinGeometry(embed=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    "video_swin_small": SwinGeometry(embed=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
    "video_swin_base": SwinGeometry(embed=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
}


@dataclass(frozen=True)
class WindowLayout:
    """Partition of a stage's cells into windows."""

    window: Triple
    shift: Triple
    padded: Triple
    """Size of the stage, padded to whole windows."""
    index: Int64[Tensor, "N N"]
    """Row of the bias table for each pair of cells of a window."""
    blocked: Bool[Tensor, "W N N"] | None
    """Pairs that share a window only because of the cyclic shift and are no neighbours; None without a shift."""


def window_layout(
    size: Triple, window: Triple, shift: Triple, *, reference: bool = False, device: torch.device | None = None
) -> WindowLayout:
    """Return the layout of a stage of `size` cells; `window` is that of the bias table.

    `reference` reads the table as the public code does: with the upper left corner of the full window's index, which
    gives wrong offsets when height or width is cut.
    """
    used, used_shift = effective_window(size, window, shift)
    padded = tuple(-(-s // w) * w for s, w in zip(size, used, strict=True))
    index = relative_index(window if reference else used, window, device)[: prod(used), : prod(used)]
    blocked = shift_mask(padded, used, used_shift, device) if any(used_shift) else None
    return WindowLayout(used, used_shift, padded, index, blocked)


def effective_window(size: Triple, window: Triple, shift: Triple) -> tuple[Triple, Triple]:
    """Return window and shift fitted to `size`: along an axis that one window covers, the window is cut to the size and
    not shifted."""
    cut = [s <= w for s, w in zip(size, window, strict=True)]
    used = tuple(s if is_cut else w for s, w, is_cut in zip(size, window, cut, strict=True))
    return used, tuple(0 if is_cut else s for s, is_cut in zip(shift, cut, strict=True))


def relative_index(window: Triple, table: Triple, device: torch.device | None = None) -> Int64[Tensor, "N N"]:
    """Return for each pair of cells of `window` the row of its offset in the bias table, which has the size for windows
    of `table`."""
    axes = [torch.arange(length, device=device) for length in window]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    offsets = cells[:, :, None] - cells[:, None, :]
    time, height, width = (offset + length - 1 for offset, length in zip(offsets, table, strict=True))
    return (time * (2 * table[1] - 1) + height) * (2 * table[2] - 1) + width


def shift_mask(
    padded: Triple, window: Triple, shift: Triple, device: torch.device | None = None
) -> Bool[Tensor, "W N N"]:
    """Return True for pairs of cells that may not attend to each other after the cyclic shift."""
    axes = []
    for length, edge, step in zip(padded, window, shift, strict=True):
        place = torch.arange(length, device=device)
        axes.append((place >= length - edge).long() + (place >= length - step).long() if step else place * 0)
    time, height, width = torch.meshgrid(*axes, indexing="ij")
    region = ((time * 3 + height) * 3 + width)[None, ..., None]
    region = partition(region, window)[0, :, :, 0]
    return region[:, :, None] != region[:, None, :]


def partition(cells: Tensor, window: Triple) -> Tensor:
    """Return cells (B, T, H, W, C) as windows (B, number, cells of a window, C); sizes are multiples of the window."""
    B, T, H, W, C = cells.shape
    t, h, w = window
    windows = cells.view(B, T // t, t, H // h, h, W // w, w, C)
    return windows.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, t * h * w, C)


def join(windows: Tensor, window: Triple, padded: Triple) -> Tensor:
    """Invert `partition`: return cells (B, T, H, W, C)."""
    B, C = windows.shape[0], windows.shape[-1]
    counts = tuple(length // edge for length, edge in zip(padded, window, strict=True))
    cells = windows.view(B, *counts, *window, C)
    return cells.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, *padded, C)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples and scales it up for the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return branch
        kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * (kept / (1 - self.rate)).to(branch.dtype)


class WindowAttention(nn.Module):
    """Self-attention inside each window, with a learned bias per offset and head."""

    def __init__(self, width: int, num_heads: int, window: Triple) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        num_offsets = prod(2 * length - 1 for length in window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_offsets, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Float[Tensor, "B W N C"], layout: WindowLayout) -> Float[Tensor, "B W N C"]:
        B, W, N, C = windows.shape
        heads = self.num_heads
        query, key, value = self.qkv(windows).view(B, W, N, 3, heads, C // heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[layout.index].permute(2, 0, 1).to(query.dtype)
        if layout.blocked is None:
            groups, mask = (B * W, heads), bias[None]
        else:  # all windows of a sample share a row, so that the mask need not be copied for each sample
            groups = (B, W * heads)
            mask = bias.expand(W, heads, N, N).masked_fill(layout.blocked[:, None], float("-inf")).view(1, -1, N, N)
        query, key, value = (part.reshape(*groups, N, -1) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(attended.view(B, W, heads, N, -1).transpose(2, 3).reshape(B, W, N, C))


class SwinBlock(nn.Module):
    """Window attention and feed-forward, each after a norm and with a residual connection."""

    def __init__(self, width: int, num_heads: int, window: Triple, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, num_heads, window)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width)
        layers = {"fc1": nn.Linear(width, 4 * width), "gelu": nn.GELU(), "fc2": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, cells: Float[Tensor, "B T H W C"], layout: WindowLayout) -> Float[Tensor, "B T H W C"]:
        cells = cells + self.drop_path(self.attend(self.norm1(cells), layout))
        return cells + self.drop_path(self.mlp(self.norm2(cells)))

    def attend(self, cells: Tensor, layout: WindowLayout) -> Tensor:
        _, T, H, W, _ = cells.shape
        time, height, width = layout.padded
        cells = F.pad(cells, (0, 0, 0, width - W, 0, height - H, 0, time - T))
        if layout.blocked is not None:
            cells = cells.roll([-step for step in layout.shift], dims=(1, 2, 3))
        cells = join(self.attn(partition(cells, layout.window), layout), layout.window, layout.padded)
        if layout.blocked is not None:
            cells = cells.roll(layout.shift, dims=(1, 2, 3))
        return cells[:, :T, :H, :W]


class PatchMerging(nn.Module):
    """Merges 2 × 2 cells of a frame into one, twice as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, cells: Float[Tensor, "B T H W C"]) -> Float[Tensor, "B T h w D"]:
        cells = F.pad(cells, (0, 0, 0, cells.shape[3] % 2, 0, cells.shape[2] % 2))
        neighbours = [cells[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))


class SwinStage(nn.Module):
    """Blocks of one width, every second with shifted windows, followed by patch merging except in the last stage."""

    def __init__(
        self, width: int, num_heads: int, window: Triple, drop_paths: list[float], *, is_last: bool, reference: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(width, num_heads, window, rate) for rate in drop_paths)
        self.downsample = None if is_last else PatchMerging(width)
        self.window, self.reference = window, reference
        self.is_checkpointed = False

    def forward(self, cells: Float[Tensor, "B T H W C"]) -> Float[Tensor, "B T h w D"]:
        _, T, H, W, _ = cells.shape
        shifts = ((0, 0, 0), tuple(length // 2 for length in self.window))
        layouts = [
            window_layout((T, H, W), self.window, shift, reference=self.reference, device=cells.device)
            for shift in shifts
        ]
        for number, block in enumerate(self.blocks):
            layout = layouts[number % 2]
            if self.is_checkpointed and self.training:
                cells = checkpoint(block, cells, layout, use_reentrant=False)
            else:
                cells = block(cells, layout)
        return cells if self.downsample is None else self.downsample(cells)


class PatchEmbedding(nn.Module):
    """Patches of 4 × 4 px over a frame and the next; a frame of zeros follows the last one, so T is kept."""

    def __init__(self, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv3d(3, width, kernel_size=patch, stride=(1, patch[1], patch[2]))
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T h w C"]:
        length, height, width = self.patch
        below, right = -frames.shape[-2] % height, -frames.shape[-1] % width
        video = F.pad(frames.transpose(1, 2), (0, right, 0, below, 0, length - 1))
        return self.norm(self.proj(video).permute(0, 2, 3, 4, 1))


class VideoSwin(nn.Module):
    """The four stages and the final norm; `drop_path` is the rate of the last block, up to which it rises linearly."""

    def __init__(self, geometry: SwinGeometry, *, drop_path: float = 0.0, reference: bool = False) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(geometry.embed, geometry.patch)
        self.width = geometry.width
        num_blocks, last = sum(geometry.depths), len(geometry.depths) - 1
        rates = (drop_path * number / max(num_blocks - 1, 1) for number in range(num_blocks))
        self.layers = nn.ModuleList(
            SwinStage(
                geometry.embed * 2**stage,
                num_heads,
                geometry.window,
                list(islice(rates, depth)),
                is_last=stage == last,
                reference=reference,
            )
            for stage, (depth, num_heads) in enumerate(zip(geometry.depths, geometry.heads, strict=True))
        )
        self.norm = nn.LayerNorm(geometry.width)
        self.apply(_initialise)

    def forward(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T D h w"]:
        cells = self.patch_embed(frames)
        for stage in self.layers:
            cells = stage(cells)
        return self.norm(cells).permute(0, 1, 4, 2, 3)

    def checkpoint_activations(self) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        for stage in self.layers:
            assert isinstance(stage, SwinStage)
            stage.is_checkpointed = True


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
