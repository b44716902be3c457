"""How the weights move: groups of parameters with and without decay, and the rate of each step (§5)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from jobs.run.config import OptimConfig
from snps3_model.convert import published_name

Rule = Literal["vectors", "published"]


def is_decayed(name: str, parameter: Tensor, rule: Rule) -> bool:
    """Whether weight decay pulls at a parameter. `vectors`: at all but biases, norms and other vectors. `published`: at
    all whose published name holds neither "bias" nor "LayerNorm.weight", so norms of visual encoders too, and tables of
    relative positions not (fault B21)."""
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
) -> list[dict[str, Any]]:
    """Groups for an optimizer, decayed ones first; frozen parameters are in none.

    Parameters whose names contain one of `slow` have groups of their own, before the others, with lr · `slow_factor`.
    """
    kept = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    groups = []
    for decays in (True, False):
        for is_slow in (True, False) if slow else (False,):
            members = [
                parameter
                for name, parameter in kept
                if is_decayed(name, parameter, rule) == decays and any(part in name for part in slow) == is_slow
            ]
            rate = lr * slow_factor if is_slow else lr
            groups.append({"params": members, "lr": rate, "weight_decay": weight_decay if decays else 0.0})
    return groups


def make_optimizer(named: Iterable[tuple[str, Tensor]], config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW as `config` has it. On GPUs one kernel moves all weights."""
    groups = parameter_groups(named, lr=config.lr, weight_decay=config.weight_decay, rule=config.decay_rule)
    is_fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=is_fused or None)


def step_factor(
    step: int, *, warmup_steps: int, milestones: Iterable[int], warmup_factor: float = 0.1, ratio: float = 0.1
) -> float:
    """What the rate of the step after `step` steps is multiplied by: linear warm-up from `warmup_factor`, then `ratio`
    for each milestone that is reached."""
    if warmup_steps and step <= warmup_steps:
        share = step / warmup_steps
        return warmup_factor * (1 - share) + share
    return ratio ** sum(milestone <= step for milestone in milestones)


def learning_rate(step: int, config: OptimConfig) -> float:
    """Rate of the step after `step` steps: linear warm-up from a tenth, then cosine or one fall to a tenth (§5)."""
    if config.decay == "step":
        milestones = () if config.decay_step is None else (config.decay_step,)
        return config.lr * step_factor(step, warmup_steps=config.warmup_steps, milestones=milestones)
    if step < config.warmup_steps:
        return config.lr * (0.1 + 0.9 * step / config.warmup_steps)
    share = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return config.lr * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, share))) / 2)
