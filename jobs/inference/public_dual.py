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
TEXTS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class PublicDual:
    """Both towers, and what reads their texts and pictures."""

    network: Any
    tokenizer: Any
    picture_processor: Any
    size_px: int
    """Short side of the pictures that the visual tower takes."""
    max_tokens: int
    padding: str
    """`max_length` for SigLIP, which was trained with padded texts; else `longest`."""

    def long_side_px(self, width: int, height: int) -> int:
        """Return the long side of a frame whose short side is `size_px`."""
        return round(self.size_px * max(width, height) / min(width, height))

    @torch.no_grad()
    def embed_clip(self, frames: UInt8[np.ndarray, "T H W 3"]) -> Float[Tensor, " D"]:
        """Return the unit vector of a clip: the mean of its frames' unit vectors, scaled to length 1."""
        pixels = self.picture_processor(images=list(frames), return_tensors="pt")["pixel_values"]
        vectors = pooled(self.network.get_image_features(pixel_values=pixels.to(self.network.device)))
        return F.normalize(F.normalize(vectors, dim=-1).mean(0), dim=-1)

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


def load_public(folder: str, device: str = "cpu") -> PublicDual:
    """Load a folder in Hugging Face's format, with safetensors and no code of its own.

    Raise FileNotFoundError if there is none, ValueError if it is of another kind or incomplete.
    """
    path = storage.absolute(folder)
    if storage.is_remote(path) or not storage.exists(f"{path}/config.json"):
        raise FileNotFoundError(
            f"the baseline hub={folder} needs a folder on this machine with a config.json, and {path} has none; "
            f"download the model with `hf download OWNER/NAME --local-dir {folder}`"
        )
    if (kind := run_files.read_json(f"{path}/config.json").get("model_type")) not in MODEL_TYPES:
        raise ValueError(
            f"the baseline hub={folder} is of type {kind}, and only {' or '.join(MODEL_TYPES)} gives vectors of "
            "texts and pictures here; name such a folder"
        )
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    try:
        network = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        pictures = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the baseline hub={folder} lacks weights as safetensors, its tokenizer or its preprocessor_config.json: "
            f"{first}; download the whole folder again"
        ) from error
    config = network.config
    return PublicDual(
        network=network.eval().to(device),
        tokenizer=tokenizer,
        picture_processor=pictures,
        size_px=config.vision_config.image_size,
        max_tokens=config.text_config.max_position_embeddings,
        padding="max_length" if kind == "siglip" else "longest",
    )
