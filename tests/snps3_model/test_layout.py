"""Convolutions get pixels as they were decoded, channels last: ResNet-50 turns no batch around first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.stream.transforms import normalise
from snps3_model.config import ModelConfig, VisualConfig
from snps3_model.snps3 import SNPS3


def test_every_convolution_reads_channels_last() -> None:
    sizes = {"hidden": 16, "num_layers": 1, "num_heads": 2, "feed_forward": 32}
    visual = VisualConfig(encoder="resnet50", frozen_batch_norm=True)
    model = SNPS3(ModelConfig(visual=visual, **sizes), vocabulary_size=40, pad_id=0, separator_id=2)
    are_last: list[bool] = []

    def look(convolution: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        are_last.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for module in model.visual.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(look)
    frames = torch.randint(0, 256, (2, 2, 64, 64, 3)).to(torch.uint8)
    model.encode_video(normalise(frames), torch.zeros(2, 2, 64, 64, dtype=torch.bool))
    assert len(are_last) > 50
    assert all(are_last)
