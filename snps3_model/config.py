"""Configuration of the network and its objectives. All defaults are here; presets override them.

The defaults follow the paper. Where the published code deviates, a field switches to its behaviour; the field's
docstring marks this with the word *published*. `reference_objective` sets all of these switches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from snps3_model.loss_table import LOSSES, parse_extra

Encoder = Literal[
    "small_cnn",
    "clip_cnn",
    "resnet50",
    "pvt_v2_b0",
    "pvt_v2_b1",
    "pvt_v2_b2",
    "pvt_v2_b3",
    "pvt_v2_b4",
    "pvt_v2_b5",
    "video_swin_tiny",
    "video_swin_small",
    "video_swin_base",
    "auto",
]
Pixels = Literal["imagenet", "clip", "half"]
SCRATCH_ENCODERS: tuple[str, ...] = get_args(Encoder)[:2]
PRETRAINED_ENCODERS: tuple[str, ...] = get_args(Encoder)[2:]


@dataclass(frozen=True, kw_only=True)
class VisualConfig:
    """The encoder from frames to a grid of features."""

    encoder: Encoder = "small_cnn"
    """`small_cnn` and `clip_cnn` learn from scratch, the latter sees motion; all others start from pre-trained weights.
    The paper has resnet50, pvt_v2_b2 and video_swin_small. `auto` is the image network that `backbone` describes."""
    backbone: str | None = None
    """For `auto`: folder or hub name, in Hugging Face format, of a DINOv2, DINOv3, ConvNeXt, Swin, ViT, CLIP, SigLIP …
    that sees frames, or of a VideoMAE, ViViT or V-JEPA 2 that sees the clip; only its config.json is read here, its
    weights if `pretrained` names it too."""
    pixels: Pixels = "imagenet"
    """For `auto`: mean and standard deviation of the pixels that `backbone` was trained with, those of ImageNet, of
    CLIP, or one half each (SigLIP, ViT)."""
    channels: tuple[int, ...] = (32, 64, 128, 128)
    """Output channels of each convolution of the CNNs that learn from scratch. Each but the last halves the frame; the
    first of `clip_cnn` takes a quarter."""
    frozen_batch_norm: bool = False
    """Normalise with stored statistics instead of the batch's: optional for CNNs from scratch, required for resnet50.
    Only sensible with pre-trained weights."""
    frozen: bool = False
    """Train only the projection to the network's width, not the pre-trained encoder."""
    lora_rank: int | None = None
    """Train low-rank updates (LoRA) of this rank for the linear layers of the pre-trained encoder and freeze the rest
    of it; None trains all of it."""
    drop_path: float = 0.0
    """Stochastic depth: the share of residual branches left out, rising from 0 to this over the layers. The paper has
    0.2 for Video Swin and none for the others."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third more compute."""
    reference_window_index: bool = False
    """Video Swin: read the bias table of windows cut below 7 cells (frames under 224 px) as the published code did,
    with wrong offsets."""
    pretrained: str | None = None
    """File (.safetensors, .pt, .pth) or folder in Hugging Face format with pre-trained visual weights; None starts from
    random weights."""

    def __post_init__(self) -> None:
        if len(self.channels) < 2:
            raise ValueError(f"model.visual.channels needs at least 2 convolutions, got {self.channels}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"model.visual.drop_path must lie in [0, 1), got {self.drop_path}")
        if self.encoder not in get_args(Encoder):
            raise ValueError(
                f"model.visual.encoder={self.encoder!r} is unknown; take {' or '.join(SCRATCH_ENCODERS)}, or one of "
                f"{', '.join(PRETRAINED_ENCODERS)}"
            )
        if (self.encoder == "auto") != (self.backbone is not None):
            raise ValueError(
                f"model.visual.backbone names the network of model.visual.encoder=auto, and of no other: got backbone="
                f"{self.backbone} with encoder={self.encoder}; set both or neither"
            )
        if self.encoder == "resnet50" and not self.frozen_batch_norm:
            raise ValueError(
                "model.visual.encoder=resnet50 has frozen batch normalisation only, as in the paper; set "
                "model.visual.frozen_batch_norm"
            )
        if self.lora_rank is not None and (self.lora_rank < 1 or self.frozen):
            raise ValueError(
                f"model.visual.lora_rank must be at least 1 or None, and needs model.visual.frozen off, got "
                f"{self.lora_rank} with frozen={self.frozen}"
            )
        self._refuse_what_has_no_effect()

    def _refuse_what_has_no_effect(self) -> None:
        """Raise ValueError for a setting that the chosen encoder would ignore."""
        kinds = {
            "frozen_batch_norm": (*SCRATCH_ENCODERS, "resnet50"),
            "frozen": PRETRAINED_ENCODERS,
            "lora_rank": tuple(name for name in PRETRAINED_ENCODERS if name != "resnet50"),
            "drop_path": tuple(name for name in PRETRAINED_ENCODERS if name != "resnet50"),
            "activation_checkpointing": PRETRAINED_ENCODERS,
            "pixels": ("auto",) if self.pixels != "imagenet" else get_args(Encoder),
            "reference_window_index": tuple(name for name in PRETRAINED_ENCODERS if name.startswith("video_swin")),
        }
        for name, encoders in kinds.items():
            if getattr(self, name) and self.encoder not in encoders:
                raise ValueError(
                    f"model.visual.{name} has no effect on model.visual.encoder={self.encoder}; leave it off, or take "
                    f"one of {', '.join(encoders)}"
                )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The one BERT-type network for text-only and cross-modal input, and its visual encoder."""

    visual: VisualConfig = field(default_factory=VisualConfig)
    pretrained_text: str | None = None
    """Folder, or name on the hub, of a pre-trained BERT of this size and vocabulary in Hugging Face format, for the
    shared network; None starts from random weights."""
    initial_weights: str | None = None
    """Weights of an earlier run of the same network, its `best/model.safetensors`; None starts a first run."""
    lora_rank: int | None = None
    """Train low-rank updates (LoRA) of this rank for the linear layers of the shared network; embeddings and heads
    train in full. None trains all of it."""
    hidden: int = 128
    """Width of the shared network and of the dual-encoder vectors."""
    num_layers: int = 2
    cross_network: Literal["shared", "separate"] = "shared"
    """`shared` is SNP: the cross pass runs through the layers of the text network. `separate` is the baseline P3E: a
    third encoder with its own embeddings."""
    num_cross_layers: int = 3
    """Layers of the separate cross network; the shared one has `num_layers`."""
    num_heads: int = 4
    feed_forward: int = 512
    num_temporal_layers: int = 0
    """Layers of an encoder over the frames of a clip, between the visual encoder and both matching encoders; the
    published code has 3 and leaves them off."""
    grid_side: int = 1
    """k: the cross pass sees k × k tokens per frame, each the mean over one part of it, with the frame's position and a
    learned embedding of the part; 1 is the paper's one token per frame. The dual encoder always takes the frame's
    mean."""
    max_positions: int = 64
    """Rows of the position table; the positions of text and of frames both start at 0, so this bounds the longer of the
    two."""
    dropout: float = 0.1
    initial_std: float = 0.02
    """Standard deviation of the shared network's random weights, BERT's 0.02 at width 768; a narrow network trained
    from scratch needs more, about 1/√hidden, or its attention starts flat and the cross pass learns nothing."""

    def __post_init__(self) -> None:
        if self.lora_rank is not None and not 1 <= self.lora_rank < self.hidden:
            raise ValueError(
                f"model.lora_rank must lie in [1, model.hidden={self.hidden}) or be None, got {self.lora_rank}"
            )
        if self.grid_side < 1:
            raise ValueError(f"model.grid_side must be at least 1, got {self.grid_side}")
        if self.grid_side > 1 and self.visual.encoder == "clip_cnn":
            raise ValueError(
                f"model.visual.encoder=clip_cnn gives one token per frame, and model.grid_side={self.grid_side} asks "
                "for more; set it to 1, or take another encoder"
            )
        if self.num_temporal_layers < 0:
            raise ValueError(f"model.num_temporal_layers must not be negative, got {self.num_temporal_layers}")
        if self.grid_side > 1 and self.num_temporal_layers:
            raise ValueError(
                f"model.num_temporal_layers={self.num_temporal_layers} works on one token per frame, and "
                f"model.grid_side={self.grid_side} asks for more; leave one of them off"
            )
        if self.num_heads < 1 or self.hidden % self.num_heads:
            raise ValueError(
                f"model.hidden must be divisible by model.num_heads, got {self.hidden} and {self.num_heads}"
            )
        if self.pretrained_text is not None and self.initial_weights is not None:
            raise ValueError(
                f"model.initial_weights={self.initial_weights} would overwrite "
                f"model.pretrained_text={self.pretrained_text}; set one of them to None"
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
    itm: float = 0.0
    """Image-text matching: classify a fused pair as true or false. In the published code (1), not in the paper."""
    sigmoid: float = 0.0
    """Dual-encoder matching that classifies each pair alone as true or false (SigLIP), beside ℒ3, or instead of it with
    `gvtm_level1` at 0. It has its own bias and uses `temperature` (SigLIP starts at 0.1 and learns it)."""
    clip_order: float = 0.0
    """Frame order: permute some frames before the temporal encoder, which predicts their true positions (published,
    off). Needs `model.num_temporal_layers`."""
    itm_negative: Literal["random", "hard"] = "random"
    """The false caption of `itm`: any other of the gathered batch, or the one that the dual encoder scores highest."""
    temperature: float = 0.05
    """Divides the cosines of GVTM level 1 and `sigmoid`; in our runs nothing was learned from raw cosines (1.0)."""
    learn_temperature: bool = False
    """Train `temperature`, starting at the value above, with a lower limit of 0.01 (CLIP)."""
    frames: Literal["all", "middle"] = "all"
    """Which frames of a clip are matched by GVTM level 1 and LVWM: `all`, joined by log-sum-exp, or as published the
    `middle` one of the true clip against every frame of the others."""
    queue_length: int | None = None
    """Number of earlier vectors, from momentum encoders, that GVTM level 1 contrasts with (MoCo; published: 16384).
    None contrasts with the gathered batch."""
    queue_momentum: float = 0.9999
    """Momentum of the encoders of the queue: the share of their weights that each step keeps."""
    queue_end: Literal["circular", "shifted"] = "circular"
    """A block that passes the end of a queue wraps around (`circular`), or as published is `shifted` back over the
    newest entries."""
    matching_text: Literal["raw", "masked"] = "raw"
    """The caption that GVTM level 2 and the true pairs of `itm` read; published: `masked`."""
    text_alone: Literal["masked", "raw"] = "masked"
    """The caption that ℒ1 reads; published: `raw`, which shows the answer."""
    attentive_share: float = 0.0
    """Share of the steps whose masked words are drawn by the attention that they receive, all of them as [MASK];
    published: 0.5."""
    attentive_layers: Literal["last", "all"] = "last"
    """Layers over which that attention is summed; published: `all`."""
    lvwm_stage: Literal["after", "before", "both"] = "after"
    """Word vectors of LVWM: `after` the text pass, `before` it (the embeddings), or a loss of each."""
    pairs: Literal["gathered", "local"] = "gathered"
    """Pool of GVTM level 2: the global batch, or as published each rank's own part of it."""
    num_hard_negatives: int | None = None
    """Negatives per caption and per clip for GVTM level 2, wrong ones of the gathered pool that the dual encoder
    scores high. None scores every pair."""
    negative_spread: float = 0.0
    """How far the choice of hard negatives strays from the highest dual scores: they are drawn without replacement in
    proportion to exp(score / spread). 0 takes the highest."""

    mining: Literal["both_ways", "nearest", "top_k"] = "both_ways"
    """How negatives of GVTM level 2 are mined. `both_ways`: `num_hard_negatives` clips and captions. As published, as
    many clips per caption as a rank has rows: `nearest` to the true pair's level-1 score, or the highest (`top_k`)."""
    reweight_easy: bool = False
    """Captions whose true pair scores above the mean at level 1 count less in the published mining."""
    dual_share: float = 0.0
    """The first steps of a run, this share of them, compute GVTM level 1, or `sigmoid`, alone: the dual encoder learns
    for half the price of a step, and hard negatives are hard from the first step that mines them."""
    extra: tuple[str, ...] = ()
    """Losses of other packages: package.module:NAME, or the name of an entry point of the group snps3.losses, with
    =WEIGHT behind it if that is not 1. They are imported when a run is trained that names them on its command line."""

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
        if self.queue_length is not None and self.queue_length < 1:
            raise ValueError(
                f"objective.queue_length must be at least 1, got {self.queue_length}; None contrasts within the batch"
            )
        for name in ("queue_momentum", "attentive_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.reweight_easy and self.mining == "both_ways":
            raise ValueError("objective.reweight_easy needs objective.mining=nearest or top_k, got both_ways")
        if self.mining != "both_ways" and self.num_hard_negatives is not None:
            raise ValueError(
                f"objective.mining={self.mining} takes as many clips as a rank has rows, got "
                f"objective.num_hard_negatives={self.num_hard_negatives}; leave it None"
            )
        if not 0 <= self.dual_share < 1:
            raise ValueError(f"objective.dual_share must lie in [0, 1), got {self.dual_share}")
        if self.dual_share and not (self.gvtm_level1 or self.sigmoid):
            raise ValueError(
                f"objective.dual_share={self.dual_share} is of objective.gvtm_level1 or objective.sigmoid alone, and "
                "both are 0; set one of them, or dual_share to 0"
            )
        if min(self.weights.values()) < 0:
            raise ValueError(f"loss weights must not be negative, got {self.weights}")
        extra = [weight for _, weight in map(parse_extra, self.extra)]
        if not any((*self.weights.values(), *extra)):
            raise ValueError("every loss weight of the objective is 0: nothing would be learned")

    @property
    def weights(self) -> dict[str, float]:
        """Name to weight of the built-in losses; beyond the paper's five only those that are on."""
        weights = {loss.name: getattr(self, loss.name) for loss in LOSSES}
        optional = {loss.name for loss in LOSSES if loss.is_optional}
        return {name: weight for name, weight in weights.items() if weight or name not in optional}


def refuse_order_without_time(objective: ObjectiveConfig, model: ModelConfig) -> None:
    """Raise ValueError for a loss that only the temporal encoder can solve, in a model without one."""
    for loss in LOSSES:
        if loss.needs_temporal and (weight := objective.weights.get(loss.name)) and not model.num_temporal_layers:
            raise ValueError(
                f"objective.{loss.name}={weight} needs the temporal encoder; set model.num_temporal_layers, or leave "
                f"{loss.name} at 0"
            )


def reference_objective(**changes: Any) -> ObjectiveConfig:
    """Return the six losses as the published training code computed them; `changes` are fields of ObjectiveConfig.

    It masked with MSSM, and matched the masked caption where the paper matches the whole one.
    """
    published: dict[str, Any] = {
        "itm": 1.0,
        "frames": "middle",
        "queue_length": 16_384,
        "queue_end": "shifted",
        "matching_text": "masked",
        "text_alone": "raw",
        "attentive_share": 0.5,
        "attentive_layers": "all",
        "pairs": "local",
    }
    return ObjectiveConfig(**published | changes)
