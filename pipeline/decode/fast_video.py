"""Decode videos with a decoder that addresses frames by number, such as decord or torchcodec, if it counts as PyAV."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode.images import resize
from pipeline.decode.info import VideoInfo, first_line
from pipeline.decode.pixels import stack
from pipeline.decode.timeline import Timeline
from pipeline.decode.video import PyavVideo

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FastDecoder:
    """A decoder that returns frames by number, in the size of the source; PyAV does everything else.

    `decoder(data, known)` opens a video.
    """

    name: str
    read: Callable[[bytes, VideoInfo, Sequence[int]], NDArray[np.uint8] | None]
    """`read(data, info, indices)`: frames (T, H, W, 3), RGB; None if the decoder counts other frames than PyAV."""
    errors: tuple[type[Exception], ...] = (RuntimeError, ValueError, AssertionError)
    """Exceptions of `read` after which PyAV decodes instead."""
    check: Callable[[], None] | None = None
    """Raises ValueError, with the remedy, if the library loads but cannot be used."""

    def __call__(self, data: bytes, known: VideoInfo | None = None) -> FastVideo:
        return FastVideo(self, data, known)


class FastVideo:
    """A video decoded by a `FastDecoder` if the file is plain, else by PyAV. PyAV also takes over where the fast
    decoder gives up, as decord does on good files on a busy machine. Both give the same pixels, by the same filter."""

    def __init__(self, decoder: FastDecoder, data: bytes, known: VideoInfo | None = None) -> None:
        self._decoder, self._data, self._pyav = decoder, data, PyavVideo(data, known)
        self.info: VideoInfo = self._pyav.info

    @property
    def timeline(self) -> Timeline:
        """Return when each frame is on screen."""
        return self._pyav.timeline

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """Implement `Video.frames`."""
        frames = self._read(indices) if self._pyav.is_plain else None
        if frames is None:
            return self._pyav.frames(indices, size)
        size = size or (self.info.width, self.info.height)
        return stack([resize(Image.fromarray(frame), size) for frame in frames])

    def _read(self, indices: Sequence[int]) -> NDArray[np.uint8] | None:
        try:
            return self._decoder.read(self._data, self.info, indices)
        except self._decoder.errors as error:
            log.info("%s gave up, PyAV decodes this clip: %s", self._decoder.name, first_line(error))
            return None

    def __enter__(self) -> FastVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pyav.close()
