"""The text processing of a run. Imports neither Ray nor MLflow, because trained models are loaded with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from jobs.run.config import TextConfig
from pipeline import storage
from pipeline.records import Batch, ClipRows
from pipeline.stream.collate import collate
from pipeline.text.config import MaskingConfig
from pipeline.text.significance import SignificantWords
from pipeline.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TextProcessor:
    """The tokenizer and the significant words of a run, with their settings."""

    tokenizer: Tokenizer
    table: SignificantWords
    text: TextConfig
    masking: MaskingConfig
    seed: int
    length_groups: int = 1

    @classmethod
    def load(cls, folder: str, **settings: Any) -> Self:
        """Read the vocabulary and the significant words in a run's folder; `settings` are the other fields."""
        tokenizer = Tokenizer.load(f"{folder}/tokenizer.json")
        table = SignificantWords.from_json(storage.read_bytes(f"{folder}/significant_words.json").decode())
        return cls(tokenizer=tokenizer, table=table, **settings)

    def batch(self, rows: ClipRows, masking: MaskingConfig | None = None) -> Batch:
        """Return clips and captions as a batch, masked as in training or by `masking`."""
        return collate(
            rows,
            tokenizer=self.tokenizer,
            table=self.table,
            masking=masking or self.masking,
            num_words=self.text.num_words,
            lvwm_top_k=self.text.lvwm_top_k,
            seed=self.seed,
            max_tokens=self.text.max_tokens,
            max_length_groups=self.length_groups,
        )

    def tokens(self, texts: Sequence[str]) -> tuple[Int64[Tensor, "N L"], Bool[Tensor, "N L"]]:
        """Return ids and mask of texts; long texts are truncated."""
        rows = self.tokenizer.encode(texts, self.text.max_tokens)
        ids = torch.full((len(rows), max(map(len, rows))), self.tokenizer.special.pad)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.from_numpy(tokens)
        return ids, ids != self.tokenizer.special.pad
