"""Low-rank updates of frozen linear layers (LoRA, Hu et al., ICLR 2022).

x ─┬─ weight, bias (frozen) ─┬─► y
   └─ lora_down ─ lora_up ───┘      lora_up starts at 0, so at first the network's output is unchanged
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from snps3_model.config import ModelConfig

DOWN, UP = ".lora_down", ".lora_up"


class LowRankLinear(nn.Module):
    """A frozen linear layer plus a trained update lora_up · lora_down of its weight."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        options = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        bound = linear.in_features**-0.5
        self.lora_down = nn.Parameter(torch.empty(rank, linear.in_features, **options).uniform_(-bound, bound))
        self.lora_up = nn.Parameter(torch.zeros(linear.out_features, rank, **options))

    def forward(self, rows: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        return F.linear(rows, self.weight, self.bias) + F.linear(F.linear(rows, self.lora_down), self.lora_up)


def add_low_rank(network: nn.Module, rank: int, name: str) -> None:
    """Freeze `network` and add an update of rank `rank` to each of its trainable linear layers.

    Raise ValueError, with the field `name`, for a network without such a layer.
    """
    linears = [
        (parent, child_name, child)
        for parent in network.modules()
        for child_name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.requires_grad
    ]
    if not linears:
        raise ValueError(f"{name}={rank}: the network has no linear layers to update; set it to None")
    network.requires_grad_(False)
    for parent, child_name, child in linears:
        setattr(parent, child_name, LowRankLinear(child, rank))


def merged(weights: Mapping[str, Tensor], kept: Container[str] = ()) -> dict[str, Tensor]:
    """Return `weights` with each update added to its weight, except the updates that `kept` names."""
    whole = dict(weights)
    for layer in [name.removesuffix(UP) for name in weights if name.endswith(UP) and name not in kept]:
        if {f"{layer}.weight", layer + DOWN} <= weights.keys():
            whole[f"{layer}.weight"] = whole[f"{layer}.weight"] + whole.pop(layer + UP) @ whole.pop(layer + DOWN)
    return whole


def without_updates(config: ModelConfig) -> ModelConfig:
    """Return the configuration without low-rank updates: of the network after training, with its updates merged."""
    return dataclasses.replace(config, lora_rank=None, visual=dataclasses.replace(config.visual, lora_rank=None))
