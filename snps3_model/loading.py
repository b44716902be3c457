"""Initial weights of the network from files, with a report on each tensor: none is skipped silently."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from snps3_model.config import ModelConfig
from snps3_model.lora import DOWN, UP, merged
from snps3_model.snps3 import SNPS3

SIZES = {
    "hidden_size": "model.hidden",
    "num_hidden_layers": "model.num_layers",
    "num_attention_heads": "model.num_heads",
    "intermediate_size": "model.feed_forward",
    "max_position_embeddings": "model.max_positions",
}
"""Field of a BERT's configuration → our field that must equal it."""
FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}
"""Fields of a BERT's configuration that our network assumes, with the assumed values."""
NEW_PARTS = ("separate_cross", "parts", "temporal", "frame_places")
"""Parts that weights of an earlier version may lack; they then keep their random values."""
POOLER = "pooler."
"""The part of a BERT that checkpoints of masked language models lack; it then keeps its random values."""


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """The outcome of loading for each tensor of a file and of the network."""

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """In the network but not in the file: these keep their random values."""
    unexpected: tuple[str, ...] = ()
    """In the file but not in the network, such as a language-model or classification head."""
    reshaped: tuple[str, ...] = ()
    """Loaded after a change of shape."""

    def __str__(self) -> str:
        parts = {"missing": self.missing, "unexpected": self.unexpected, "reshaped": self.reshaped}
        counts = [f"{len(names)} {part}{format_names(names)}" for part, names in parts.items()]
        return f"{self.source}: {len(self.loaded)} tensors loaded, {', '.join(counts)}"


def load_bert(model: SNPS3, config: ModelConfig) -> WeightsReport:
    """Load the BERT of `config.pretrained_text`, a folder or a hub name, into the shared network.

    Its sizes must equal the model's, and its vocabulary the run's; only its pooler may be missing. The pooler of
    the cross pass, and a separate cross network (from the first layers), start as copies. Raise ValueError with every
    difference, FileNotFoundError if there is no such checkpoint.
    """
    from transformers.models.bert.modeling_bert import BertModel

    source = str(config.pretrained_text)
    refuse_other_sizes(config, len(model.word_embeddings), bert_config(source))
    loaded, facts = BertModel.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        source, add_pooling_layer=True, output_loading_info=True, local_files_only=not is_hub_name(source)
    )
    missing, unexpected = sorted(facts["missing_keys"]), sorted(facts["unexpected_keys"])
    if wrong := [name for name in missing if not name.startswith(POOLER)]:
        raise ValueError(
            f"{source} lacks {len(wrong)} tensors of a BERT{format_names(wrong)}; take a checkpoint with all layers, "
            "or set model.pretrained_text to None"
        )
    weights = loaded.state_dict()
    kept = {name: weight for name, weight in weights.items() if name not in missing}
    model.bert.load_state_dict(kept, strict=False)
    model.cross_pooler.load_state_dict(model.text_pooler.state_dict())
    if model.separate_cross is not None:
        names = model.separate_cross.state_dict()
        model.separate_cross.load_state_dict({name: weights[name] for name in names})
    return WeightsReport(source=source, loaded=tuple(kept), missing=tuple(missing), unexpected=tuple(unexpected))


def is_hub_name(source: str) -> bool:
    """Return whether `source` looks like a hub name, NAME or OWNER/NAME, and is no existing folder. Paths below
    `pretrained/`, the folder of the presets, never count as hub names."""
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None
    return is_name and not source.startswith((".", "pretrained/")) and not Path(source).exists()


def bert_config(source: str) -> Any:
    """Return the configuration of a checkpoint on disk or on the hub; raise FileNotFoundError if there is none."""
    from transformers.models.auto.configuration_auto import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, local_files_only=not is_hub_name(source))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"model.pretrained_text={source} is neither a folder with config.json and weights nor a name that the hub "
            "answers for; download bert-base-uncased into a folder and name it, or set model.pretrained_text to None"
        ) from error


