"""Networks of Transformers as visual backbones, from a folder in the hub's format or a hub name.

Functions import Transformers themselves: it takes two seconds, and our own encoders do not need it.
"""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.records import IMAGENET_MEAN, IMAGENET_STD
from snps3_model.config import Pixels, VisualConfig

SMALLEST_PX = 32
"""Shortest side of a frame for encoders of stride 32."""
PIXELS: dict[Pixels, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of red, green and blue in [0, 1] that networks were trained with."""
CLIP_NETWORKS = ("videomae", "vivit", "vjepa2")
"""Model types of Transformers that see a clip; their patch tokens are ordered tubelet by tubelet."""


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with stored statistics; statistics, scale and shift are never trained."""

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


class PublicBackbone(nn.Module):
    """Any image network of Transformers: the last feature map of its backbone, or its patch tokens as a grid."""

    def __init__(self, config: Any, width: int = 0, unreached: frozenset[str] = frozenset()) -> None:
        """`width`: channels of the grid; `unreached`: parameters that the grid does not depend on, which are frozen."""
        super().__init__()
        self.patch_px, self.width, self.unreached = patch_px(config), width, unreached
        self.network = network_of(config)
        freeze_batch_norms(self.network)
        parameters = inspect.signature(self.network.forward).parameters
        self.options = {name: True for name in ("interpolate_pos_encoding", "skip_predictor") if name in parameters}
        for name in unreached:
            self.network.get_parameter(name).requires_grad_(False)

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D h w"]:
        output = self.network(images, **self.options)
        if hasattr(output, "feature_maps"):
            return output.feature_maps[-1]
        height, width = (side // self.patch_px for side in images.shape[-2:])
        patches = output.last_hidden_state[:, -height * width :]  # after class and register tokens
        return patches.transpose(1, 2).unflatten(2, (height, width))

    def checkpoint_activations(self) -> None:
        """Recompute layers in the backward pass instead of keeping their activations."""
        if not self.network.supports_gradient_checkpointing:
            raise ValueError(
                f"model.visual.activation_checkpointing: {type(self.network).__name__} cannot compute its activations "
                "again; leave activation_checkpointing off, or take another model.visual.backbone"
            )
        self.network.activation_checkpointing_enable({"use_reentrant": False})


class PublicClipBackbone(PublicBackbone):
    """A network of Transformers that sees the clip: its patch tokens as grids, one for all frames of a tubelet."""

    def __init__(self, config: Any, width: int = 0, unreached: frozenset[str] = frozenset()) -> None:
        super().__init__(config, width, unreached)
        size = config.tubelet_size
        self.tubelet, self.num_frames = size if isinstance(size, int) else size[0], clip_length(config)

    def forward(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T D h w"]:
        if frames.shape[1] == 1:  # an image becomes a static clip
            return self(frames.expand(-1, self.num_frames, -1, -1, -1)).mean(1, keepdim=True)
        if frames.shape[1] % self.tubelet:
            raise ValueError(f"{frames.shape[1]} frames do not fall into tubelets of {self.tubelet}")
        tokens = self.network(frames, **self.options).last_hidden_state
        shape = (frames.shape[1] // self.tubelet, *(side // self.patch_px for side in frames.shape[-2:]))
        grid = tokens[:, -math.prod(shape) :].unflatten(1, shape).permute(0, 1, 4, 2, 3)  # after a class token
        return grid.repeat_interleave(self.tubelet, dim=1)


def public_config(config: VisualConfig) -> Any:
    """Return the configuration of the image network `config.backbone`, a folder, a hub name, or in an exported model
    the configuration itself as JSON; of CLIP and similar networks the vision part.

    Raise FileNotFoundError if there is none, ValueError for a network that sees no images.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING

    assert config.backbone is not None, "VisualConfig asks for a backbone"
    try:
        if config.backbone.startswith("{"):
            fields = json.loads(config.backbone)
            fields.pop("attn_implementation", None)  # in a file from outside it may name code on the hub
            fields.pop("_attn_implementation", None)
            public = AutoConfig.for_model(**fields)
        else:
            public = AutoConfig.from_pretrained(config.backbone)
    except (OSError, ValueError, ImportError) as error:
        raise FileNotFoundError(
            f"model.visual.backbone={config.backbone} is neither a folder with a config.json that Transformers knows "
            f"nor a name on the hub that can be reached; download the model and name its folder ({error})"
        ) from error
    public = getattr(public, "vision_config", public)
    known = type(public) in MODEL_FOR_BACKBONE_MAPPING or type(public) in MODEL_MAPPING
    if not known or not (hasattr(public, "num_channels") or hasattr(public, "patch_size")):
        raise ValueError(
            f"model.visual.backbone={config.backbone} is a {public.model_type!r}, which is no image network of "
            "Transformers; take one of AutoBackbone (dinov2, dinov3_vit, convnext, swin …), a ViT, a CLIP, a SigLIP, "
            f"or of {', '.join(CLIP_NETWORKS)}"
        )
    if config.drop_path:
        if not hasattr(public, "drop_path_rate"):
            raise ValueError(
                f"model.visual.drop_path={config.drop_path}: {public.model_type!r} has no stochastic depth; set it to 0"
            )
        public.drop_path_rate = config.drop_path
    return public


def network_of(config: Any) -> Any:
    """Return the backbone of `config` with random weights, or the whole model if Transformers has no backbone class."""
    from transformers import AutoBackbone, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING

    if type(config) in MODEL_FOR_BACKBONE_MAPPING:
        return AutoBackbone.from_config(config)
    model_class = MODEL_MAPPING[type(config)]
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        return AutoModel.from_config(config, add_pooling_layer=False)
    return AutoModel.from_config(config)


def public_class(config: Any) -> type[PublicBackbone]:
    """Return the wrapper class for the network of `config`."""
    return PublicClipBackbone if config.model_type in CLIP_NETWORKS else PublicBackbone


def clip_length(config: Any) -> int:
    """Return the number of frames per clip that a network was trained on; 1 for images."""
    return getattr(config, "frames_per_clip", 0) or getattr(config, "num_frames", 1)


def inspect_network(config: Any, shape: tuple[int, int, int] | None = None) -> tuple[int, frozenset[str]]:
    """Return the channels of the network's grid, and the parameters that the grid does not depend on, from a dry run on
    the meta device.

    These parameters (mask tokens, norms before a pooler) must be frozen: DDP would wait for their gradients. Raise
    ValueError for a network that cannot take clips of `shape` (T, H, W), by default that of its training.
    """
    patch = patch_px(config)
    side = -(-max(SMALLEST_PX, side_px(config, "image_size", 0) or side_px(config, "crop_size", 224)) // patch) * patch
    trained = (clip_length(config), side, side)
    num_frames, height, width = shape or trained
    sees_clips = issubclass(public_class(config), PublicClipBackbone)
    try:
        with torch.device("meta"):
            backbone = public_class(config)(config).eval()
            frames = torch.zeros(1, num_frames, 3, height, width)
            grid = backbone(frames if sees_clips else frames.flatten(0, 1))
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        size, made_for = (f"{t} frames of {h} × {w} px" for t, h, w in ((num_frames, height, width), trained))
        raise ValueError(
            f"the {config.model_type!r} that model.visual.backbone names cannot take {size} ({error}); it was made for "
            f"{made_for}: set data.num_frames and data.frame_size_px to these, or take another network"
        ) from error
    grid.sum().backward()
    parameters = backbone.network.named_parameters()
    return grid.shape[-3], frozenset(name for name, parameter in parameters if parameter.grad is None)


def patch_px(config: Any) -> int:
    """Return the side of a network's patches in pixels; 1 if it has none."""
    return side_px(config, "patch_size", 0) or side_px(config, "tubelet_size", 1)


def side_px(config: Any, name: str, default: int) -> int:
    """Return the field `name` of a network's configuration as the side of its images or patches in pixels; `default` if
    it is missing or empty."""
    size = getattr(config, name, default) or default
    return int(size if isinstance(size, int) else max(size))


def freeze_batch_norms(network: nn.Module) -> None:
    """Replace every batch normalisation of `network` by a frozen one, which padding and other rows do not affect."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, FrozenBatchNorm(child.num_features, child.eps))


def refuse_other_pixels(config: VisualConfig) -> None:
    """Raise ValueError if `config.pixels` differ from the statistics in the backbone's preprocessor_config.json; a
    folder without that file passes."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(str(config.backbone))
    except OSError:
        return
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if not settings.get("do_normalize", True) or not mean or not std:
        return
    right = [name for name, known in PIXELS.items() if np.allclose((mean, std), known, atol=1e-3)]
    if config.pixels not in right:
        raise ValueError(
            f"it is {config.pixels}, but {config.backbone} was trained with pixels of mean {mean} and "
            f"standard deviation {std}: " + (f"set it to {right[0]}" if right else "take another network")
        )
