"""Decode frames with torchcodec and the system's FFmpeg, on the CPU or on a GPU's video engine. The only file that
imports torchcodec."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torchcodec import decoders  # pyright: ignore[reportMissingImports]

from pipeline.decode.fast_video import FastDecoder
from pipeline.decode.info import VideoInfo


def read_frames(
    data: bytes, info: VideoInfo, indices: Sequence[int], device: str = "cpu"
) -> UInt8[np.ndarray, "T H W 3"] | None:
    """Implement `FastDecoder.read`."""
    decoder = decoders.VideoDecoder(data, dimension_order="NHWC", device=device)
    if len(decoder) != info.num_frames:
        return None
    return decoder.get_frames_at(list(indices)).data.cpu().numpy()


def refuse_missing_gpu() -> None:
    """Raise ValueError on a machine without a GPU."""
    if not torch.cuda.is_available():
        raise ValueError("the decoder torchcodec-cuda needs a GPU, and this machine has none: choose torchcodec")


TORCHCODEC = FastDecoder(name="torchcodec", read=read_frames)
TORCHCODEC_CUDA = FastDecoder(
    name="torchcodec-cuda", read=functools.partial(read_frames, device="cuda"), check=refuse_missing_gpu
)
