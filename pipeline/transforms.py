"""What happens to frames on the training device: uint8 pixels to the floats that encoders take."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T 3 H W"]:
    """Channels first, scaled to [0, 1], minus ImageNet's mean, over its standard deviation (§4.3)."""
    mean = torch.tensor(IMAGENET_MEAN, device=frames.device)
    std = torch.tensor(IMAGENET_STD, device=frames.device)
    return ((frames.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
