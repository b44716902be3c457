"""Settings of masking. Imports nothing slow, since every command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

UNRANKED = 2**63 - 1
"""Rank of a word that was never counted; it is significant under no limit."""


class Strategy(StrEnum):
    """How the words to mask are chosen."""

    MLM = "mlm"
    """Each word piece with the same probability, as in BERT."""
    MSSM = "mssm"
    """An exact number of words, significant ones first: masked significant semantic modelling."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How words are hidden from the model."""

    strategy: Strategy = Strategy.MSSM
    """`mssm` hides significant words first, `mlm` hides any."""
    ratio: float = 0.15
    """Masking ratio: the share of a caption's word pieces that is chosen."""
    mask_share: float = 0.8
    """Share of the chosen pieces that becomes [MASK]."""
    random_share: float = 0.1
    """Share of the chosen pieces that becomes another word; what is left of 1 stays as it is and is predicted too."""
    top_k: int | None = 3000
    """For `mssm` a word is significant if its rank, counted from 0, is at most this; None takes every noun, verb and
    adjective that was counted. More than there are is refused."""
    significant_share: float = 1.0
    """How likely each piece that `mssm` chooses is to be of a significant word, as far as the caption has both kinds.
    1 is the paper's rule; 0 hides significant words last."""
    whole_words: bool = False
    """Choose all pieces of a word of which one is chosen; more than `ratio` of the pieces are then hidden."""
    min_masked: int = 0
    """Pieces chosen at least, where the caption has as many. 0 leaves a caption of one piece unmasked, as the paper's
    count rule does."""

    def __post_init__(self) -> None:
        for name in ("ratio", "mask_share", "random_share", "significant_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"masking.{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                "masking.mask_share and masking.random_share must not exceed 1 together, "
                f"got {self.mask_share} + {self.random_share}"
            )
        for name in ("top_k", "min_masked"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"masking.{name} must not be negative, got {getattr(self, name)}")
