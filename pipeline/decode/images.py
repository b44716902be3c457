"""Decode, resize and encode images with Pillow; videos stored as images; padding of clips to a square."""

from __future__ import annotations

import io
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, PngImagePlugin

from pipeline.decode.formats import picture_format
from pipeline.decode.info import VideoInfo, first_line, refuse_other_length
from pipeline.decode.pixels import stack
from pipeline.decode.timeline import Timeline
from pipeline.records import DecodeError, EncodedFrames, Media, Reason

BACKGROUND = (255, 255, 255)
"""Background of transparent pictures: white, as on a web page."""
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # do not reject a picture for a long comment

_UPRIGHT: dict[Hashable, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → transposition that makes the picture upright."""
_ORIENTATION = 0x0112


class DecodedClip(NamedTuple):
    """`frames` uint8 (T, S, S, 3), RGB, zero where `pad_mask` bool (T, S, S) is True; `num_frames` = T."""

    frames: UInt8[np.ndarray, "T S S 3"]
    pad_mask: Bool[np.ndarray, "T S S"]
    num_frames: int


def fit_long_side(width: int, height: int, size_px: int) -> tuple[int, int]:
    """Return (width, height) with the same aspect ratio and a long side of `size_px`."""
    scale = size_px / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def letterbox(frames: UInt8[np.ndarray, "T H W 3"], size_px: int) -> DecodedClip:
    """Pad `frames` with zeros to a square of `size_px`; they stay in the upper left corner."""
    num_frames, height, width = frames.shape[:3]
    square = np.zeros((num_frames, size_px, size_px, 3), np.uint8)
    square[:, :height, :width] = frames
    pad_mask = np.ones((num_frames, size_px, size_px), bool)
    pad_mask[:, :height, :width] = False
    return DecodedClip(square, pad_mask, num_frames)


def decode_image(data: Media, size_px: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Return a picture as RGB, upright by its EXIF tag; long side `size_px` if given."""
    encoded = data.images[0] if isinstance(data, EncodedFrames) else data
    if not isinstance(encoded, bytes):
        raise ValueError("a picture is read whole, not in parts")
    image = open_image(encoded)
    if size_px is not None:
        image = image.resize(fit_long_side(*image.size, size_px), Image.Resampling.BICUBIC)
    return np.array(image)


def open_image(data: bytes) -> Image.Image:
    """Return a picture in one of `formats.PICTURES` (the first, if there are several), upright and in RGB. DecodeError
    if it is unreadable."""
    name = picture_format(data)
    try:
        # only this format: others of Pillow may start programs, as EPS starts Ghostscript
        with Image.open(io.BytesIO(data), formats=[name]) as opened:
            opened.load()
            image = _in_rgb(opened)
            turn = _UPRIGHT.get(_orientation(opened))
            return image if turn is None else image.transpose(turn)
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # Pillow raises anything for damaged bytes: RuntimeError, struct.error, TypeError, …
        cut = isinstance(error, OSError) and "truncated" in str(error)
        raise DecodeError(Reason.TRUNCATED if cut else Reason.UNREADABLE, first_line(error)) from error


def _in_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any depth and palette to RGB, composited on `BACKGROUND` where it is transparent."""
    if image.mode in ("I", "F"):
        raise DecodeError(
            Reason.UNSUPPORTED_CODEC, "the numbers of 32 bits in the picture name no white: save it with 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # Pillow would clip at 255
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, BACKGROUND)
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image.convert("RGB")


def _orientation(image: Image.Image) -> Hashable:
    """Return the value of the EXIF tag; None if EXIF is unreadable, which does not make the pixels unusable."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF
        return None
    return value if isinstance(value, Hashable) else None


class ImagesVideo:
    """A video stored as images. Without `known` they are one second apart."""

    def __init__(self, data: EncodedFrames, known: VideoInfo | None = None) -> None:
        self._images = data.images
        self.key_frames = list(range(len(data.images)))
        self.info = known or self._read_info()
        self.timeline = Timeline.uniform(self.info)
        refuse_other_length(len(self._images), self.info, "images")

    def _read_info(self) -> VideoInfo:
        width, height = open_image(self._images[0]).size
        length = len(self._images)
        return VideoInfo(num_frames=length, fps=1.0, width=width, height=height, duration_seconds=float(length))

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """Implement `Video.frames`."""
        size = size or (self.info.width, self.info.height)
        images = {index: resize(open_image(self._images[index]), size) for index in set(indices)}
        return stack([images[index] for index in indices])

    def __enter__(self) -> ImagesVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def resize(image: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an image, resized to `size` = (width, height)."""
    return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))


def encode_image(frame: UInt8[np.ndarray, "H W 3"], *, quality: int) -> bytes:
    """Encode a frame as JPEG. `quality` in [1, 95]."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
