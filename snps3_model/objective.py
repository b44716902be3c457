"""The network with its objectives: a batch in, its losses out.

`loss_table.py` lists the losses, `step.py` runs the passes that they share, `loss_terms.py` computes each loss from
these passes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.records import Batch
from snps3_model.config import ObjectiveConfig, refuse_order_without_time
from snps3_model.draws import draw
from snps3_model.gather import Gather, local_gather
from snps3_model.loss_table import (
    PARTS,
    Loss,
    active_losses,
    losses_at,
    needs_masked_text,
    needs_raw_text,
    reached_parts,
    reaches_text_layers,
)
from snps3_model.queues import MomentumQueues
from snps3_model.snps3 import SNPS3
from snps3_model.step import Draws, Step
from snps3_model.visual import synchronise

LEAST_LOG_TEMPERATURE = math.log(0.01)
"""Log of the lower limit of a learned temperature (CLIP)."""
NO_EXTRA: Mapping[Loss, float] = MappingProxyType({})


class Pretraining(nn.Module):
    """The network with its objectives; `forward` returns the unweighted losses of the global batch by name."""

    def __init__(
        self,
        model: SNPS3,
        config: ObjectiveConfig,
        gather: Gather = local_gather,
        rank: int = 0,
        *,
        mask_id: int | None = None,
        rows_at_once: int | None = None,
        extra: Mapping[Loss, float] = NO_EXTRA,
    ) -> None:
        """`rows_at_once`: at most this many clips, captions or pairs pass through the network at once on this rank;
        None: all.

        `extra`: losses of other packages with their weights. `config.extra` only names them; this class imports none.
        """
        super().__init__()
        if config.attentive_share and mask_id is None:
            raise ValueError("objective.attentive_share needs the id of [MASK]; hand mask_id to Pretraining")
        refuse_order_without_time(config, model.config)
        self.model, self.config, self.gather, self.rank, self.mask_id = model, config, gather, rank, mask_id
        self.rows_at_once = rows_at_once
        self.log_temperature: nn.Parameter | None = None
        if config.learn_temperature and (config.gvtm_level1 or config.sigmoid):
            self.log_temperature = nn.Parameter(torch.tensor(config.temperature).log())
        self.queues: MomentumQueues | None = None
        if config.gvtm_level1 and config.queue_length is not None:
            self.queues = MomentumQueues(
                model, length=config.queue_length, momentum=config.queue_momentum, end=config.queue_end
            )
        self.itm_head = nn.Linear(model.config.hidden, 2) if config.itm else None
        self.weights = config.weights | {loss.name: weight for loss, weight in extra.items()}
        """Weight of each loss in the total."""
        self.losses = self.all_losses = active_losses(config, extra)
        self.extra_heads = nn.ModuleDict({loss.name: loss.head(model) for loss in self.losses if loss.head})
        self.terms = {loss.name: loss.function() for loss in self.losses}
        synchronise(model, gather)
        freeze_unreached(model, reached_parts(self.losses))
        if not reaches_text_layers(config, self.losses, is_cross_shared=model.separate_cross is None):
            model.bert.encoder.requires_grad_(False)
        self.trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        """Parameters that any of the losses trains."""

    def choose_losses(self, step: int, num_steps: int) -> bool:
        """Switch to the losses of the optimizer step after `step` of `num_steps` steps, and freeze the parameters that
        none of them reaches. Return whether the set of losses changed: if so, wrap in DDP again."""
        losses = losses_at(step, num_steps, self.config, self.all_losses)
        if losses == self.losses:
            return False
        self.losses = losses
        modules = [getattr(self.model, name) for name in reached_parts(losses)]
        modules += [self.extra_heads[loss.name] for loss in losses if loss.head]
        kept = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
        for parameter in self.trained:
            is_reached = id(parameter) in kept or parameter is self.log_temperature
            parameter.requires_grad_(losses is self.all_losses or is_reached)
        return True

    def forward(
        self, batch: Batch, frames: Float[Tensor, "B T 3 H W"], draws: Draws | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the active losses, in the order of the table.

        `frames` are the batch's frames after augmentation and normalisation on the device. Without `draws`, they are
        drawn from the clip ids.
        """
        if self.training and self.log_temperature is not None:
            self.stop_temperature(self.log_temperature)
        step = self.step(batch, frames, draws)
        return {loss.name: self.terms[loss.name](step) for loss in self.losses}

    def step(self, batch: Batch, frames: Float[Tensor, "B T 3 H W"], draws: Draws | None = None) -> Step:
        """Run the passes that precede all losses, and return them with the batch."""
        step = Step(
            batch=batch,
            frames=frames,
            pad_mask=batch.frame_pad_mask | (batch.weight < 0.5)[:, None, None, None],
            model=self.model,
            config=self.config,
            gather=self.gather,
            rank=self.rank,
            rows_at_once=self.rows_at_once,
            temperature=self.temperature,
            queues=self.queues if self.training else None,
            heads=({"itm": self.itm_head} if self.itm_head else {}) | dict(self.extra_heads.items()),
        )
        step.video = step.in_chunks(self.model.encode_video, frames, step.pad_mask)
        step.encode_texts(
            draws,
            is_raw_needed=needs_raw_text(self.config, self.losses),
            is_masked_needed=needs_masked_text(self.config, self.losses),
        )
        step.draws = draws or draw(step, self.mask_id)
        if any(loss.is_cross for loss in self.losses):
            step.visual = self.model.embed_frames(step.video.tokens)
        return step

    @property
    def temperature(self) -> float | Float[Tensor, ""]:
        """Divisor of the cosines of GVTM level 1."""
        if self.log_temperature is None:
            return self.config.temperature
        return self.log_temperature.clamp(min=LEAST_LOG_TEMPERATURE).exp()

    @torch.no_grad()
    def stop_temperature(self, log_temperature: nn.Parameter) -> None:
        """Clamp the parameter to the least temperature: below it the gradient is 0, so it would never recover."""
        log_temperature.clamp_(min=LEAST_LOG_TEMPERATURE)


def freeze_unreached(model: SNPS3, reached: Collection[str]) -> None:
    """Freeze the parts of `model` that are not in `reached`: DDP would wait for their gradients forever."""
    modules = {name: getattr(model, name) for name in PARTS}
    kept = {modules[name] for name in reached}
    for module in modules.values():
        if module is not None and module not in kept:
            module.requires_grad_(False)
