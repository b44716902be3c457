"""Pre-trained visual weights: maps the names of public releases to our encoders, strictly and with a report.

| encoder | supported releases |
|---|---|
| resnet50 | torchvision; Hugging Face `ResNetModel` |
| pvt_v2_b* | whai362/PVT; Hugging Face `PvtV2Model` |
| video_swin_* | Video Swin, that of VIOLET, torchvision `swin3d_*`; Swin for images, inflated as in Video Swin |
| auto | any folder or hub name in Hugging Face format |
| all | an earlier run of this project, or the visual part of a checkpoint of the published code |
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from snps3_model.encoders import PvtV2, ResNet50, VisualEncoder
from snps3_model.loading import WeightsReport, differences, format_names
from snps3_model.public_networks import PublicBackbone
from snps3_model.video_swin import VideoSwin

WRAPPERS = re.compile(r"^(module|model|backbone|visual|img_encoder|enc_img|swin|resnet|pvt_v2|network)\.")
LEFT_OUT = re.compile(
    r"^(head|fc|classifier|cls_head|pooler|img_fc|avgpool)\."
    r"|(^|\.)(relative_position_index|relative_coords_table|attn_mask|num_batches_tracked)$"
)
"""Tensors that an encoder does not need: classification heads, index tables that we compute, and counters."""

Rules = tuple[tuple[str, str], ...]
"""Patterns and their replacements, applied in order."""
RESNET_RULES: Rules = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    *((rf"^layer{stage + 1}\.", f"encoder.stages.{stage}.layers.") for stage in range(4)),
    *((rf"\.conv{layer + 1}\.", f".layer.{layer}.convolution.") for layer in range(3)),
    *((rf"\.bn{layer + 1}\.", f".layer.{layer}.normalization.") for layer in range(3)),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
)
PVT_RULES: Rules = (
    *((rf"^patch_embed{stage + 1}\.", f"encoder.layers.{stage}.patch_embedding.") for stage in range(4)),
    *((rf"^norm{stage + 1}\.", f"encoder.layers.{stage}.layer_norm.") for stage in range(4)),
    *((rf"^block{stage + 1}\.", f"encoder.layers.{stage}.blocks.") for stage in range(4)),
    (r"\.patch_embedding\.norm\.", ".patch_embedding.layer_norm."),
    (r"\.norm([12])\.", r".layer_norm_\1."),
    (r"\.attn\.sr\.", ".attention.spatial_reduction."),
    (r"\.attn\.norm\.", ".attention.layer_norm."),
    (r"\.attn\.q\.", ".attention.query."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc([12])\.", r".mlp.dense\1."),
)
SWIN_RULES: Rules = (
    *((rf"^features\.{2 * stage}\.", f"layers.{stage}.blocks.") for stage in range(4)),
    *((rf"^features\.{2 * stage + 1}\.", f"layers.{stage}.downsample.") for stage in range(3)),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
RELEASES: Mapping[type, tuple[str, Rules]] = {
    ResNet50: ("backbone.", RESNET_RULES),
    PvtV2: ("backbone.network.", PVT_RULES),
    VideoSwin: ("backbone.", SWIN_RULES),
}
"""Backbone class → prefix of its names in our encoder, and the rules that rename those of its releases."""

Weights = Mapping[str, Tensor]


def load_visual_weights(encoder: nn.Module, path: str, files: Any) -> WeightsReport:
    """Load the weights at `path` of `files` into `encoder`; return a report on each tensor.

    `files` is `pipeline.storage`, or any object with its `exists`, `is_folder` and `read_bytes`.

    Only the projection to the network's width may be missing, and only tensors in `LEFT_OUT` may be unused; anything
    else raises ValueError and leaves the encoder unchanged. Raise FileNotFoundError if `path` does not exist.
    """
    if isinstance(encoder, VisualEncoder) and isinstance(encoder.backbone, PublicBackbone):
        return _load_public(encoder, encoder.backbone, path, files)
    return load_named(encoder, read_weights(path, files), path)


def load_named(encoder: nn.Module, weights: Mapping[str, Tensor], source: str) -> WeightsReport:
    """Load tensors that are already read as `load_visual_weights` does; `source` names them in errors."""
    state = encoder.state_dict()
    named, unexpected = renamed(encoder, weights)
    missing, strangers, reshaped = differences(encoder, named)
    named |= {name: inflated(name, named[name], state[name], source) for name in reshaped}
    wrong = [name for name in missing if not name.startswith("projection.")]
    if wrong or strangers:
        raise ValueError(
            f"{source} does not fit the visual encoder: {len(wrong)} of its tensors are missing{format_names(wrong)} "
            f"and {len(strangers)} are unknown{format_names(strangers)}; choose the model.visual.encoder that these "
            "weights were made for"
        )
    encoder.load_state_dict(named, strict=False)
    return WeightsReport(
        source=source,
        loaded=tuple(named),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        reshaped=tuple(reshaped),
    )


def renamed(encoder: nn.Module, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return `weights` under the names of `encoder`'s state, and the names of those in `LEFT_OUT`."""
    prefix, rules = RELEASES.get(type(getattr(encoder, "backbone", None)), ("", ()))
    named: dict[str, Tensor] = {}
    unexpected = []
    for name, tensor in weights.items():
        bare = _unwrapped(name)
        if LEFT_OUT.search(bare):
            unexpected.append(name)
        elif match := re.match(r"^(output_proj|projection)\.(weight|bias)$", bare):
            named[f"projection.{match[2]}"] = tensor
        elif ".attn.kv." in bare:  # PVTv2's release stores keys and values in one tensor
            for part, half in zip(("key", "value"), tensor.chunk(2), strict=True):
                named[prefix + _applied(rules, bare.replace(".attn.kv.", f".attn.{part}."))] = half
        else:
            named[prefix + _applied(rules, bare)] = tensor
    return named, unexpected


