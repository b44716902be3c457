"""Videos by a decoder that counts frames, such as decord or torchcodec, where it shows the same ones as PyAV."""

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
    """A decoder that gives frames by their number, in the size of the source; PyAV does all the rest.

    Called as `decoder(data, known)`, it opens a video.
    """

    name: str
    read: Callable[[bytes, VideoInfo, Sequence[int]], NDArray[np.uint8] | None]
    """`read(data, info, indices)`: frames (T, H, W, 3), RGB; None where the decoder counts other frames than PyAV."""
    errors: tuple[type[Exception], ...] = (RuntimeError, ValueError, AssertionError)
    """What `read` raises when it gives up."""
    check: Callable[[], None] | None = None
    """Raises ValueError with the remedy where the library loads and cannot be used."""

    def __call__(self, data: bytes, known: VideoInfo | None = None) -> FastVideo:
        return FastVideo(self, data, known)


class FastVideo:
    """Frames by a `FastDecoder` where the file is plain, else by PyAV, which also decodes where that one gives up: on a
    busy machine decord gives up on good files. Both give the same pixels, through the same filter."""

    def __init__(self, decoder: FastDecoder, data: bytes, known: VideoInfo | None = None) -> None:
        self._decoder, self._data, self._pyav = decoder, data, PyavVideo(data, known)
        self.info: VideoInfo = self._pyav.info

    @property
    def timeline(self) -> Timeline:
        """When each frame is on screen."""
        return self._pyav.timeline

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """As `Video.frames`."""
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
