"""What the network and its objectives are made of. Defaults are here and nowhere else; presets choose other values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class VisualConfig:
    """The encoder from frames to a grid of features."""

    encoder: Literal["small_cnn", "resnet50", "pvt_v2_b2", "video_swin_small"] = "small_cnn"
    """The small CNN learns from scratch; the paper's three start from pre-trained weights."""
    channels: tuple[int, ...] = (32, 64, 128, 128)
    """Output channels of each 3×3 convolution of the small CNN; every convolution but the last halves the frame."""
    frozen_batch_norm: bool = False
    """Use stored statistics instead of the batch's. Only sensible with pre-trained weights."""
    pretrained: str | None = None
    """Path of pre-trained visual weights; None starts from random weights."""

    def __post_init__(self) -> None:
        if len(self.channels) < 2:
            raise ValueError(f"model.visual.channels needs at least 2 convolutions, got {self.channels}")
        if self.frozen_batch_norm and self.pretrained is None:
            raise ValueError(
                "model.visual.frozen_batch_norm on random weights normalises nothing and the run would not learn; "
                "set model.visual.pretrained, or leave frozen_batch_norm off"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The one BERT-type network for text-only and cross-modal input, and its visual encoder."""

    visual: VisualConfig = field(default_factory=VisualConfig)
    pretrained_text: str | None = None
    """Folder of a pre-trained BERT, of this size and vocabulary, for the shared network; None starts from random
    weights."""
    initial_weights: str | None = None
    """Weights of an earlier run of the same network, its `best/model.safetensors`; None starts a first run."""
    hidden: int = 128
    """Width of the shared network and of the dual-encoder vectors."""
    num_layers: int = 2
    num_heads: int = 4
    feed_forward: int = 512
    max_positions: int = 64
    """Rows of the position table; text and frames each count from 0, so this bounds the longer of the two."""
    dropout: float = 0.1
    initial_std: float = 0.02
    """Standard deviation of the shared network's random weights, BERT's 0.02 at width 768; a narrow network trained
    from scratch needs more, about 1/√hidden, or its attention starts flat and the cross pass learns nothing."""

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden % self.num_heads:
            raise ValueError(
                f"model.hidden must be divisible by model.num_heads, got {self.hidden} and {self.num_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The losses of SNP-S3 and their weights. A weight of 0 leaves the loss, and its passes, out."""

    gvtm_level1: float = 1.0
    """ℒ3: dual-encoder matching of whole clips and captions."""
    gvtm_level2: float = 1.0
    """ℒ4: cross-modal matching of whole clips and captions."""
    masked_words_text: float = 1.0
    """ℒ1: masked words from the masked caption alone."""
    masked_words_cross: float = 1.0
    """ℒ2: masked words from the masked caption and the clip."""
    lvwm: float = 1.0
    """LVWM: single significant words matched with the clip."""
    temperature: float = 0.05
    """Divides the cosines of GVTM level 1; raw cosines (1.0) were seen to learn nothing."""
    num_hard_negatives: int | None = None
    """Negatives per caption and per clip for GVTM level 2, wrong ones of the gathered pool that the dual encoder
    scores high. None scores every pair."""
    negative_spread: float = 0.0
    """How far the choice of hard negatives strays from the highest dual scores: they are drawn without replacement in
    proportion to exp(score / spread). 0 takes the highest."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"objective.temperature must be above 0, got {self.temperature}")
        if self.num_hard_negatives is not None and self.num_hard_negatives < 1:
            raise ValueError(
                f"objective.num_hard_negatives must be at least 1, got {self.num_hard_negatives}; "
                "None scores every pair, objective.gvtm_level2=0 turns the loss off"
            )
        if self.negative_spread < 0:
            raise ValueError(f"objective.negative_spread must not be negative, got {self.negative_spread}")
        if min(self.weights.values()) < 0:
            raise ValueError(f"loss weights must not be negative, got {self.weights}")
        if not any(self.weights.values()):
            raise ValueError("every loss weight of the objective is 0: nothing would be learned")

    @property
    def weights(self) -> dict[str, float]:
        """Loss name to weight, in the order in which the losses are reported."""
        names = ("gvtm_level1", "gvtm_level2", "masked_words_text", "masked_words_cross", "lvwm")
        return {name: getattr(self, name) for name in names}
