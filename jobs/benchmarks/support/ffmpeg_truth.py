"""The reference for every decoder: the frames of a file, their times and their size as the ffmpeg command shows
them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jobs.benchmarks.support.drawn_frames import colour_error, read_number
from jobs.benchmarks.support.media_files import FFMPEG_SECONDS, MediaFile, Rule
from pipeline.decode.images import BACKGROUND, fit_long_side, resize

SIZE_PX = 224
"""Long side of the compared frames, as in training."""
_START = re.compile(r"Duration: .*, start: (-?[\d.]+)")
_FRAME = re.compile(r" n: *\d+ pts: *(-?\d+|NOPTS).* sar:(\d+)/(\d+) s:(\d+)x(\d+)")
_CODEC = re.compile(r"Video: (\w+)")
_TIME_BASE = re.compile(r"config in time_base: (\d+/\d+)")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Frames (T, h, w, 3) of the training size, their times in seconds on the clock of players, and their numbers."""

    frames: UInt8[np.ndarray, "T h w 3"]
    times: np.ndarray
    numbers: list[int | None]
    worst_colour: float
    codec: str
    fps: float

    @property
    def half_frame(self) -> float:
        """Half of the shortest time in seconds between two frames; containers round by up to 1 ms."""
        gaps = np.diff(np.unique(self.times.round(4)))
        return max(0.001, float(gaps.min() if len(gaps) else 1 / self.fps) / 2)


def truth_of(path: Path, file: MediaFile) -> Truth | None:
    """Return what ffmpeg shows, or None if it rejects the file.

    A file that may be rejected is read with the options that make ffmpeg stop at the first error.
    """
    strict = ["-err_detect", "explode", "-xerror"] if file.rule != Rule.READ else []
    channels = 4 if file.is_transparent else 3
    command = [
        "ffmpeg",
        "-nostdin",
        "-hide_banner",
        "-threads",
        "1",
        "-copyts",
        *strict,
        "-autorotate",
        "1",
        "-i",
        str(path),
    ]
    pixels = "rgba" if file.is_transparent else "rgb24"
    shown = ["-map", "0:V:0", "-fps_mode", "passthrough", "-vf", f"showinfo,format={pixels}"]
    output = ["-autoscale", "0", "-f", "rawvideo", "-"]
    process = subprocess.run([*command, *shown, *output], capture_output=True, timeout=FFMPEG_SECONDS, check=False)
    printed = process.stderr.decode(errors="replace")
    frames = _FRAME.findall(printed)
    if process.returncode or not frames:
        return None
    pictures, position = [], 0
    for _, *_, width, height in frames:
        num_bytes = int(width) * int(height) * channels
        pixels = np.frombuffer(process.stdout[position : position + num_bytes], np.uint8)
        pictures.append(pixels.reshape(int(height), int(width), channels))
        position += num_bytes
    assert position == len(process.stdout), f"{path.name}: {position} bytes of frames, {len(process.stdout)} came"
    times = np.array([int(pts) for pts, *_ in frames]) * float(Fraction(_TIME_BASE.findall(printed)[0]))
    start = float(_START.findall(printed)[0]) if _START.search(printed) else times[0]
    upright = [drawn_way_up(_opaque(picture), file.turned) for picture in pictures]
    size = training_size(frames[0])
    return Truth(
        frames=np.stack([resize(Image.fromarray(_opaque(picture)), size) for picture in pictures]),
        times=times - start,
        numbers=[read_number(picture) for picture in upright],
        worst_colour=max(map(colour_error, upright)),
        codec=_CODEC.findall(printed)[0],
        fps=file.fps,
    )


def training_size(frame: tuple[str, ...]) -> tuple[int, int]:
    """Return the (width, height) at which a frame with square pixels is compared."""
    aspect_width, aspect_height, width, height = (int(word) for word in frame[1:])
    ratio = aspect_width / aspect_height if aspect_width and aspect_height else 1.0
    return fit_long_side(round(width * ratio * 1000), height * 1000, SIZE_PX)  # type: ignore[return-value]


def doubts(truth: Truth | None, file: MediaFile) -> list[str]:
    """Return the contradictions between ffmpeg and the drawn frames, which mean that the table or ffmpeg is wrong."""
    if file.rule != Rule.READ:
        return []
    if truth is None:
        return ["ffmpeg does not read it"]
    problems = []
    if file.is_numbered:
        problems += _wrong_numbers(truth, file)
    if abs(truth.times[0] - file.begins) > 0.03:
        problems.append(f"begins at {truth.times[0]:.3f} s, not {file.begins:g} s")
    if file.max_colour_error is not None and truth.worst_colour > file.max_colour_error:
        problems.append(f"a colour differs by {truth.worst_colour:.0f} of 255")
    height, width = truth.frames.shape[1:3]
    expected = fit_long_side(*(file.shape or file.size), SIZE_PX)
    if max(abs(width - expected[0]), abs(height - expected[1])) > 1:
        problems.append(f"is shown as {width}x{height}, not {expected[0]}x{expected[1]}")
    return problems


def _wrong_numbers(truth: Truth, file: MediaFile) -> list[str]:
    numbers = truth.numbers
    if None in numbers:
        return [f"frame {numbers.index(None)} shows no number"]
    drawn = list(range(file.num_frames)) if file.numbers is None else list(file.numbers)
    if (numbers != drawn) if drawn else (sorted(set(numbers)) != numbers):  # type: ignore[type-var]
        return [f"shows the numbers {numbers}"]
    if len(set(numbers)) < len(numbers):
        return []
    seconds = file.seconds or (lambda number: number / file.fps)
    expected = np.array([seconds(number) for number in numbers if number is not None])
    worst = np.abs((truth.times - truth.times[0]) - (expected - expected[0])).max()
    return [f"shows a frame {worst:.3f} s from its time"] if worst > max(0.002, 0.1 / file.fps) else []


def _opaque(picture: np.ndarray) -> np.ndarray:
    """Compose a picture with alpha onto the background that we use for transparent images."""
    if picture.shape[2] == 3:
        return picture
    alpha = picture[..., 3:] / 255.0
    return (picture[..., :3] * alpha + np.array(BACKGROUND) * (1 - alpha)).round().astype(np.uint8)


def drawn_way_up(picture: np.ndarray, turned: tuple[int, bool]) -> np.ndarray:
    """Return the picture as it was drawn."""
    turned_back = np.rot90(picture, -turned[0])
    return turned_back[:, ::-1] if turned[1] else turned_back
