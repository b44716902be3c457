"""The network that a run trains: the shared network with the heads and losses of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pipeline.text.tokenizer import Tokenizer
from snps3_model.config import ModelConfig
from snps3_model.gather import Gather, local_gather
from snps3_model.snps3 import SNPS3


class Network(nn.Module):
    """The interface of a task's network. `forward(batch, frames)` returns the unweighted losses of the global batch by
    name. A module with these two attributes need not inherit from it."""

    model: SNPS3
    weights: Mapping[str, float]
    """Weight of each loss in the total."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Settings of a network that depend on the rank, the tokenizer or the placement."""

    gather: Gather = local_gather
    rank: int = 0
    mask_id: int | None = None
    """Id of [MASK]."""
    rows_at_once: int | None = None
    """Clips, captions or pairs that pass through the network together; None: all."""


def build_model(config: ModelConfig, tokenizer: Tokenizer) -> SNPS3:
    """Return the network for the tokens of `tokenizer`, with random weights."""
    special = tokenizer.special
    return SNPS3(config, vocabulary_size=tokenizer.vocabulary_size, pad_id=special.pad, separator_id=special.sep)
