"""The description of a file of the conformance suite: how it is created, and the expectations for it."""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from jobs.benchmarks.support.drawn_frames import drawn_frames
from jobs.benchmarks.support.file_surgery import Edit

FFMPEG_SECONDS = 60
"""Time limit of one ffmpeg command."""


class Rule(StrEnum):
    """The required behaviour of a decoder on a file."""

    READ = "must be read"
    """Undamaged: at least one decoder reads it, and each that reads it shows ffmpeg's frames."""
    MAY = "may be refused"
    """Damaged or doubtful: a decoder that reads it shows what ffmpeg shows with `-err_detect explode -xerror`."""
    REFUSE = "must be refused"


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """A file that is drawn, encoded and edited; the defaults describe a plain clip of two seconds."""

    name: str
    """Name of the file; its suffix selects ffmpeg's container."""
    encode: str | None = None
    """Arguments of ffmpeg after its input; None: the source is only edited."""
    source: str | None = None
    """Another file of the table to read instead of drawn frames."""
    before: str = ""
    """Arguments of ffmpeg before its input."""
    followed_by: str | None = None
    """Another file of the table, whose bytes are appended."""
    edit: Edit | None = None
    """The final edit of the bytes."""
    rule: Rule = Rule.READ
    size: tuple[int, int] = (256, 144)
    num_frames: int = 50
    fps: float = 25.0
    min_db: float = 40.0
    numbers: tuple[int, ...] | None = None
    """Numbers that the frames show, in order; None: all drawn ones; empty: any ascending sequence."""
    seconds: Callable[[int], float] | None = None
    """Time of the frame that shows a number, up to a constant; None: number / fps."""
    begins: float = 0.0
    """Time of the first frame in seconds, on the clock of players."""
    turned: tuple[int, bool] = (0, False)
    """Quarter turns counter-clockwise from the drawn picture to the shown one, and whether it is mirrored first."""
    shape: tuple[int, int] | None = None
    """Width and height as shown, if they differ from the drawn ones."""
    is_numbered: bool = True
    """Whether the picture is large enough to read its number."""
    known_fault: str = ""
    """Why a decoder that reads it shows something else, if we cannot fix it."""
    is_transparent: bool = False
    """Whether the decoded picture has alpha, which is shown on `images.BACKGROUND`."""
    max_colour_error: float | None = 16.0
    """Largest difference, in 0–255, of ffmpeg's colours from the drawn ones; None if the codec lacks these colours."""

    @property
    def container(self) -> str:
        """The suffix."""
        return self.name.rpartition(".")[2]

    @property
    def kind(self) -> str:
        """The kind of file: its name, without the part that distinguishes files of one kind."""
        return self.name.rpartition(".")[0].replace("_", " ")


class Workshop:
    """Creates the files, each file and each drawing only once, in a dedicated folder."""

    def __init__(self, folder: Path, table: Iterable[MediaFile]) -> None:
        self._folder, self._table = folder, {file.name: file for file in table}
        self._locks = {name: threading.RLock() for name in self._table}

    def path(self, name: str) -> Path:
        """Return the path of a file of the table, which is created if it does not exist."""
        path = self._folder / name
        with self._locks[name]:
            return path if path.exists() else self._made(self._table[name], path)

    def _made(self, file: MediaFile, path: Path) -> Path:
        name = file.name
        unfinished = self._folder / f"unfinished-{name}"
        source = None if file.source is None else self.path(file.source)
        if file.encode is not None:
            drawn = [] if source else shlex.split(f"-f rawvideo -pix_fmt rgb24 -s {file.size[0]}x{file.size[1]}")
            rate = [] if source else ["-r", f"{file.fps:.6g}"]
            taken = [*drawn, *rate, *shlex.split(file.before), "-i", str(source or self._drawing(file))]
            _ffmpeg([*taken, *shlex.split(file.encode.replace("{folder}", str(self._folder))), str(unfinished)], name)
            data = unfinished.read_bytes()
        else:
            data = source.read_bytes() if source else b""
        data += self.path(file.followed_by).read_bytes() if file.followed_by else b""
        unfinished.write_bytes(file.edit(data) if file.edit else data)
        return unfinished.rename(path)

    def _drawing(self, file: MediaFile) -> Path:
        width, height = file.size
        path = self._folder / f"drawn-{file.num_frames}-{width}x{height}.rgb"
        if not path.exists():
            unfinished = path.with_suffix(f".{file.name}")
            unfinished.write_bytes(drawn_frames(file.num_frames, width, height).tobytes())
            unfinished.rename(path)
        return path


def _ffmpeg(arguments: list[str], name: str) -> None:
    """Run ffmpeg; raise RuntimeError with its output if it fails."""
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-v", "error", "-y", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=FFMPEG_SECONDS, check=False)
    if process.returncode:
        raise RuntimeError(f"{name} cannot be made: {process.stderr.strip()[-500:]}")
