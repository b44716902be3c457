"""The table of losses: one entry per loss, from which everything else about it derives.

To add a built-in loss, write a function in `losses.py`, its call in `loss_terms.py`, an entry here, and its weight in
`ObjectiveConfig`. Another package defines a `Loss` of its own, which `ObjectiveConfig.extra` names.

This module imports nothing slow, since every command reads the configuration.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snps3_model.config import ObjectiveConfig

GROUP = "snps3.losses"
"""Entry points under which other packages offer losses by a short name."""
DUAL = frozenset({"visual", "temporal", "video_head", "bert"})
CROSS = frozenset({"visual", "temporal", "parts", "cross_network"})
HEADS = frozenset({"text_pooler", "cross_pooler", "similarity", "text_words", "cross_words", "frame_places"})
PARTS = DUAL | CROSS | HEADS
"""Parts of `SNPS3` that a loss may reach, by the names of their attributes."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss of the objective."""

    name: str
    """Logged as `loss/NAME`; the field of this name in `ObjectiveConfig` is the weight of a built-in loss."""
    title: str
    """Title in reports."""
    reaches: frozenset[str]
    """Names from `PARTS`. Parts that no loss reaches are frozen, since DDP would wait for their gradients."""
    compute: Callable[[Any], Any] | None = None
    """From a `snps3_model.step.Step` to the loss of the global batch; None: the function `name` in `loss_terms.py`."""
    symbol: str = ""
    """Symbol in the paper, whose order reports follow."""
    reads_raw_text: Callable[[ObjectiveConfig], bool] = lambda config: True
    """Whether it needs the text pass over the caption as it is."""
    head: Callable[[Any], Any] | None = None
    """From the `SNPS3` to an additional module for this loss, which is trained and saved with the network."""
    spares_layers: Callable[[ObjectiveConfig], bool] = lambda config: False
    """Whether it uses only the embeddings of `bert`, not its layers."""
    is_kept_for_retrieval: bool = False
    """Whether fine-tuning for retrieval keeps it."""
    is_first: bool = False
    """Whether the first `objective.dual_share` of a run computes it too."""
    is_optional: bool = False
    """Not one of the paper's five: reported only where its weight is above 0."""
    needs_temporal: bool = False
    """Whether it can only be computed with `model.num_temporal_layers`."""

    def __post_init__(self) -> None:
        if unknown := sorted(self.reaches - PARTS):
            raise ValueError(f"the loss {self.name!r} reaches {unknown[0]!r}; parts are {', '.join(sorted(PARTS))}")

    @property
    def is_cross(self) -> bool:
        """Whether it needs the cross pass."""
        return "cross_network" in self.reaches

    def function(self) -> Callable[[Any], Any]:
        """Return the function that computes the loss. A built-in one is imported only here, since it needs torch."""
        return self.compute or attribute(f"snps3_model.loss_terms:{self.name}")


LOSSES = (
    Loss(
        name="gvtm_level1",
        symbol="ℒ3",
        title="ℒ3 · clip and caption apart (level 1)",
        reaches=DUAL | {"text_pooler"},
        is_kept_for_retrieval=True,
        is_first=True,
    ),
    Loss(
        name="sigmoid",
        title="sigmoid · is this the caption of this clip, pair by pair",
        reaches=DUAL | {"text_pooler"},
        head=lambda model: attribute("snps3_model.losses:PairBias")(),
        is_kept_for_retrieval=True,
        is_first=True,
        is_optional=True,
    ),
    Loss(
        name="gvtm_level2",
        symbol="ℒ4",
        title="ℒ4 · clip and caption together (level 2)",
        reaches=CROSS | {"cross_pooler", "similarity"},
        reads_raw_text=lambda config: config.num_hard_negatives is not None or config.mining != "both_ways",
        is_kept_for_retrieval=True,
    ),
    Loss(
        name="lvwm",
        title="LVWM · significant words and clip",
        reaches=DUAL,
        spares_layers=lambda config: config.lvwm_stage == "before",
    ),
    Loss(
        name="masked_words_text",
        symbol="ℒ1",
        title="ℒ1 · masked words from the words alone",
        reaches=frozenset({"bert", "text_words"}),
        reads_raw_text=lambda config: config.text_alone == "raw",
    ),
    Loss(
        name="masked_words_cross",
        symbol="ℒ2",
        title="ℒ2 · masked words from words and clip",
        reaches=CROSS | {"cross_words"},
        reads_raw_text=lambda config: False,
    ),
    Loss(
        name="itm",
        title="ITM · does this caption belong to this clip",
        reaches=CROSS | {"cross_pooler"},
        reads_raw_text=lambda config: config.itm_negative == "hard",
        is_optional=True,
    ),
    Loss(
        name="clip_order",
        title="clip order · where moved frames belong",
        reaches=frozenset({"visual", "temporal", "frame_places"}),
        reads_raw_text=lambda config: False,
        is_optional=True,
        needs_temporal=True,
    ),
)
"""In the order in which a step computes and adds them: dropout draws, and sums round, in this order."""
PAPER_ORDER = tuple(sorted(LOSSES, key=lambda loss: loss.symbol or "ℒ9"))
"""ℒ1 to ℒ4, LVWM, then the losses that are not in the paper."""