def refuse_other_sizes(config: ModelConfig, vocabulary_size: int, checkpoint: Any) -> None:
    """Raise ValueError with every difference between a BERT of configuration `checkpoint` and the shared network."""
    source = config.pretrained_text
    if checkpoint.model_type != "bert":
        raise ValueError(
            f"model.pretrained_text={source} is a {checkpoint.model_type}, and the shared network is a bert: take a "
            "BERT"
        )
    wrong = []
    for name, field in SIZES.items():
        ours, theirs = getattr(config, field.removeprefix("model.")), getattr(checkpoint, name)
        if ours != theirs:
            wrong.append(f"{field} is {ours} but {name} there is {theirs}: set {field} to {theirs}")
    for name, fixed in FIXED.items():
        if (theirs := getattr(checkpoint, name)) != fixed:
            wrong.append(f"{name} there is {theirs} and must be {fixed}: take another checkpoint")
    if checkpoint.vocab_size != vocabulary_size:
        wrong.append(
            f"the run's vocabulary has {vocabulary_size} pieces but vocab_size there is {checkpoint.vocab_size}: set "
            "text.vocabulary to the checkpoint's own"
        )
    if wrong:
        raise ValueError(f"model.pretrained_text={source} does not fit: {'; '.join(wrong)}")


def load_earlier_run(model: SNPS3, weights: Mapping[str, Tensor], source: str) -> WeightsReport:
    """Load the weights of an earlier run (its best/model.safetensors) into `model`.

    The report lists heads and queues of that run's objectives as unexpected, and parts that it was trained without
    (`NEW_PARTS`) as missing. Any other difference in names or shapes raises ValueError.
    """
    named = {name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")}
    state = model.state_dict()
    named = merged(named, state)
    missing, strangers, reshaped = map(sorted, differences(model, named))
    wrong = [name for name in missing if name.split(".")[0] not in NEW_PARTS]
    shapes = [f"{name} {tuple(named[name].shape)} there, {tuple(state[name].shape)} here" for name in reshaped]
    if wrong or strangers or shapes:
        raise ValueError(
            f"model.initial_weights={source} is of another network: {len(wrong)} tensors are "
            f"missing{format_names(wrong)}, {len(strangers)} are unknown{format_names(strangers)}, {len(shapes)} have "
            f"other shapes{format_names(shapes)}; take the model section of that run's config.json and its vocabulary, "
            "or set model.initial_weights to None"
        )
    model.load_state_dict(named, strict=False)
    others = tuple(sorted(name for name in weights if not name.startswith("model.")))
    return WeightsReport(source=source, loaded=tuple(named), missing=tuple(missing), unexpected=others)


def initialise(model: SNPS3, config: ModelConfig, earlier_run: bytes | None = None) -> Sequence[WeightsReport]:
    """Load the initial weights that `config` names into `model`; return a report per file. `earlier_run` is the content
    of the file `model.initial_weights`: the caller reads it, since this package accesses no storage."""
    if config.initial_weights is not None:
        assert earlier_run is not None, "the caller reads the file"
        return [load_earlier_run(model, safetensors.torch.load(earlier_run), config.initial_weights)]
    return [load_bert(model, config)] if config.pretrained_text is not None else []


def format_names(names: Sequence[str]) -> str:
    """Return the first names in parentheses, for a message; an empty string for no names."""
    more = ", …" if len(names) > 3 else ""
    return f" ({', '.join(names[:3])}{more})" if names else ""


def differences(module: nn.Module, weights: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Return the names of the tensors that are missing from `weights`, unknown to `module`, or of different shapes.
    Low-rank updates do not count as missing: they start at 0."""
    state = module.state_dict()
    missing = [name for name in state if name not in weights and not name.endswith((DOWN, UP))]
    unknown = [name for name in weights if name not in state]
    return missing, unknown, [name for name in state if name in weights and state[name].shape != weights[name].shape]
