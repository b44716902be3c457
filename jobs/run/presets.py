"""The catalogue of runs: each function returns a whole configuration, which the command line selects by name.

`tiny` runs anywhere on the embedded corpus, `openvid_video_swin` uses a corpus that can be downloaded. The others are
the published recipes of the paper's pre-training
(docs/reference/corpora.md says which of their corpora are still available, and what differs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jobs.run.config import DataConfig, OptimConfig, Placement, PretrainConfig, SelectionConfig, TextConfig
from pipeline.stream.config import AugmentationConfig, MixingConfig
from pipeline.text.config import MaskingConfig
from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig

BERT_BASE = "pretrained/bert-base-uncased"
"""Folder with the vocabulary and the weights of BERT-base, uncased."""


def tiny() -> PretrainConfig:
    """The embedded corpus on two CPU cores, from random weights, in minutes."""
    return PretrainConfig(
        name="tiny",
        # images first, as in the paper: with one step in seven on images, R@1 is 0.14 lower (docs/log.md)
        data=DataConfig(num_frames=4, frame_size_px=64, temporal_split="temporal", mixing=MixingConfig(image_epochs=1)),
        text=TextConfig(lvwm_top_k=None),
        masking=MaskingConfig(top_k=None),
        model=ModelConfig(
            visual=VisualConfig(encoder="clip_cnn", channels=(24, 48, 96, 96)),
            hidden=96,
            num_layers=2,
            num_heads=4,
            feed_forward=384,
            max_positions=32,
            dropout=0.0,
            initial_std=0.1,
        ),
        # dual-encoder losses first: with all losses from the start, neither shape nor motion is learned within these
        # steps (docs/log.md)
        objective=ObjectiveConfig(
            gvtm_level2=2.0,
            masked_words_text=0.1,
            masked_words_cross=0.1,
            lvwm=0.1,
            num_hard_negatives=2,
            negative_spread=2.0,
            dual_share=0.519,
        ),
        optim=OptimConfig(num_steps=1060, global_batch=64, lr=2e-3, warmup_steps=50, hold_share=0.52),
        selection=SelectionConfig(evaluate_every=530),
        # on two cores, two ranks are no faster than one and use a sixth more CPU
        placement=Placement(num_workers=1),
    )


def coco_vg_resnet50() -> PretrainConfig:
    """Images of COCO and Visual Genome, ResNet-50 with frozen batch normalisation: SNP-R50 of the paper."""
    visual = VisualConfig(encoder="resnet50", pretrained="pretrained/resnet50.safetensors", frozen_batch_norm=True)
    optim = _optim(num_steps=400_000, num_epochs=20, decay_step=150_000)
    return _published("coco_vg_resnet50", _whole_images("coco_vg"), visual, optim)


def coco_vg_pvt() -> PretrainConfig:
    """Images of COCO and Visual Genome, PVTv2-B2: SNP-PVT of the paper."""
    visual = VisualConfig(encoder="pvt_v2_b2", pretrained="pretrained/pvt_v2_b2.safetensors")
    optim = _optim(num_steps=130_000, num_epochs=30, decay_step=110_000)
    return _published("coco_vg_pvt", _whole_images("coco_vg"), visual, optim)


def cc3m_video_swin() -> PretrainConfig:
    """Images of CC3M, Video Swin: the first half of SNP-VST's pre-training."""
    weights = "pretrained/video_swin_small.safetensors"
    visual = VisualConfig(encoder="video_swin_small", drop_path=0.2, pretrained=weights)
    optim = _optim(num_steps=130_000, num_epochs=30, decay_step=110_000)
    return _published("cc3m_video_swin", _crops("cc3m", num_frames=1), visual, optim)


def webvid_video_swin() -> PretrainConfig:
    """Videos of WebVid-2M, 4 frames, Video Swin: the second half, from the weights of `cc3m_video_swin`."""
    visual = VisualConfig(encoder="video_swin_small", drop_path=0.2)
    # 10 epochs of about 2.5 million clips are about 195,000 steps: the epochs end the run
    optim = _optim(num_steps=200_000, num_epochs=10, decay_epoch=5)
    weights = "runs/cc3m_video_swin/best/model.safetensors"
    return _published("webvid_video_swin", _crops("webvid2m", num_frames=4), visual, optim, initial_weights=weights)


