"""Folders of CLIP and SigLIP as the hub has them: the true architecture in a small size, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("[PAD]", "[UNK]", "a", "red", "blue", "ring", "star", "rises")
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SIZES | {"patch_size": 12, "image_size": 36}
TEXT = SIZES | {"vocab_size": 12, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0}


def clip_folder(folder: Path, seed: int = 0) -> str:
    """Write a CLIP, which crops pictures to squares; return its folder."""
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 36}, "crop_size": {"height": 36, "width": 36}}
    return with_processors(folder, {"image_processor_type": "CLIPImageProcessor", **size})


def siglip_folder(folder: Path, seed: int = 0) -> str:
    """Write a SigLIP, which scales pictures to squares; return its folder."""
    torch.manual_seed(seed)
    text = TEXT | {"pad_token_id": 0, "projection_size": 16}
    transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config=text)).save_pretrained(folder)
    size = {"size": {"height": 36, "width": 36}}
    return with_processors(folder, {"image_processor_type": "SiglipImageProcessor", **size})


def with_processors(folder: Path, pictures: dict[str, Any]) -> str:
    """Write the tokenizer of `WORDS` and a processor of pictures into a folder; return it."""
    tokens = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    return str(folder)
