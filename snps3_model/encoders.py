"""The visual encoders behind one interface, and the choice among them by configuration.

frames (B, T, 3, H, W), pad mask (B, T, H, W) ─► backbone ─► 1 × 1 projection ─► grid (B, T, D, h, w), its pad mask

ResNet-50, PVTv2 and most networks of Transformers see every frame as an image, all frames of a batch at once; Video
Swin (snps3_model/video_swin.py), VideoMAE and their like see the clip.

Functions import Transformers themselves: it takes two seconds, and CNNs from scratch and Video Swin do not need it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snps3_model.config import SCRATCH_ENCODERS, Pixels, VisualConfig
from snps3_model.lora import add_low_rank
from snps3_model.public_networks import (
    PIXELS,
    SMALLEST_PX,
    PublicClipBackbone,
    freeze_batch_norms,
    inspect_network,
    patch_px,
    public_class,
    public_config,
)
from snps3_model.video_swin import GEOMETRIES, VideoSwin
from snps3_model.visual import ClipCNN, SmallCNN

PVT_REDUCTION_EPS = 1e-5
"""PVTv2's release normalises patch embeddings and reduced keys with torch's default epsilon, all else with 1e-6."""

PVT_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "pvt_v2_b0": ((32, 64, 160, 256), (2, 2, 2, 2), (8, 8, 4, 4)),
    "pvt_v2_b1": ((64, 128, 320, 512), (2, 2, 2, 2), (8, 8, 4, 4)),
    "pvt_v2_b2": ((64, 128, 320, 512), (3, 4, 6, 3), (8, 8, 4, 4)),
    "pvt_v2_b3": ((64, 128, 320, 512), (3, 4, 18, 3), (8, 8, 4, 4)),
    "pvt_v2_b4": ((64, 128, 320, 512), (3, 8, 27, 3), (8, 8, 4, 4)),
    "pvt_v2_b5": ((64, 128, 320, 512), (3, 6, 40, 3), (4, 4, 4, 4)),
}
"""Widths, depths and feed-forward ratios of the four stages."""


class ResNet50(nn.Module):
    """Transformers' ResNet-50, stride 32, with frozen batch normalisation."""

    width = 2048

    def __init__(self) -> None:
        from transformers import ResNetConfig, ResNetModel

        super().__init__()
        network = ResNetModel(ResNetConfig())
        freeze_batch_norms(network)
        self.embedder, self.encoder = network.embedder, network.encoder
        self.is_checkpointed = False

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D h w"]:
        features = self.embedder(images)
        for stage in self.encoder.stages:
            if self.is_checkpointed and self.training:
                features = checkpoint(stage, features, use_reentrant=False)
            else:
                features = stage(features)
        return features

    def checkpoint_activations(self) -> None:
        """Recompute stages in the backward pass instead of keeping their activations."""
        self.is_checkpointed = True


class PvtV2(nn.Module):
    """Transformers' PVTv2 with the epsilons of the release."""

    def __init__(self, config: Any) -> None:
        from transformers import PvtV2Model

        super().__init__()
        network = PvtV2Model(config)
        for name, module in network.named_modules():
            if name.endswith(("patch_embedding.layer_norm", "attention.layer_norm")):
                assert isinstance(module, nn.LayerNorm)
                module.eps = PVT_REDUCTION_EPS
        self.width = int(config.hidden_sizes[-1])
        self.network = network

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D h w"]:
        return self.network(images).last_hidden_state

    def checkpoint_activations(self) -> None:
        """Recompute stages in the backward pass instead of keeping their activations."""
        self.network.activation_checkpointing_enable({"use_reentrant": False})