def inflated(name: str, tensor: Tensor, like: Tensor, source: str) -> Tensor:
    """Inflate weights of an image Swin for clips: patches divided by their length in time, bias tables repeated over
    it. Raise ValueError for any other difference in shape."""
    if name.endswith("patch_embed.proj.weight") and tensor.ndim == 4 and tensor.shape[2:] == like.shape[3:]:
        wide = tensor[:, :, None].expand_as(like) / like.shape[2]
        return wide.contiguous()
    is_table = name.endswith("relative_position_bias_table") and tensor.shape[1:] == like.shape[1:]
    planes, rest = divmod(len(like), len(tensor)) if tensor.ndim else (0, 1)
    if is_table and planes > 1 and rest == 0:
        return tensor.repeat(planes, 1)
    raise ValueError(
        f"{source}: {name} has shape {tuple(tensor.shape)}, but model.visual.encoder needs {tuple(like.shape)}; choose "
        "the encoder size, and for Video Swin the window of 8 × 7 × 7, that these weights were made for"
    )


def read_weights(path: str, files: Any) -> dict[str, Tensor]:
    """Return name → tensor of a .safetensors, .pt, .pth or .bin file, or of a folder in Hugging Face format.

    Pickles are read with `weights_only`, so they execute no code.
    """
    if not files.exists(path):
        raise FileNotFoundError(
            f"model.visual.pretrained={path} is not there; download the weights to it, or set model.visual.pretrained "
            "to None to start from random ones"
        )
    if files.is_folder(path):
        return _read_folder(path, files)
    content = files.read_bytes(path)
    if path.endswith(".safetensors"):
        return dict(sorted(safetensors.torch.load(content).items()))  # load returns them in no fixed order
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    weights = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not weights:
        raise ValueError(f"{path} holds no tensors by name; give model.visual.pretrained a state dict")
    return weights


def _read_folder(folder: str, files: Any) -> dict[str, Tensor]:
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if files.exists(f"{folder}/{whole}"):
            return read_weights(f"{folder}/{whole}", files)
        if files.exists(index := f"{folder}/{whole}.index.json"):
            shards = sorted(set(json.loads(files.read_bytes(index))["weight_map"].values()))
            return {name: part for shard in shards for name, part in read_weights(f"{folder}/{shard}", files).items()}
    raise FileNotFoundError(
        f"model.visual.pretrained={folder} has neither model.safetensors nor pytorch_model.bin; name a folder in "
        "Hugging Face format, or the file itself"
    )


def _load_public(encoder: VisualEncoder, backbone: PublicBackbone, path: str, files: Any) -> WeightsReport:
    """Load weights in Hugging Face format through Transformers, which maps the names of older model versions."""
    network, weights = backbone.network, None
    if files.exists(path):  # not a hub name
        weights = read_weights(path, files)
        if not files.is_folder(path):
            return load_named(encoder, weights, path)
    model, info = _read_public(network, path, weights)
    missing = set(network.state_dict()) & set(info["missing_keys"])
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in missing}
    state |= _last_norm(network, path, weights, missing)
    missing -= set(state)
    needed = sorted(missing - backbone.unreached)
    wrong = sorted(name for name, *_ in info["mismatched_keys"])
    if needed or wrong:
        raise ValueError(
            f"{path} does not fit model.visual.backbone: {len(needed)} of its tensors are "
            f"missing{format_names(needed)} and {len(wrong)} have other shapes{format_names(wrong)}; let both name the "
            "same model"
        )
    network.load_state_dict(state, strict=False)
    projection = [name for name in encoder.state_dict() if name.startswith("projection.")]
    return WeightsReport(
        source=path,
        loaded=tuple(f"backbone.network.{name}" for name in state),
        missing=(*projection, *(f"backbone.network.{name}" for name in sorted(missing))),
        unexpected=tuple(sorted(info["unexpected_keys"])),
    )


def _from_pretrained(model_class: Any, config: Any, path: str, weights: Weights | None, **options: Any) -> Any:
    """Return a model of Transformers with `weights`, or with those of `path` on the hub."""
    return model_class.from_pretrained(
        path if weights is None else None, config=config, state_dict=weights, dtype=torch.float32, **options
    )


def _read_public(network: Any, path: str, weights: Weights | None) -> tuple[Any, Mapping[str, Any]]:
    """Return the network at `path`, and the loading report of Transformers."""
    try:
        return _from_pretrained(
            type(network), network.config, path, weights, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except OSError as error:
        raise FileNotFoundError(
            f"model.visual.pretrained={path} is neither a folder with weights nor a name on the hub that can be "
            f"reached; download the model and name its folder ({error})"
        ) from error


def _last_norm(network: Any, path: str, weights: Weights | None, missing: set[str]) -> dict[str, Tensor]:
    """Return the norm of the last stage, which the whole model names differently from its backbone."""
    named = {name: name.rpartition(".")[2] for name in missing if name.startswith("hidden_states_norms.")}
    if not named:
        return {}
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    whole = _from_pretrained(MODEL_MAPPING[type(network.config)], network.config, path, weights)
    norm = getattr(whole, "layernorm", None)
    state = {} if norm is None else norm.state_dict()
    return {name: state[part] for name, part in named.items() if part in state}


def _unwrapped(name: str) -> str:
    while match := WRAPPERS.match(name):
        name = name[match.end() :]
    return name


def _applied(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
