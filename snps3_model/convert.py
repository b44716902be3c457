"""Checkpoints of the published code: the names of its tensors, and ours for them.

Its checkpoints hold the shared network under three prefixes, since its cross encoder *is* its text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snps3_model.loading import WeightsReport, few, load_strictly
from snps3_model.objective import Pretraining

PREFIXES = {
    "model.module.text_encoder.": "model.bert.",
    "model.module.img_encoder.img_fc.": "model.video_head.",
    "model.module.img_encoder.": "model.visual.",
    "model.module.cross_pooler.": "model.cross_pooler.",
    "model.similarity_dense.0.": "model.similarity.1.",
    "model.similarity_dense.2.": "model.similarity.3.",
    "mlm_head.text_encoder_mlm.cls.predictions.bias": "model.text_words.bias",
    "mlm_head.text_encoder_mlm.cls.predictions.transform.dense.": "model.text_words.dense.",
    "mlm_head.text_encoder_mlm.cls.predictions.transform.LayerNorm.": "model.text_words.norm.",
    "mlm_head.transformer_mlm.cls.predictions.bias": "model.cross_words.bias",
    "mlm_head.transformer_mlm.cls.predictions.transform.dense.": "model.cross_words.dense.",
    "mlm_head.transformer_mlm.cls.predictions.transform.LayerNorm.": "model.cross_words.norm.",
    "itm_head.cls.seq_relationship.": "itm_head.",
}
"""Published prefix → ours. The longest that fits counts."""
ALIASES = {
    "model.module.text_encoder.module.": "model.module.text_encoder.",
    "model.module.cross_encoder.": "model.module.text_encoder.encoder.",
    "model.module.cross_embeddings.": "model.module.text_encoder.embeddings.",
    "mlm_head.transformer_mlm.cls.predictions.decoder.bias": "mlm_head.transformer_mlm.cls.predictions.bias",
    "mlm_head.text_encoder_mlm.cls.predictions.decoder.bias": "mlm_head.text_encoder_mlm.cls.predictions.bias",
    "mlm_head.transformer_mlm.cls.predictions.decoder.weight": (
        "model.module.text_encoder.embeddings.word_embeddings.weight"
    ),
    "mlm_head.text_encoder_mlm.cls.predictions.decoder.weight": (
        "model.module.text_encoder.embeddings.word_embeddings.weight"
    ),
}
"""Second names of a tensor, by prefix, and the name that counts."""
UNUSED = ("model.module.img_proj", "model.module.img_encoder.model.head.", "model.moco")
"""Published tensors that no loss of ours reaches: a projection that crashes (fault B1), a classifier, slow copies."""
BUFFERS = ("position_ids", "token_type_ids")
VISUAL = "model.visual."


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A published checkpoint in our names."""

    network: dict[str, Tensor]
    """As in the weights of a run: `model.…`, and `itm_head.…`."""
    visual: dict[str, Tensor]
    """The visual encoder's tensors by their published names, for the loader of visual weights to translate."""
    left_out: tuple[str, ...]
    """Second names, buffers and unused tensors."""


def our_name(published: str) -> str:
    """Our name of a published parameter; ValueError for one that is not in the table."""
    fitting = [prefix for prefix in PREFIXES if published.startswith(prefix)]
    if not fitting:
        raise ValueError(
            f"{published} is not the name of a tensor of the published model; the table is snps3_model.convert.PREFIXES"
        )
    prefix = max(fitting, key=len)
    return PREFIXES[prefix] + published.removeprefix(prefix)


def published_name(ours: str) -> str:
    """The published name of a parameter of ours; our own name for a part that the published model lacks."""
    fitting = {ours_prefix: prefix for prefix, ours_prefix in PREFIXES.items() if ours.startswith(ours_prefix)}
    if not fitting:
        return ours
    longest = max(fitting, key=len)
    return fitting[longest] + ours.removeprefix(longest)


def first_name(published: str) -> str:
    """The name that counts among the several that the published checkpoints give one tensor."""
    fitting = [prefix for prefix in ALIASES if published.startswith(prefix)]
    if not fitting:
        return published
    prefix = max(fitting, key=len)
    return first_name(ALIASES[prefix] + published.removeprefix(prefix))


def convert(weights: Mapping[str, Tensor]) -> Converted:
    """The tensors of a published checkpoint in our names. ValueError for unknown names, and for second names whose
    values are not those of the first: such a checkpoint is of another model."""
    network: dict[str, Tensor] = {}
    visual: dict[str, Tensor] = {}
    left_out: list[str] = []
    for published, tensor in weights.items():
        first = first_name(published)
        if published.startswith(UNUSED) or published.endswith(BUFFERS):
            left_out.append(published)
        elif first != published:
            if first in weights and not torch.equal(weights[first], tensor):
                raise ValueError(
                    f"{published} and {first} differ, but the published model has one tensor under both names; this "
                    "checkpoint is of a model with a separate cross encoder"
                )
            left_out.append(published)
        elif our_name(published).startswith(VISUAL):
            visual[published.removeprefix("model.module.img_encoder.")] = tensor
        else:
            network[our_name(published)] = tensor
    return Converted(network=network, visual=visual, left_out=tuple(left_out))


def load_published(
    network: Pretraining,
    weights: Mapping[str, Tensor],
    source: str,
    load_visual: Callable[[nn.Module, Mapping[str, Tensor], str], object],
) -> WeightsReport:
    """Puts a published checkpoint into `network`, its visual part by `load_visual(encoder, tensors, source)`.

    The network must have exactly its parts; an ITM head is left over where the objective has none.
    """
    converted = convert(weights)
    heads = {name: tensor for name, tensor in converted.network.items() if name.startswith("itm_head.")}
    named = {name.removeprefix("model."): tensor for name, tensor in converted.network.items() if name not in heads}
    own = {name for name in network.model.state_dict() if not name.startswith("visual.")}
    if named.keys() != own:
        missing, unknown = sorted(own - named.keys()), sorted(named.keys() - own)
        raise ValueError(
            f"{source} does not fit: {len(missing)} tensors are missing{few(missing)}, {len(unknown)} are unknown"
            f"{few(unknown)}; build the network with its sizes and a shared cross network"
        )
    load_visual(network.model.visual, converted.visual, source)
    visual = {f"visual.{name}": tensor for name, tensor in network.model.visual.state_dict().items()}
    load_strictly(network.model, named | visual, source)
    if network.itm_head is not None:
        load_strictly(network.itm_head, {name.removeprefix("itm_head."): t for name, t in heads.items()}, source)
        heads = {}
    return WeightsReport(source=source, loaded=tuple(named), unexpected=(*heads, *converted.left_out))
