"""A folder of CLIP or SigLIP as the hub has it, which scores clips with texts frame by frame, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from jobs.run import run_files
from pipeline import storage

MODEL_TYPES = ("clip", "siglip")
TEXTS_AT_ONCE, PICTURES_AT_ONCE = 256, 64
PICTURES = ("preprocessor_config.json", "processor_config.json")
TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model")


@dataclass(frozen=True, kw_only=True)
class PublicDual:
    """Both towers, and what reads their texts and pictures."""

    network: Any
    tokenizer: Any
    picture_processor: Any
    size_px: int
    """Short side of the pictures that the visual tower takes."""
    width: int
    """D of the vectors."""
    max_tokens: int
    padding: str
    """`max_length` for SigLIP, which was trained with padded texts; else `longest`."""

    def long_side_px(self, width: int, height: int) -> int:
        """Return the long side of a frame whose short side is `size_px`."""
        return round(self.size_px * max(width, height) / min(width, height))

    def embed_clip(self, frames: UInt8[np.ndarray, "T H W 3"]) -> Float[Tensor, " D"]:
        """Return the unit vector of a clip: the mean of its frames' unit vectors, scaled to length 1."""
        return F.normalize(self.embed_pictures(list(frames)).mean(0), dim=-1)

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "n D"]:
        """Return a unit vector per picture; the model's own processor scales and crops them."""
        parts = []
        for start in range(0, len(pictures), PICTURES_AT_ONCE):
            some = list(pictures[start : start + PICTURES_AT_ONCE])
            pixels = self.picture_processor(images=some, return_tensors="pt")["pixel_values"]
            vectors = pooled(self.network.get_image_features(pixel_values=pixels.to(self.network.device)))
            parts.append(F.normalize(vectors, dim=-1))
        return torch.cat(parts)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "Q D"]:
        """Return a unit vector per text; too long ones are truncated at the end."""
        parts = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            tokens = self.tokenizer(
                list(texts[start : start + TEXTS_AT_ONCE]),
                padding=self.padding,
                max_length=self.max_tokens,
                truncation=True,
                return_tensors="pt",
            ).to(self.network.device)
            kept = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
            parts.append(F.normalize(pooled(self.network.get_text_features(**kept)), dim=-1))
        return torch.cat(parts)

    def scores(self, texts: Sequence[str], clips: Float[Tensor, "N D"]) -> Float[np.ndarray, "Q N"]:
        """Return the cosine of each text and each clip."""
        return (self.embed_texts(texts) @ clips.T).float().cpu().numpy()


def pooled(features: Any) -> Float[Tensor, "n D"]:
    """Return the projected vectors, which Transformers 4 returns bare and 5 within an output."""
    return features if isinstance(features, Tensor) else features.pooler_output


def list_weights(folder: str) -> list[str]:
    """Return the paths of a public model's weights. Raise ValueError for a folder that lacks them, its tokenizer or its
    image processor."""
    names = storage.list_files(folder)
    weights = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    tokenizer, pictures = ({*names} & {*wanted} for wanted in (TOKENIZERS, PICTURES))
    found = {"*.safetensors": weights, " or ".join(TOKENIZERS): tokenizer, PICTURES[0]: pictures}
    if lacking := [what for what, files in found.items() if not files]:
        raise ValueError(f"{folder} lacks {' and '.join(lacking)}: download the whole folder again, {remedy(folder)}")
    return [f"{folder}/{name}" for name in weights]


def remedy(folder: str) -> str:
    """Return how to get a public model."""
    return f"`hf download OWNER/NAME --local-dir {folder}`"


def load_public(folder: str, device: str = "cpu") -> PublicDual:
    """Load a folder in Hugging Face's format, with safetensors and no code of its own.

    Raise FileNotFoundError if there is none, ValueError if it is of another kind or incomplete.
    """
    path = storage.absolute(folder)
    if storage.is_remote(path) or not storage.exists(f"{path}/config.json"):
        raise FileNotFoundError(
            f"a public model needs a folder on this machine with a config.json, and {path} has none; download the "
            f"model: {remedy(folder)}"
        )
    if (kind := run_files.read_json(f"{path}/config.json").get("model_type")) not in MODEL_TYPES:
        raise ValueError(
            f"{folder} is of type {kind}, and only {' or '.join(MODEL_TYPES)} gives vectors of texts and pictures "
            "here; name such a folder"
        )
    list_weights(path)
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    try:
        network = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        pictures = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder} does not load: {first}; download the whole folder again") from error
    config = network.config
    return PublicDual(
        network=network.eval().to(device),
        tokenizer=tokenizer,
        picture_processor=pictures,
        size_px=config.vision_config.image_size,
        width=config.projection_dim if kind == "clip" else config.text_config.projection_size,
        max_tokens=config.text_config.max_position_embeddings,
        padding="max_length" if kind == "siglip" else "longest",
    )
