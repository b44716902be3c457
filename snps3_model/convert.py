"""Checkpoints of the published code: maps the names of its tensors to ours.

Its checkpoints hold the shared network under three prefixes, since its cross encoder *is* its text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snps3_model.loading import WeightsReport, differences, format_names
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
"""Published prefix → our prefix. The longest match applies."""
WORD_EMBEDDINGS = "model.module.text_encoder.embeddings.word_embeddings.weight"
ALIASES = {
    "model.module.text_encoder.module.": "model.module.text_encoder.",
    "model.module.cross_encoder.": "model.module.text_encoder.encoder.",
    "model.module.cross_embeddings.": "model.module.text_encoder.embeddings.",
    "mlm_head.transformer_mlm.cls.predictions.decoder.bias": "mlm_head.transformer_mlm.cls.predictions.bias",
    "mlm_head.text_encoder_mlm.cls.predictions.decoder.bias": "mlm_head.text_encoder_mlm.cls.predictions.bias",
    "mlm_head.transformer_mlm.cls.predictions.decoder.weight": WORD_EMBEDDINGS,
    "mlm_head.text_encoder_mlm.cls.predictions.decoder.weight": WORD_EMBEDDINGS,
}
"""Alias prefix of a tensor → prefix of its canonical name."""
UNUSED = ("model.module.img_proj", "model.module.img_encoder.model.head.", "model.moco")
"""Published tensors that none of our losses uses: a projection that crashes (fault B1), a classifier, momentum
copies."""
BUFFERS = ("position_ids", "token_type_ids")
VISUAL = "model.visual."


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A published checkpoint under our names."""

    network: dict[str, Tensor]
    """Names as in the weights of a run: `model.…` and `itm_head.…`."""
    visual: dict[str, Tensor]
    """The visual encoder's tensors by their published names, for the loader of visual weights to translate."""
    left_out: tuple[str, ...]
    """Names of aliases, buffers and unused tensors."""


def our_name(published: str) -> str:
    """Return our name of a published parameter; raise ValueError for one that is not in the table."""
    ours = with_other_prefix(published, PREFIXES)
    if ours is None:
        raise ValueError(
            f"{published} is not the name of a tensor of the published model; the table is snps3_model.convert.PREFIXES"
        )
    return ours


def published_name(ours: str) -> str:
    """Return the published name of one of our parameters; `ours` itself for a part that the published model lacks."""
    return with_other_prefix(ours, {value: key for key, value in PREFIXES.items()}) or ours


def canonical_name(published: str) -> str:
    """Return the canonical name of a tensor that the published checkpoints hold under several names."""
    canonical = with_other_prefix(published, ALIASES)
    return canonical_name(canonical) if canonical else published


def with_other_prefix(name: str, prefixes: Mapping[str, str]) -> str | None:
    """Return `name` with its longest prefix in `prefixes` replaced by that prefix's value; None if none matches."""
    fitting = [prefix for prefix in prefixes if name.startswith(prefix)]
    if not fitting:
        return None
    prefix = max(fitting, key=len)
    return prefixes[prefix] + name.removeprefix(prefix)


def convert(weights: Mapping[str, Tensor]) -> Converted:
    """Return the tensors of a published checkpoint under our names. Raise ValueError for unknown names, and for aliases
    whose values differ from the canonical tensor: such a checkpoint is of another model."""
    network: dict[str, Tensor] = {}
    visual: dict[str, Tensor] = {}
    left_out: list[str] = []
    for published, tensor in weights.items():
        canonical = canonical_name(published)
        if published.startswith(UNUSED) or published.endswith(BUFFERS):
            left_out.append(published)
        elif canonical != published:
            if canonical in weights and not torch.equal(weights[canonical], tensor):
                raise ValueError(
                    f"{published} and {canonical} differ, but the published model has one tensor under both names; "
                    "this checkpoint is of a model with a separate cross encoder"
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
    """Load a published checkpoint into `network`, its visual part with `load_visual(encoder, tensors, source)`.

    The network must have exactly the parts of the checkpoint; only an ITM head may stay unused.
    """
    converted = convert(weights)
    heads = {name: tensor for name, tensor in converted.network.items() if name.startswith("itm_head.")}
    named = {name.removeprefix("model."): tensor for name, tensor in converted.network.items() if name not in heads}
    load_visual(network.model.visual, converted.visual, source)
    visual = {f"visual.{name}": tensor for name, tensor in network.model.visual.state_dict().items()}
    load_strictly(network.model, named | visual, source)
    if network.itm_head is not None:
        load_strictly(network.itm_head, {name.removeprefix("itm_head."): t for name, t in heads.items()}, source)
        heads = {}
    return WeightsReport(source=source, loaded=tuple(named), unexpected=(*heads, *converted.left_out))


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load `weights` into `module`; raise ValueError for a missing or unknown tensor, or one of another shape."""
    missing, unknown, shapes = map(sorted, differences(module, weights))
    if missing or unknown or shapes:
        raise ValueError(
            f"{source} does not fit: {len(missing)} tensors are missing{format_names(missing)}, {len(unknown)} are "
            f"unknown{format_names(unknown)}, {len(shapes)} have other shapes{format_names(shapes)}; build the network "
            "with its sizes and a shared cross network"
        )
    module.load_state_dict(weights)
