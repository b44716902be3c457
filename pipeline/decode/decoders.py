"""The table of video decoders: the choices, defaults, remedies and errors of every command derive from it.

Imports no decoder: a configuration may name one without loading it. An external decoder needs no entry here; the
command line names it as `package.module:NAME`, or by an entry point of the group `snps3.decoders`. NAME is a callable
like those of the table: `NAME(data, known) -> Video` (`pipeline/decode/video.py`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipeline.decode.video import Video, VideoInfo

    OpenVideo = Callable[[bytes, VideoInfo | None], Video]

log = logging.getLogger(__name__)

AUTO = "auto"
ENTRY_POINTS = "snps3.decoders"
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Where a decoder is implemented, and the remedy if it does not load."""

    target: str
    """`module:NAME` of a callable that opens a video. The module imports the decoder's library."""
    package: str
    """Import name of the library."""
    remedy_missing: str = ""
    """Remedy if the library is not installed."""
    remedy_broken: str = ""
    """Remedy if it is installed but does not load."""
    is_choice: bool = True
    """False: selected by the sampling rule, not by name."""


KEY_FRAMES = "key-frames"
DECODERS = {
    "decord": Decoder(
        target="pipeline.decode.decord_video:DECORD",
        package="decord",
        remedy_missing="needs a package: pip install decord==0.6.0, which has wheels for x86-64 Linux; "
        "elsewhere choose pyav",
        remedy_broken="does not load: choose pyav",
    ),
    "pyav": Decoder(target="pipeline.decode.video:PyavVideo", package="av"),
    **{
        name: Decoder(
            target=f"pipeline.decode.torchcodec_video:{name.replace('-', '_').upper()}",
            package="torchcodec",
            remedy_missing="needs a package: pip install 'torchcodec>=0.13'",
            remedy_broken="does not load: torchcodec needs the FFmpeg libraries of the system, 4 to 8 "
            "(apt-get install ffmpeg), and the torch it was built for",
        )
        for name in ("torchcodec", "torchcodec-cuda")
    },
    KEY_FRAMES: Decoder(target="pipeline.decode.video:KeyFrameVideo", package="av", is_choice=False),
}
CHOICES = tuple(name for name, decoder in DECODERS.items() if decoder.is_choice)
"""Names that a user may choose, besides `auto` and external decoders."""
DEFAULT = "pyav"
"""Meaning of `auto` without measurements: exact on every file, and always installed."""

if TYPE_CHECKING:
    DecoderName = str
else:  # for `--help`, which lists the choices
    DecoderName = Literal[(AUTO, *CHOICES)] | str


def check_name(decoder: str) -> str:
    """Return `decoder`. ValueError, with the choices, for an unknown name. Imports nothing."""
    if decoder not in (AUTO, *CHOICES) and not _TARGET.fullmatch(decoder) and decoder not in _entry_points():
        raise ValueError(f"there is no decoder {decoder!r}; choose one of {', '.join((*CHOICES, AUTO))}")
    return decoder


def is_built_in(decoder: str) -> bool:
    """Return whether opening a video with `decoder` imports nothing from outside this project's dependencies."""
    return decoder == AUTO or decoder in DECODERS


def resolve(decoder: str, fastest: str | None = None) -> str:
    """Resolve `auto` to the `fastest` measured decoder if it is installed, else to PyAV."""
    if decoder != AUTO:
        return decoder
    return next(name for name in (fastest, DEFAULT) if name in CHOICES and _is_installed(name))


def load(decoder: str) -> OpenVideo:
    """Import a decoder and return the function that opens a video with it.

    ValueError, with the remedy, if the name is unknown or the decoder does not load on this machine.
    """
    return _load(resolve(decoder))


def loadable() -> list[str]:
    """Return the choices that load on this machine."""
    names = []
    for name in CHOICES:
        with contextlib.suppress(ValueError):
            load(name)
            names.append(name)
    return names


@functools.cache
def _load(decoder: str) -> OpenVideo:
    entry = DECODERS.get(decoder) or _from_outside(check_name(decoder))
    module, _, name = entry.target.partition(":")
    try:
        opener = getattr(importlib.import_module(module), name)
        if check := getattr(opener, "check", None):
            check()
    except ModuleNotFoundError as error:
        raise ValueError(f"the decoder {decoder} {entry.remedy_missing or f'does not load: {error}'}") from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the decoder {decoder} {entry.remedy_broken or 'does not load'} ({detail})") from error
    return opener


def _from_outside(decoder: str) -> Decoder:
    target = decoder if ":" in decoder else _entry_points()[decoder]
    return Decoder(target=target, package=target.partition(".")[0])


@functools.cache
def _entry_points() -> dict[str, str]:
    """Return name → target of the decoders of installed packages, without importing them."""
    return {entry.name: entry.value for entry in metadata.entry_points(group=ENTRY_POINTS)}


@functools.cache
def _is_installed(decoder: str) -> bool:
    return importlib.util.find_spec(DECODERS[decoder].package) is not None


def without_foreign(decoder: str, source: str) -> str:
    """Return `decoder`, or `auto` in place of an external one: an untrusted file must not make us import code."""
    if is_built_in(decoder):
        return decoder
    log.warning("%s names the decoder %s, which is not part of snps3: auto decodes instead", source, decoder)
    return AUTO
