"""The visual encoders behind one interface, and which of them a configuration asks for.

frames (B, T, 3, H, W), pad mask (B, T, H, W) ─► backbone ─► 1 × 1 projection ─► grid (B, T, D, h, w), its pad mask

ResNet-50, PVTv2 and Transformers' backbones see every frame as an image, all frames of a batch at once; Video Swin
(snps3_model/video_swin.py) sees the clip.

Transformers is imported by what uses it: it takes two seconds, which CNNs from scratch and Video Swin do without.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snps3_model.config import SCRATCH_ENCODERS, VisualConfig
from snps3_model.video_swin import GEOMETRIES, VideoSwin
from snps3_model.visual import ClipCNN, SmallCNN

SMALLEST_PX = 32
"""Shortest side of a frame for encoders of stride 32."""

PVT_REDUCTION_EPS = 1e-5
"""PVTv2's release normalises patch embeddings and reduced keys with torch's default, all else with 1e-6."""

PVT_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "pvt_v2_b0": ((32, 64, 160, 256), (2, 2, 2, 2), (8, 8, 4, 4)),
    "pvt_v2_b1": ((64, 128, 320, 512), (2, 2, 2, 2), (8, 8, 4, 4)),
    "pvt_v2_b2": ((64, 128, 320, 512), (3, 4, 6, 3), (8, 8, 4, 4)),
    "pvt_v2_b3": ((64, 128, 320, 512), (3, 4, 18, 3), (8, 8, 4, 4)),
    "pvt_v2_b4": ((64, 128, 320, 512), (3, 8, 27, 3), (8, 8, 4, 4)),
    "pvt_v2_b5": ((64, 128, 320, 512), (3, 6, 40, 3), (4, 4, 4, 4)),
}
"""Widths, depths and feed-forward ratios of the four stages."""


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by stored statistics; neither they nor scale and shift are ever trained."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.eps = eps

    def forward(self, features: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C h w"]:
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        scale, shift = (part.to(features.dtype)[:, None, None] for part in (scale, shift))
        return torch.addcmul(shift, features, scale)


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
        """Stages are computed again in the backward pass instead of kept."""
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
        """Stages are computed again in the backward pass instead of kept."""
        self.network.activation_checkpointing_enable({"use_reentrant": False})


class PublicBackbone(nn.Module):
    """Any image network of Transformers: the last feature map of its backbone, or its patch tokens as a grid."""

    def __init__(self, config: Any, width: int = 0, unreached: frozenset[str] = frozenset()) -> None:
        """`width`: channels of the grid; `unreached`: parameters that it does not depend on, which stay as they are."""
        super().__init__()
        self.patch_px, self.width, self.unreached = side_px(config, "patch_size", 1), width, unreached
        self.network = network_of(config)
        freeze_batch_norms(self.network)
        parameters = inspect.signature(self.network.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        for name in unreached:
            self.network.get_parameter(name).requires_grad_(False)

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D h w"]:
        output = self.network(images, **self.options)
        if hasattr(output, "feature_maps"):
            return output.feature_maps[-1]
        height, width = (side // self.patch_px for side in images.shape[-2:])
        patches = output.last_hidden_state[:, -height * width :]  # class and register tokens stand before them
        return patches.transpose(1, 2).unflatten(2, (height, width))

    def checkpoint_activations(self) -> None:
        """Layers are computed again in the backward pass instead of kept."""
        if not self.network.supports_gradient_checkpointing:
            raise ValueError(
                f"model.visual.activation_checkpointing: {type(self.network).__name__} cannot compute its activations "
                "again; leave activation_checkpointing off, or take another model.visual.backbone"
            )
        self.network.activation_checkpointing_enable({"use_reentrant": False})


class VisualEncoder(nn.Module):
    """A backbone with the projection to the network's width; the mask is that of the cells' upper left pixels."""

    def __init__(self, backbone: Any, hidden: int, *, is_frozen: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = (
            nn.Identity() if backbone.width == hidden else nn.Conv2d(backbone.width, hidden, kernel_size=1)
        )
        self.multiple_px, self.is_frozen = getattr(backbone, "patch_px", 1), is_frozen
        if is_frozen:
            backbone.requires_grad_(False)

    def forward(
        self, frames: Float[Tensor, "B T 3 H W"], pad_mask: Bool[Tensor, "B T H W"]
    ) -> tuple[Float[Tensor, "B T D h w"], Bool[Tensor, "B T h w"]]:
        """The feature grid and its pad mask (True = padding)."""
        B, T, _, height, width = frames.shape
        if problem := size_problem(height, width, self.multiple_px):
            raise ValueError(problem)
        if isinstance(self.backbone, VideoSwin):
            features = self.backbone(frames).flatten(0, 1)
        else:
            features = self.backbone(frames.flatten(0, 1))
        grid = self.projection(features).unflatten(0, (B, T))
        return grid, grid_mask(pad_mask, grid.shape[-2], grid.shape[-1])

    def train(self, mode: bool = True) -> VisualEncoder:
        """Training mode; a frozen backbone stays in evaluation mode, without stochastic depth."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self