def active_losses(config: ObjectiveConfig, extra: Iterable[Loss] = ()) -> tuple[Loss, ...]:
    """Return the losses with a weight above 0, those of other packages (`extra`) last."""
    return (*(loss for loss in LOSSES if getattr(config, loss.name)), *extra)


def losses_at(step: int, num_steps: int, config: ObjectiveConfig, losses: tuple[Loss, ...]) -> tuple[Loss, ...]:
    """Return those of `losses` that a run of `num_steps` computes in the optimizer step after `step` steps."""
    return tuple(loss for loss in losses if loss.is_first) if step < int(config.dual_share * num_steps) else losses


def reached_parts(losses: Iterable[Loss]) -> frozenset[str]:
    """Return the parts of the network that any of `losses` reaches."""
    return frozenset().union(*(loss.reaches for loss in losses))


def reaches_text_layers(config: ObjectiveConfig, losses: Iterable[Loss], *, is_cross_shared: bool) -> bool:
    """Return whether any of `losses` uses the layers of the text network, directly or in a shared cross pass."""
    return any(
        ("bert" in loss.reaches and not loss.spares_layers(config)) or (is_cross_shared and loss.is_cross)
        for loss in losses
    )


def needs_raw_text(config: ObjectiveConfig, losses: Iterable[Loss]) -> bool:
    """Return whether any of `losses`, or attentive masking, needs the text pass over the raw caption."""
    return bool(config.attentive_share) or any(loss.reads_raw_text(config) for loss in losses)


def needs_masked_text(config: ObjectiveConfig, losses: Iterable[Loss]) -> bool:
    """Return whether ℒ1 is among `losses` and reads the masked caption."""
    return config.text_alone == "masked" and any(loss.name == "masked_words_text" for loss in losses)


def parse_extra(text: str) -> tuple[str, float]:
    """Parse an entry of `ObjectiveConfig.extra`, NAME or NAME=WEIGHT; raise ValueError for anything else."""
    match = re.fullmatch(r"([\w.-]+(?::\w+)?)(?:=(\d+(?:\.\d+)?(?:e[+-]?\d+)?))?", text)
    if not match:
        raise ValueError(f"objective.extra must hold package.module:NAME, or package.module:NAME=WEIGHT, got {text!r}")
    return match[1], float(match[2] or 1.0)


def load_extra(config: ObjectiveConfig) -> dict[Loss, float]:
    """Return the losses that `config.extra` names, with their weights. This imports their packages, so use it for
    training only, never on a configuration from somebody else's run folder.

    Raise ValueError for a name that cannot be imported, is no `Loss`, or is already taken.
    """
    losses: dict[Loss, float] = {}
    names = {loss.name for loss in LOSSES}
    for name, weight in map(parse_extra, config.extra):
        loss = _imported(name)
        if not isinstance(loss, Loss):
            raise ValueError(f"{name} is a {type(loss).__name__}, not a snps3_model.loss_table.Loss")
        if loss.name in names:
            raise ValueError(f"{name} is called {loss.name!r}, as another loss; rename it")
        names.add(loss.name)
        if weight:
            losses[loss] = weight
    return losses


def _imported(name: str) -> Any:
    """Return the object that `package.module:NAME` or an entry point refers to."""
    try:
        if ":" in name:
            return attribute(name)
        points = importlib.metadata.entry_points(group=GROUP, name=name)
        if not points:
            raise ValueError(f"no installed package has the entry point {name!r} of {GROUP}")
        return next(iter(points)).load()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error


def attribute(reference: str) -> Any:
    """Return the object that `module:NAME` refers to."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
