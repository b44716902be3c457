"""Attentive masking: words are masked with a probability that grows with the attention that they receive.

text pass ─ inputs of a layer ─ softmax(Q Kᵀ), recomputed here ─► attention received per token
                                                                   └ drawn without replacement ─► masked ids, labels
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from pipeline.records import IGNORED_LABEL
from snps3_model.snps3 import TextFeatures, additive_mask, layers_of

MASKED_SHARE = 0.15
"""Share of a caption's words that attentive masking masks."""
LEAST_IMPORTANCE = 1e-6
"""Added to every word's importance, so that no word has probability 0."""


def attention_map(
    layer: Any, hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B heads L L"]:
    """Return the attention of `layer` over its input `hidden`, without dropout; the last two axes are query and key.

    Recomputed here, since a layer with scaled-dot-product attention silently returns no attention weights.
    """
    attention: Any = layer.attention.self
    B, L = mask.shape
    query, key = (
        project(hidden).view(B, L, attention.num_attention_heads, -1).transpose(1, 2)
        for project in (attention.query, attention.key)
    )
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores + additive_mask(mask, scores.dtype)).softmax(-1)


@torch.no_grad()
def words_importance(
    network: nn.Module, text: TextFeatures, mask: Bool[Tensor, "B L"], layers: Literal["last", "all"]
) -> Float[Tensor, "B L"]:
    """Return the attention that each token receives: the mean over heads, summed over queries and `layers` (§1.4).

    The published code takes all layers; its sum includes [PAD] queries, and so does this one.
    """
    pairs = list(zip(layers_of(network), text.layers[:-1], strict=True))
    chosen = pairs if layers == "all" else pairs[-1:]
    return torch.stack([attention_map(layer, hidden, mask).mean(1).sum(1) for layer, hidden in chosen]).sum(0)


def attentive_masks(
    token_ids: Int64[Tensor, "B L"],
    token_mask: Bool[Tensor, "B L"],
    importance: Float[Tensor, "B L"],
    noise: Float[Tensor, "B L"],
    *,
    separator_id: int,
    mask_id: int,
) -> tuple[Int64[Tensor, "B L"], Int64[Tensor, "B L"]]:
    """Return masked ids and labels, drawn without replacement in proportion to importance; `noise` is Gumbel noise.

    max(⌊0.15 n⌋, 1) of n words become [MASK]; the first token and the separator do not count as words.
    """
    is_word = token_mask & (token_ids != separator_id)
    is_word[:, 0].fill_(False)  # assigning a constant would copy it from the host
    num_hidden = (MASKED_SHARE * is_word.sum(1)).long().clamp(min=1)
    keys = (importance + LEAST_IMPORTANCE).log() + noise
    place = keys.masked_fill(~is_word, -torch.inf).argsort(dim=1, descending=True).argsort(dim=1)
    is_hidden = (place < num_hidden[:, None]) & is_word
    masked = torch.where(is_hidden, mask_id, token_ids)
    return masked, torch.where(is_hidden, token_ids, IGNORED_LABEL)
