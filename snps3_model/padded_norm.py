"""Batch normalisation over the real pixels of every rank's frames.

On a CPU these layers are bound by memory: their passes over the features are written out here, forward and backward, on
a matrix of pixels × channels. Automatic differentiation of the formulas takes twice as long.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from snps3_model.gather import Gather, local_gather


class PaddedBatchNorm(nn.Module):
    """Batch normalisation whose statistics exclude padded pixels, and so whole rows of weight 0.

    With `gather` over several ranks they are those of the global batch (torch's SyncBatchNorm supports neither padding
    nor CPU).
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5, frozen: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_variance", torch.ones(channels))
        self.momentum, self.eps, self.frozen = momentum, eps, frozen
        self.gather: Gather = local_gather

    def forward(
        self, features: Float[Tensor, "N C h w"], is_real: Float[Tensor, "N 1 h w"], *, rectified: bool = False
    ) -> Float[Tensor, "N C h w"]:
        """Return normalised features; `rectified`: after a ReLU, and 0 on padding."""
        pixels, real = features.permute(0, 2, 3, 1).flatten(0, 2), is_real.reshape(-1, 1)
        with torch.autocast(features.device.type, enabled=False):  # sums over a batch's pixels need 32 bits
            pixels = pixels.to(real.dtype)
            if self.training and not self.frozen:
                mean, variance = self.batch_statistics(pixels, real)
            else:
                mean, variance = self.running_mean, self.running_variance
            scale = self.weight * torch.rsqrt(variance + self.eps)
            shift = self.bias - mean * scale
            normalised = (
                RectifiedAffine.apply(pixels, scale, shift, real) if rectified else torch.addcmul(shift, pixels, scale)
            )
        return normalised.unflatten(0, (features.shape[0], *features.shape[2:])).permute(0, 3, 1, 2)

    def batch_statistics(self, pixels: Float[Tensor, "M C"], real: Float[Tensor, "M 1"]) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the channels, and update the stored ones."""
        sums = torch.cat([RealSums.apply(pixels, real).flatten(), real.sum()[None]])
        total = self.gather(sums[None]).sum(0)
        C, count = len(self.weight), total[-1].clamp(min=1.0)
        mean = total[:C] / count
        variance = (total[C : 2 * C] / count - mean**2).clamp(min=0.0)
        with torch.no_grad():
            momentum = self.momentum * (total[-1] > 0).to(mean.dtype)  # keep the statistics if no pixel is real
            self.running_mean.lerp_(mean, momentum)
            self.running_variance.lerp_(variance * count / (count - 1).clamp(min=1.0), momentum)
        return mean, variance


class RealSums(torch.autograd.Function):
    """Sums of each channel and of its square over real pixels: (2, C)."""

    @staticmethod
    def forward(ctx: Any, pixels: Float[Tensor, "M C"], real: Float[Tensor, "M 1"]) -> Float[Tensor, "2 C"]:
        ctx.save_for_backward(pixels, real)
        weights = real[:, 0]  # a product with a vector, which TF32 does not round on a GPU
        return torch.stack([pixels.T.mv(weights), pixels.square().T.mv(weights)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (pixels, real), (of_sum, of_squares) = ctx.saved_tensors, gradients[0]
        return torch.addcmul(of_sum, pixels, 2 * of_squares).mul_(real), None


class RectifiedAffine(torch.autograd.Function):
    """max(0, scale · x + shift) on real pixels, 0 on others."""

    @staticmethod
    def forward(
        ctx: Any, pixels: Float[Tensor, "M C"], scale: Float[Tensor, " C"], shift: Float[Tensor, " C"], real: Tensor
    ) -> Float[Tensor, "M C"]:
        result = torch.addcmul(shift, pixels, scale).relu_().mul_(real)
        ctx.save_for_backward(pixels, scale, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        pixels, scale, result = ctx.saved_tensors
        passed = torch.ops.aten.threshold_backward(gradients[0].contiguous(), result, 0)
        of_scale, of_shift = (passed * pixels).sum(0), passed.sum(0)
        return passed.mul_(scale), of_scale, of_shift, None