def openvid_video_swin() -> PretrainConfig:
    """Videos of OpenVid-1M, 4 frames, Video Swin from public weights: not of the paper, but can be downloaded."""
    weights = "pretrained/video_swin_small.safetensors"
    visual = VisualConfig(encoder="video_swin_small", drop_path=0.2, pretrained=weights)
    # 10 epochs of about a million clips are about 80,000 steps: the epochs end the run
    optim = _optim(num_steps=85_000, num_epochs=10, decay_epoch=5)
    return _published("openvid_video_swin", _crops("openvid", num_frames=4), visual, optim)


PRESETS: Mapping[str, tuple[str, Callable[[], PretrainConfig]]] = MappingProxyType(
    {
        preset.__name__: ((preset.__doc__ or "").splitlines()[0], preset)
        for preset in (tiny, coco_vg_resnet50, coco_vg_pvt, cc3m_video_swin, webvid_video_swin, openvid_video_swin)
    }
)
"""Name → description in one line, and the function."""


def _published(
    name: str, data: DataConfig, visual: VisualConfig, optim: OptimConfig, *, initial_weights: str | None = None
) -> PretrainConfig:
    """Return a run of the paper's shared network on one node of 8 GPUs, as in all published scripts.

    `initial_weights`: weights of an earlier run, instead of BERT's.
    """
    return PretrainConfig(
        name=name,
        data=data,
        text=TextConfig(vocabulary=BERT_BASE, vocabulary_size=30_522, max_tokens=30, num_words=3),
        model=ModelConfig(
            visual=visual,
            pretrained_text=None if initial_weights else BERT_BASE,
            initial_weights=initial_weights,
            hidden=768,
            num_layers=12,
            num_heads=12,
            feed_forward=3072,
            max_positions=512,
            dropout=0.1,
            initial_std=0.02,
        ),
        objective=ObjectiveConfig(pairs="local"),  # as published; pairs of the global batch take four times the work
        optim=optim,
        selection=SelectionConfig(evaluate_every=5000),
        placement=Placement(num_workers=8, use_gpu=True, cpus_per_worker=1, decode_cpus=32, num_kept_checkpoints=10),
    )


def _whole_images(corpus: str) -> DataConfig:
    """Return data of whole images, whose long side is drawn at each visit."""
    return DataConfig(
        manifest=f"corpora/{corpus}/manifest.parquet",
        num_frames=1,
        frame_size_px=768,
        augmentation=AugmentationConfig(long_sides_px=tuple(range(224, 769, 32))),
    )


def _crops(corpus: str, *, num_frames: int) -> DataConfig:
    """Return data of crops of 224 px, half of them flipped, with at most two operations of RandAugment.

    With a long side of 480 px, a 16:9 clip has about the smallest short side drawn, so that it is hardly upsampled.
    """
    return DataConfig(
        manifest=f"corpora/{corpus}/manifest.parquet",
        num_frames=num_frames,
        frame_size_px=480,
        augmentation=AugmentationConfig(crop_px=224, short_side_px=(268, 336), flip_probability=0.5, num_operations=2),
    )


def _optim(
    *, num_steps: int, num_epochs: int, decay_step: int | None = None, decay_epoch: int | None = None
) -> OptimConfig:
    """Return the schedule of all published scripts; they differ in when the rate drops and when the run ends."""
    return OptimConfig(
        num_steps=num_steps,
        num_epochs=num_epochs,
        global_batch=128,
        lr=5e-5,
        weight_decay=1e-3,
        betas=(0.9, 0.98),
        warmup_steps=2000,
        decay="step",
        decay_step=decay_step,
        decay_epoch=decay_epoch,
        max_grad_norm=5.0,
        precision="bf16",
    )
