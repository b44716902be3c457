"""Frames by torchcodec, with the FFmpeg of the system, on the CPU or the video unit of a GPU. The only file that
imports it. It resizes bilinearly, the other decoders bicubically."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torchcodec import decoders, transforms  # pyright: ignore[reportMissingImports]

from pipeline.decode.info import VideoInfo
from pipeline.decode.video import FastDecoder


def read_frames(
    data: bytes, info: VideoInfo, indices: Sequence[int], size: tuple[int, int]
) -> UInt8[np.ndarray, "T H W 3"] | None:
    """As `FastDecoder.read`."""
    resize = transforms.Resize((size[1], size[0]))
    decoder = decoders.VideoDecoder(data, dimension_order="NHWC", transforms=[resize])
    if len(decoder) != info.num_frames:
        return None
    return decoder.get_frames_at(list(indices)).data.numpy()


def read_frames_on_gpu(
    data: bytes, info: VideoInfo, indices: Sequence[int], size: tuple[int, int]
) -> UInt8[np.ndarray, "T H W 3"] | None:
    """As `FastDecoder.read`."""
    decoder = decoders.VideoDecoder(data, device="cuda")
    if len(decoder) != info.num_frames:
        return None
    frames = decoder.get_frames_at(list(indices)).data.float()
    resized = torch.nn.functional.interpolate(frames, size=(size[1], size[0]), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def refuse_missing_gpu() -> None:
    """Raise ValueError on a machine without a GPU."""
    if not torch.cuda.is_available():
        raise ValueError("the decoder torchcodec-cuda needs a GPU, and this machine has none: choose torchcodec")


TORCHCODEC = FastDecoder(name="torchcodec", read=read_frames)
TORCHCODEC_CUDA = FastDecoder(name="torchcodec-cuda", read=read_frames_on_gpu, check=refuse_missing_gpu)
