"""How the weights move: groups of parameters with and without decay, and the rate of each step (§5)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from jobs.run.config import OptimConfig
from snps3_model.config import ModelConfig
from snps3_model.convert import published_name

Rule = Literal["vectors", "published"]
LAYER = re.compile(r".*\.(?:layers?|blocks?|stages?)\.\d+\.")
"""Prefix of the names of a layer's parameters, in our networks and in those of Transformers."""


def is_decayed(name: str, parameter: Tensor, rule: Rule) -> bool:
    """Return whether a parameter has weight decay. `vectors`: all but biases, norms and other vectors. `published`: all
    whose published name contains neither "bias" nor "LayerNorm.weight". That decays the norms of visual encoders too,
    but not the tables of relative positions (fault B21)."""
    if rule == "vectors":
        return parameter.ndim > 1
    return not any(part in published_name(name) for part in ("bias", "LayerNorm.weight"))


def parameter_groups(
    named: Iterable[tuple[str, Tensor]],
    *,
    lr: float,
    weight_decay: float,
    rule: Rule = "vectors",
    slow: tuple[str, ...] = (),
    slow_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer, decayed ones first, without frozen parameters.

    Parameters whose names contain one of `slow` have separate groups, before the others, slowest first. Their rate is
    lr · `slow_factor` · `layer_decay`ⁿ, with n layers of their part above them.
    """
    kept = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    names = [name for name, _ in kept]
    factors = {
        name: slow_factor * layer_decay**number
        for part in slow
        for name, number in layers_above([name for name in names if part in name]).items()
    }
    kinds = [*((True, factor) for factor in sorted({*factors.values()})), (False, 1.0)]
    groups: dict[Any, dict[str, Any]] = {}
    for decays in (True, False):
        for is_slow, factor in kinds:
            rates = {"lr": lr * factor, "weight_decay": weight_decay if decays else 0.0}
            groups[decays, is_slow, factor] = {"params": [], "factor": factor, "is_slow": is_slow} | rates
    for name, parameter in kept:
        kind = is_decayed(name, parameter, rule), name in factors, factors.get(name, 1.0)
        groups[kind]["params"].append(parameter)
    return [*groups.values()]


def layers_above(names: Sequence[str]) -> dict[str, int]:
    """Return the number of layers above each parameter of a part. `names` are in the order of the forward pass."""
    below: dict[str, int] = {}
    layers: dict[str, None] = {}
    for name in names:
        if match := LAYER.match(name):
            layers[match[0]] = None
        below[name] = len(layers)
    return {name: len(layers) - number for name, number in below.items()}


def pretrained_parts(model: ModelConfig) -> tuple[str, ...]:
    """Return substrings of the names of those parameters that start from pre-trained weights."""
    visual, text = ("model.visual.backbone.",), ("model.bert.", "model.separate_cross.")
    is_earlier = model.initial_weights is not None
    return (
        *(visual if is_earlier or model.visual.pretrained is not None else ()),
        *(text if is_earlier or model.pretrained_text is not None else ()),
    )


def make_optimizer(
    named: Iterable[tuple[str, Tensor]], config: OptimConfig, pretrained: tuple[str, ...] = ()
) -> torch.optim.Optimizer:
    """Return AdamW as configured, with separate rates for the `pretrained` parts. It is fused if all parameters are on
    GPUs."""
    is_plain = config.pretrained_rate == config.layer_decay == 1 and not config.frozen_steps
    groups = parameter_groups(
        named,
        lr=config.lr,
        weight_decay=config.weight_decay,
        rule=config.decay_rule,
        slow=() if is_plain else pretrained,
        slow_factor=config.pretrained_rate,
        layer_decay=config.layer_decay,
    )
    is_fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=is_fused or None)


def step_factor(
    step: int, *, warmup_steps: int, milestones: Iterable[int], warmup_factor: float = 0.1, ratio: float = 0.1
) -> float:
    """Return the factor of the learning rate after `step` steps: linear warm-up from `warmup_factor`, then `ratio` for
    each milestone that is reached."""
    if warmup_steps and step <= warmup_steps:
        share = step / warmup_steps
        return warmup_factor * (1 - share) + share
    return ratio ** sum(milestone <= step for milestone in milestones)


def learning_rate(step: int, config: OptimConfig) -> float:
    """Return the learning rate after `step` steps: linear warm-up from a tenth, then cosine or one drop to a tenth
    (§5). The cosine begins after `hold_share` of the run (warm-up, stable, decay; Hu et al., COLM 2024)."""
    if config.decay == "step":
        milestones = () if config.decay_step is None else (config.decay_step,)
        return config.lr * step_factor(step, warmup_steps=config.warmup_steps, milestones=milestones)
    if step < config.warmup_steps:
        return config.lr * (0.1 + 0.9 * step / config.warmup_steps)
    start = max(config.warmup_steps, config.hold_share * config.num_steps)
    share = (step - start) / max(1, config.num_steps - start)
    return config.lr * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, max(0.0, share)))) / 2)


def set_rates(optimizer: torch.optim.Optimizer, step: int, config: OptimConfig) -> None:
    """Set each group's learning rate after `step` steps; it is 0 for pre-trained parts in the first `frozen_steps`."""
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        is_held = group["is_slow"] and step < config.frozen_steps
        group["lr"] = 0.0 if is_held else rate * group["factor"]