def grid_mask(pad_mask: Bool[Tensor, "B T H W"], height: int, width: int) -> Bool[Tensor, "B T h w"]:
    """The pad mask at the resolution of the grid: nearest pixel ⌊i·in/out⌋ on each axis."""
    rows = torch.arange(height, device=pad_mask.device) * pad_mask.shape[-2] // height
    columns = torch.arange(width, device=pad_mask.device) * pad_mask.shape[-1] // width
    return pad_mask[..., rows[:, None], columns]


def make_encoder(config: VisualConfig, hidden: int) -> nn.Module:
    """The encoder that `config` names, with random weights and grids of `hidden` channels.

    Called as `grid, grid_mask = encoder(frames, pad_mask)`. Weights come afterwards, from
    `snps3_model.visual_weights.load_visual_weights` or a checkpoint.
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
        backbone = PublicBackbone(public, *explored(public))
    if config.activation_checkpointing:
        backbone.checkpoint_activations()
    return VisualEncoder(backbone, hidden, is_frozen=config.frozen)


def public_config(config: VisualConfig) -> Any:
    """The image network that the folder or hub name `config.backbone` describes; of CLIP and its like the vision side.

    Raises FileNotFoundError where nothing is found, ValueError for a network that sees no images.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING

    assert config.backbone is not None, "VisualConfig asks for a backbone"
    try:
        public = AutoConfig.from_pretrained(config.backbone)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"model.visual.backbone={config.backbone} is neither a folder with a config.json that Transformers knows "
            f"nor a name on the hub that can be reached; download the model and name its folder ({error})"
        ) from error
    public = getattr(public, "vision_config", public)
    known = type(public) in MODEL_FOR_BACKBONE_MAPPING or type(public) in MODEL_MAPPING
    if not known or not (hasattr(public, "num_channels") or hasattr(public, "patch_size")):
        raise ValueError(
            f"model.visual.backbone={config.backbone} is a {public.model_type!r}, which is no image network of "
            "Transformers; take one of AutoBackbone (dinov2, dinov3_vit, convnext, swin …), a ViT or a CLIP"
        )
    if config.drop_path:
        if not hasattr(public, "drop_path_rate"):
            raise ValueError(
                f"model.visual.drop_path={config.drop_path}: {public.model_type!r} has no stochastic depth; set it to 0"
            )
        public.drop_path_rate = config.drop_path
    return public


def network_of(config: Any) -> Any:
    """The backbone of `config` with random weights, or the whole model where Transformers has no backbone of it."""
    from transformers import AutoBackbone, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING

    if type(config) in MODEL_FOR_BACKBONE_MAPPING:
        return AutoBackbone.from_config(config)
    model_class = MODEL_MAPPING[type(config)]
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        return AutoModel.from_config(config, add_pooling_layer=False)
    return AutoModel.from_config(config)


def explored(config: Any) -> tuple[int, frozenset[str]]:
    """Channels of the network's grid, and the parameters that its grid does not depend on; nothing is computed.

    The latter (mask tokens, norms before a pooler) must not ask for a gradient: DDP would wait for it.
    """
    patch = side_px(config, "patch_size", 1)
    side = -(-max(SMALLEST_PX, side_px(config, "image_size", 224)) // patch) * patch
    with torch.device("meta"):
        backbone = PublicBackbone(config).eval()
        grid = backbone(torch.zeros(1, 3, side, side))
    grid.sum().backward()
    parameters = backbone.network.named_parameters()
    return grid.shape[1], frozenset(name for name, parameter in parameters if parameter.grad is None)


def side_px(config: Any, name: str, default: int) -> int:
    """Side of the images or patches of a network, the field `name` of its configuration, if that says something."""
    size = getattr(config, name, default) or default
    return int(size if isinstance(size, int) else max(size))


def freeze_batch_norms(network: nn.Module) -> None:
    """Every batch normalisation of `network` becomes a frozen one: padding and batch mates have no say in it."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, FrozenBatchNorm(child.num_features, child.eps))


def frame_size_problem(config: VisualConfig, height: int, width: int) -> str | None:
    """Why the encoder of `config` cannot take frames of this size, with the remedy; None if it can."""
    if config.encoder in SCRATCH_ENCODERS:
        return None
    multiple = side_px(public_config(config), "patch_size", 1) if config.encoder == "auto" else 1
    return size_problem(height, width, multiple)


def size_problem(height: int, width: int, multiple_px: int) -> str | None:
    """Why frames of height × width pixels are refused; None if they are taken."""
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