class VisualEncoder(nn.Module):
    """A backbone with the projection to the network's width; a cell's mask is that of its upper left pixel.

    Frames come normalised with ImageNet's statistics; for a backbone that was trained with others they are rescaled.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: Any, hidden: int, *, is_frozen: bool = False, pixels: Pixels = "imagenet") -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = (
            nn.Identity() if backbone.width == hidden else nn.Conv2d(backbone.width, hidden, kernel_size=1)
        )
        self.multiple_px, self.is_frozen = getattr(backbone, "patch_px", 1), is_frozen
        self.has_own_pixels = pixels != "imagenet"
        if self.has_own_pixels:
            (mean, std), (given_mean, given_std) = torch.tensor(PIXELS[pixels]), torch.tensor(PIXELS["imagenet"])
            self.register_buffer("scale", (given_std / std)[:, None, None], persistent=False)
            self.register_buffer("shift", ((given_mean - mean) / std)[:, None, None], persistent=False)
        if is_frozen:
            backbone.requires_grad_(False)

    def forward(
        self, frames: Float[Tensor, "B T 3 H W"], pad_mask: Bool[Tensor, "B T H W"]
    ) -> tuple[Float[Tensor, "B T D h w"], Bool[Tensor, "B T h w"]]:
        """Return the feature grid and its pad mask (True = padding)."""
        B, T, _, height, width = frames.shape
        if problem := size_problem(height, width, self.multiple_px):
            raise ValueError(problem)
        if self.has_own_pixels:
            frames = frames * self.scale + self.shift
        if isinstance(self.backbone, VideoSwin | PublicClipBackbone):
            features = self.backbone(frames).flatten(0, 1)
        else:
            features = self.backbone(frames.flatten(0, 1))
        grid = self.projection(features).unflatten(0, (B, T))
        return grid, grid_mask(pad_mask, grid.shape[-2], grid.shape[-1])

    def train(self, mode: bool = True) -> VisualEncoder:
        """Set the training mode; a frozen backbone stays in evaluation mode, without stochastic depth."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self


def grid_mask(pad_mask: Bool[Tensor, "B T H W"], height: int, width: int) -> Bool[Tensor, "B T h w"]:
    """Return the pad mask at the resolution of the grid: nearest pixel ⌊i·in/out⌋ on each axis."""
    rows = torch.arange(height, device=pad_mask.device) * pad_mask.shape[-2] // height
    columns = torch.arange(width, device=pad_mask.device) * pad_mask.shape[-1] // width
    return pad_mask[..., rows[:, None], columns]


def make_encoder(config: VisualConfig, hidden: int) -> nn.Module:
    """Return the encoder that `config` names, with random weights and grids of `hidden` channels.

    Call it as `grid, grid_mask = encoder(frames, pad_mask)`. Load its weights afterwards, with
    `snps3_model.visual_weights.load_visual_weights` or from a checkpoint.
    """
    name = config.encoder
    if name in SCRATCH_ENCODERS:
        return (SmallCNN if name == "small_cnn" else ClipCNN)(config, hidden)
    if name == "resnet50":
        backbone = ResNet50()
    elif name in PVT_SIZES:
        from transformers import PvtV2Config

        widths, depths, ratios = PVT_SIZES[name]
        rate = config.drop_path
        backbone = PvtV2(PvtV2Config(hidden_sizes=widths, depths=depths, mlp_ratios=ratios, drop_path_rate=rate))
    elif name in GEOMETRIES:
        backbone = VideoSwin(GEOMETRIES[name], drop_path=config.drop_path, reference=config.reference_window_index)
    else:
        public = public_config(config)
        backbone = public_class(public)(public, *inspect_network(public))
    if config.activation_checkpointing:
        backbone.checkpoint_activations()
    if config.lora_rank is not None:
        add_low_rank(backbone, config.lora_rank, "model.visual.lora_rank")
    return VisualEncoder(backbone, hidden, is_frozen=config.frozen, pixels=config.pixels)


def frame_size_problem(config: VisualConfig, height: int, width: int, num_frames: int = 1) -> str | None:
    """Return why the encoder of `config` cannot take clips of this size, with the remedy; None if it can. Raise
    ValueError for a network of Transformers that fails on them."""
    if config.encoder != "auto":
        return None if config.encoder in SCRATCH_ENCODERS else size_problem(height, width, 1)
    public = public_config(config)
    if problem := size_problem(height, width, patch_px(public)):
        return problem
    inspect_network(public, (num_frames, height, width))
    return None


def size_problem(height: int, width: int, multiple_px: int) -> str | None:
    """Return why frames of height × width pixels are rejected; None if they are accepted."""
    if min(height, width) < SMALLEST_PX:
        return (
            f"frames of {height} × {width} px are too small: pre-trained encoders need sides of at least "
            f"{SMALLEST_PX} px; raise data.frame_size_px, or take model.visual.encoder=small_cnn"
        )
    if height % multiple_px or width % multiple_px:
        nearest = [max(1, round(side / multiple_px)) * multiple_px for side in (height, width)]
        return (
            f"frames of {height} × {width} px do not fall into the encoder's patches of {multiple_px} px: the rest "
            f"would be cut off; set data.frame_size_px to a multiple, here {nearest[0]} × {nearest[1]}"
        )
    return None
