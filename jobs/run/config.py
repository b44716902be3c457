"""A run as a value: one frozen configuration, with an identity part and a placement part.

Identity (data, text, masking, model, objective, task, optim, selection, seed) is hashed: a run name belongs to one
identity. Placement (where, on how many workers, how often it logs) may change whenever the run is resumed.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Literal

from jobs.run.fields import flat, refuse_below
from jobs.run.rules import (
    nearest_multiples,
    refuse_frozen_random_weights,
    refuse_rates_of_nothing,
    refuse_small_sizes,
    validate_finite,
)
from pipeline.decode import decoders
from pipeline.decode.config import Limits, Sampling
from pipeline.decode.decoders import DecoderName
from pipeline.stream.config import AugmentationConfig, MixingConfig, OrderConfig, caption_weights
from pipeline.text.config import MaskingConfig
from snps3_model.config import SCRATCH_ENCODERS, ModelConfig, ObjectiveConfig, refuse_order_without_time

Precision = Literal["fp32", "tf32", "bf16"]
"""Number format of a step's matrix products and convolutions."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which clips, and how they are decoded."""

    manifest: str = "corpora/embedded/manifest/manifest.parquet"
    """Manifest written by jobs/prepare.py, a Parquet file or a folder of parts: a path or an s3:// URL."""
    train_split: str = "train"
    validation_split: str = "val"
    test_split: str = "test"
    temporal_split: str | None = None
    """Split whose clips are compared within their groups only; None leaves the temporal test out."""
    num_frames: int = 4
    """Frames per video; `sampling` says which."""
    frame_size_px: int = 48
    """Long side of a frame; the rest of the square is padding."""
    decoder: DecoderName = decoders.AUTO
    """`auto` takes the fastest one measured by jobs/prepare.py --measure-decoders, or pyav without measurements. The
    torchcodec ones need its package and FFmpeg, `torchcodec-cuda` a GPU. `package.module:NAME`: another."""
    sampling: Sampling = field(default_factory=Sampling)
    max_rejected_share: float = 0.05
    """The run stops when more than this share of the clips seen so far could not be decoded."""
    max_evaluation_clips: int = 1000
    """Most clips of a split in retrieval evaluation, the first by clip_id; the cost grows with the square. Questions
    are asked about all clips."""
    caption_weights: tuple[str, ...] = ()
    """SOURCE=WEIGHT, `annotation` for captions of annotations: a clip's source is drawn by weight, then one of its
    captions; other sources are never used. () draws from all captions uniformly."""
    mixing: MixingConfig = field(default_factory=MixingConfig)
    order: OrderConfig = field(default_factory=OrderConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    @property
    def shown_px(self) -> int:
        """Return the side of the square that the network sees, in px."""
        return self.augmentation.crop_px or self.frame_size_px

    def __post_init__(self) -> None:
        decoders.check_name(self.decoder)
        caption_weights(self.caption_weights)
        if not self.manifest:
            raise ValueError("data.manifest must name the manifest that jobs/prepare.py wrote, got an empty path")
        refuse_below(self, "data", num_frames=1, frame_size_px=1, max_evaluation_clips=1)
        if not 0 <= self.max_rejected_share <= 1:
            raise ValueError(f"data.max_rejected_share must lie in [0, 1], got {self.max_rejected_share}")
        crop_px, long_sides_px = self.augmentation.crop_px, self.augmentation.long_sides_px
        for name, side in (("crop_px", crop_px or 0), ("long_sides_px", max(long_sides_px, default=0))):
            if side > self.frame_size_px:
                raise ValueError(
                    f"data.augmentation.{name} must not exceed data.frame_size_px={self.frame_size_px}, the size at "
                    f"which frames are decoded, got {side}; raise data.frame_size_px"
                )


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions become tokens."""

    vocabulary: str | None = None
    """Folder or file of a word-piece vocabulary; None trains one on the training captions."""
    vocabulary_size: int = 1000
    """Maximum size of a trained vocabulary, in pieces."""
    max_tokens: int = 30
    """Longest caption in tokens, [CLS] and [SEP] included."""
    num_words: int = 3
    """K: significant words of a caption that LVWM matches with the clip."""
    lvwm_top_k: int | None = 3000
    """LVWM takes words up to this rank, counted from 0; None, or more than there are: all that were counted. The rank
    up to which MSSM masks words first is `masking.top_k`."""
    significant_words: str | None = None
    """Table of significant words for `vocabulary`, of jobs/mine_words.py or published: a path or an s3:// URL. None
    counts the words of the training captions with the built-in dictionary."""
    word_families: str | None = None
    """Word families of a published table, which has them in a separate file."""

    def __post_init__(self) -> None:
        if self.significant_words and not self.vocabulary:
            raise ValueError("text.significant_words are numbered by a vocabulary: set text.vocabulary to the same one")
        if self.word_families and not self.significant_words:
            raise ValueError("text.word_families belong to text.significant_words, which is not set")
        refuse_below(self, "text", max_tokens=3, vocabulary_size=1, lvwm_top_k=0)
        if not 1 <= self.num_words <= self.max_tokens:
            raise ValueError(f"text.num_words must lie in [1, text.max_tokens], got {self.num_words}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and its schedule."""

    num_steps: int = 1000
    """Optimizer steps of the whole run."""
    num_epochs: int | None = None
    """The run ends after this many epochs if that comes before `num_steps`; None: after `num_steps`."""
    global_batch: int = 64
    """Clips per step over all workers."""
    lr: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 1e-3
    """On matrices; never on biases and norms."""
    decay_rule: Literal["vectors", "published"] = "vectors"
    """`vectors` exempts biases, norms and other vectors; `published` decides by name, and decays the norms of visual
    encoders."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    """Added to the root of Adam's second moment: gradients well below it hardly move their weights."""
    warmup_steps: int = 50
    """Steps of linear rise from a tenth of `lr`."""
    pretrained_rate: float = 1.0
    """Rate of the parts that start from pre-trained weights, as a share of `lr`."""
    layer_decay: float = 1.0
    """In these parts, each layer's rate is this share of the rate of the layer above it."""
    frozen_steps: int = 0
    """These parts are frozen for this many steps, while the others adapt to them."""
    decay: Literal["cosine", "step"] = "cosine"
    """Decay after the warm-up: `cosine` to a fiftieth of `lr`; `step` to a tenth at `decay_step` or `decay_epoch`."""
    hold_share: float = 0.0
    """Share of the run, warm-up included, after which the cosine begins; until then the rate stays at `lr`, as `step`
    decay keeps it anyway."""
    decay_step: int | None = None
    """Step at which `step` decay drops the rate; or set `decay_epoch`."""
    decay_epoch: int | None = None
    """The epoch, counted from 0, whose first step is `decay_step`."""
    max_grad_norm: float = 5.0
    precision: Precision = "fp32"
    """`bf16`: matrix products and convolutions in bfloat16 (autocast), weights, moments and losses in fp32, for devices
    that support it. `tf32`: in fp32, with factors that a GPU rounds to ten bits."""
    average_decay: float | None = None
    """Evaluate and save an exponential moving average of the weights with this decay (0.999, say); None takes the last
    weights."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "global_batch", "lr", "eps", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optim.{name} must be above 0, got {getattr(self, name)}")
        refuse_below(self, "optim", weight_decay=0, warmup_steps=0, decay_step=0, decay_epoch=0, frozen_steps=0)
        for name in ("pretrained_rate", "layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must lie in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.hold_share < 1:
            raise ValueError(f"optim.hold_share must lie in [0, 1), got {self.hold_share}")
        if self.frozen_steps >= self.num_steps:
            raise ValueError(
                f"optim.frozen_steps must be below optim.num_steps={self.num_steps}, got {self.frozen_steps}; "
                "model.visual.frozen keeps the visual encoder as it is for all of them"
            )
        refuse_below(self, "optim", " or None", num_epochs=1)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas must lie in [0, 1), got {self.betas[0]} and {self.betas[1]}")
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ValueError(f"optim.average_decay must lie between 0 and 1 or be None, got {self.average_decay}")
        if self.decay == "step" and self.decay_step is None and self.decay_epoch is None:
            raise ValueError("optim.decay=step needs optim.decay_step or optim.decay_epoch, where the rate falls")


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which checkpoint is the result of the run."""

    metric: str = "validation/t2v/mean_recall"
    """Metric of the validation split; higher is better."""
    evaluate_every: int = 200
    """Steps between evaluations; each writes a checkpoint."""
    evaluate_also: tuple[int, ...] = ()
    """Additional steps after which the run is evaluated: those at which a sweep may stop a trial."""
    patience: int | None = None
    """Stop after this many evaluations without improvement; None never stops early."""
    rerank: int | None = None
    """Clips of each text, and texts of each clip, that the cross encoder reranks when the run evaluates retrieval;
    None: all, at a cost that grows with the square of the clips."""

    def __post_init__(self) -> None:
        refuse_below(self, "selection", evaluate_every=1)
        refuse_below(self, "selection", " or None", patience=1, rerank=1)
        if wrong := [step for step in self.evaluate_also if step < 1]:
            raise ValueError(f"selection.evaluate_also must have steps of at least 1, got {wrong[0]}")

    def is_due(self, step: int) -> bool:
        """Return whether the run is evaluated after this step, even if it is not the last."""
        return step % self.evaluate_every == 0 or step in self.evaluate_also


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The task that the run is trained on."""

    kind: str = "captions"
    """`captions`: the losses of `objective`, for pre-training and for retrieval. `question_answering` and
    `multiple_choice` fine-tune on the files of questions below. A task of your own: `package.module:Name`, or an entry
    point of the group `snps3.tasks`."""
    train: str | None = None
    """Questions about the clips of `data.train_split`; the other three likewise. Multiple choice needs none for
    training and validation: it draws four captions of other clips."""
    validation: str | None = None
    test: str | None = None
    temporal: str | None = None
    num_answers: int = 1500
    """Answers that question answering chooses from: the most frequent of the training questions."""
    is_multi_label: bool = False
    """Each answer is right or wrong independently of the others; otherwise exactly one is right."""
    questions_per_clip: int = 1
    """Most questions that question answering asks per visit of a clip."""
    is_video_hidden: bool = False
    """All frames are black: the baseline without visual information."""

    def __post_init__(self) -> None:
        refuse_below(self, "task", num_answers=2, questions_per_clip=1)
        if self.kind == "captions":
            if files := [name for name in TASK_FILES if getattr(self, name)]:
                raise ValueError(f"task.{files[0]} names questions, which task.kind=captions does not ask")
            if self.is_video_hidden:
                raise ValueError("task.is_video_hidden is for questions and choices; captions alone find no clip")
        for name in NEEDED_FILES.get(self.kind, ()):
            if not getattr(self, name):
                raise ValueError(f"task.kind={self.kind} needs task.{name}, a file of questions")


TASK_FILES = ("train", "validation", "test", "temporal")
"""Datasets of a run that can have a file of questions."""
NEEDED_FILES = {"question_answering": ("train", "validation", "test"), "multiple_choice": ("test",)}
"""Task → the files that it requires."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a run executes and with which resources. Nothing here changes what is computed."""

    storage: str = "runs"
    """Folder or s3:// URL that holds run folders; every worker must reach it."""
    num_workers: int | tuple[int, int] = 2
    """Train workers (DDP ranks). Two numbers: as many as fit between them; when nodes come or go, the run resumes from
    its last checkpoint with more or fewer. The cluster then needs separate nodes for decoding."""
    use_gpu: bool = False
    """One GPU per train worker, NCCL; otherwise CPU and gloo."""
    gpu_memory_gib: float = 80.0
    """Memory of each GPU: a run whose step needs more is refused."""
    cpus_per_worker: float = 0.5
    """CPUs that Ray reserves for each train worker."""
    threads_per_worker: int = 1
    """Threads of torch in a train worker on CPU."""
    rows_at_once: int | None = None
    """Clips, captions or pairs of a worker that pass through the network together; the backward pass recomputes their
    activations. A larger global batch then fits, at about a third more work. None takes all at once."""
    length_groups: int = 2
    """Captions of a worker's batch pass through the network in at most this many groups of similar length, so that
    short ones are not padded to the longest. 1 takes all together; `compiled` needs that."""
    compiled: bool = False
    """Compile the training step with `torch.compile`; the first steps take minutes."""
    decode_cpus: int = 1
    """CPUs for fetching and decoding."""
    decode_limits: Limits = field(default_factory=Limits)
    log_every: int = 10
    """Steps between logged losses."""
    num_kept_checkpoints: int = 2
    """Checkpoints kept: this many of the best by the selection metric, and always the latest."""
    max_failures: int = 3
    """Restarts from the last checkpoint after losing a worker. Losses of preempted nodes do not count."""
    resize_seconds: float = 60.0
    """Interval at which an elastic run checks whether to use more or fewer workers."""
    hang_seconds: float = 900.0
    """A rank that does not finish a step, or a part of an evaluation, in this time writes the stacks of its threads,
    exits with an error, and counts as lost."""
    storage_patience_seconds: float = 180.0
    """How long a run in progress waits for a bucket that does not answer."""
    experiment: str = "snps3"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        if self.fewest_workers < 1:
            raise ValueError(f"placement.num_workers must be at least 1, got {self.fewest_workers}")
        refuse_below(self, "placement", decode_cpus=1, log_every=1, num_kept_checkpoints=1)
        refuse_below(self, "placement", threads_per_worker=1, length_groups=1)
        refuse_below(self, "placement", " or None", rows_at_once=1)
        if self.compiled and self.length_groups > 1:
            raise ValueError(f"placement.compiled needs placement.length_groups=1, got {self.length_groups}")
        if self.fewest_workers > self.most_workers:
            raise ValueError(
                f"placement.num_workers must name the fewest first, got {self.fewest_workers} and {self.most_workers}"
            )
        for name in ("cpus_per_worker", "max_failures", "storage_patience_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"placement.{name} must not be negative, got {getattr(self, name):g}")
        for name in ("hang_seconds", "gpu_memory_gib"):
            if getattr(self, name) <= 0:
                raise ValueError(f"placement.{name} must be above 0, got {getattr(self, name):g}")
        for name in ("storage", "experiment"):
            if not getattr(self, name):
                raise ValueError(f"placement.{name} must not be empty")

    @property
    def fewest_workers(self) -> int:
        """Return the minimum number of train workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Return the maximum number of train workers."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pre-training run."""

    name: str
    """Name of the run: its folder in `placement.storage`, and its MLflow run."""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    placement: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"name must be a plain folder name of letters, digits and _ . -, got {self.name!r}")
        validate_finite(flat(dataclasses.asdict(self)))
        refuse_below(self, "", seed=0)
        refuse_small_sizes(self.model)
        workers, batch = self.placement.most_workers, self.optim.global_batch
        if self.placement.fewest_workers == workers and batch % workers:
            raise ValueError(
                f"optim.global_batch must be a multiple of placement.num_workers so that each worker has an equal "
                f"share, got {batch} clips for {workers} workers; {nearest_multiples(batch, workers)}"
            )
        longest = max(self.text.max_tokens, self.data.num_frames + 1)
        if longest > self.model.max_positions:
            raise ValueError(
                f"model.max_positions must be at least {longest} for text.max_tokens={self.text.max_tokens} and "
                f"data.num_frames={self.data.num_frames}, got {self.model.max_positions}"
            )
        length, needed = self.objective.queue_length, batch * self.data.num_frames
        if length is not None and length < needed:
            raise ValueError(
                f"objective.queue_length must be at least {needed}, the frames of one step of "
                f"optim.global_batch={batch}, got {length}; raise it, or set it to None"
            )
        refuse_frozen_random_weights(self.model)
        refuse_rates_of_nothing(self.optim, self.model)
        refuse_order_without_time(self.objective, self.model)
        visual, rows = self.model.visual, self.placement.rows_at_once
        if rows is not None and visual.encoder in SCRATCH_ENCODERS and not visual.frozen_batch_norm:
            raise ValueError(
                f"placement.rows_at_once={rows} would change what is computed: that CNN normalises over all "
                "clips of a step; leave it None, or take another model.visual.encoder"
            )
        negatives = self.objective.num_hard_negatives
        if negatives is not None and negatives >= batch:
            raise ValueError(
                f"objective.num_hard_negatives must be below optim.global_batch, got {negatives} of {batch}"
            )
