"""Split long videos into clips, as a Ray Data job: a table of times for prepare. Nothing is re-encoded."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from jobs.corpus.resumption import compute_missing
from jobs.launch import lease
from pipeline import storage
from pipeline.corpus import annotations, ledger, media
from pipeline.corpus.clip_rows import Annotation
from pipeline.corpus.manifest import clip_id
from pipeline.corpus.sources import Source, open_source
from pipeline.curation.cuts import bound_lengths
from pipeline.curation.shots import SPANS, Cutting, DetectorName, spans_of_files, weights_path
from pipeline.decode import decoders
from pipeline.decode.config import Limits
from pipeline.decode.decoders import DecoderName
from pipeline.offline.kept import key_of
from pipeline.records import Kind, Reason, Rejected, Stage

log = logging.getLogger(__name__)

CLIPS, LEDGER, MARKER, KEPT = "clips.parquet", "rejected.parquet", "split.json", "spans"
TABLE = pa.schema([("clip_name", pa.string()), ("start", pa.float64()), ("end", pa.float64())])
"""Columns of a clip: path of its video below the root, start and end in seconds."""
TIMED = pa.schema([*TABLE, ("captions", pa.list_(pa.string())), ("split", pa.string())])
"""Columns of a clip from an annotation."""
VERSION = 2
"""Increase it when the same video gives other spans."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which videos are split, where, and into what lengths."""

    videos: str
    """Folder or bucket of the videos; `--root` of prepare."""
    out: str
    """Folder or bucket for the clips, the ledger, and the spans of videos that are done."""
    by: Literal["shots", "stride", "times"] = "shots"
    """`shots`: at the shot boundaries of a detector. `stride`: windows of `--window-seconds` every `--stride-seconds`.
    `times`: at the times of `--annotations`."""
    detector: DetectorName = "content"
    """`content` sees cuts, by the change from frame to frame. `transnetv2` sees slow transitions too, by a network
    whose weights the extra `shots` brings."""
    threshold: float | None = None
    """Change of a frame that is a cut, in [0, 255], or probability of a transition; None: the detector's default."""
    window_seconds: float = 10.0
    stride_seconds: float = 10.0
    annotations: tuple[str, ...] = ()
    """Caption files with the times, as for prepare; their captions and splits are copied."""
    min_seconds: float = 2.0
    """Shorter clips are left out."""
    max_seconds: float = 60.0
    """Longer clips are cut into equal parts."""
    max_rejected_share: float = 0.05
    """Largest share of videos that may be rejected, in [0, 1]."""
    decoder: DecoderName = decoders.AUTO
    subcluster: str | None = None
    """Only nodes with this value of the label `ray-subcluster` read and decode, e.g. data; by default all do."""
    limits: Limits = field(default_factory=lambda: Limits(seconds=300.0))
    """Limits of decoding 512 frames."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds <= self.max_seconds or not self.max_seconds > 0:
            raise ValueError(
                f"lengths need 0 <= min_seconds <= max_seconds, got {self.min_seconds} and {self.max_seconds}"
            )
        if not 0 < self.stride_seconds <= self.window_seconds:
            raise ValueError(
                "windows need 0 < stride_seconds <= window_seconds, so that no second is left out; got "
                f"{self.stride_seconds} and {self.window_seconds}"
            )
        if not 0 <= self.max_rejected_share <= 1:
            raise ValueError(f"max_rejected_share must lie in [0, 1], got {self.max_rejected_share}")
        if bool(self.annotations) != (self.by == "times"):
            raise ValueError(f"--by times needs --annotations, and they need it; got --by {self.by}")
        decoders.load(self.decoder)
        if self.by == "shots" and self.detector == "transnetv2":
            weights_path()

    @property
    def cutting(self) -> Cutting:
        """Return the settings by which videos are cut into spans."""
        return Cutting(
            by=self.by,
            detector=self.detector,
            threshold=self.threshold,
            window_seconds=self.window_seconds,
            stride_seconds=self.stride_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """The result of `split`."""

    clips_path: str
    ledger_path: str
    num_videos: int
    num_clips: int
    hours: float
    """Of all clips."""
    num_left_out: int
    """Spans that are too short."""
    num_rejected: dict[str, int]
    """Videos per reason."""


def split(config: SplitConfig) -> SplitResult:
    """Write the clips of all videos, and the ledger. Spans of earlier passes are reused.

    ValueError without videos or clips, or while another job writes to the same folder. TooManyRejectedError, after the
    ledger is written, when more than the allowed share is rejected.
    """
    root, out = storage.absolute(config.videos), storage.absolute(config.out)
    storage.check_readable(root)
    storage.check_writable(out)
    with lease.held(out) as held:
        rows, rejected, num_videos = _annotated(config) if config.by == "times" else _found(config, root, out)
        held.check()
        ledger_path = storage.join(out, LEDGER)
        ledger.write_ledger(rejected, ledger_path)
        ledger.refuse_above_share(rejected, num_videos, config.max_rejected_share, ledger_path)
        clips = [part for row in rows for part in parts_of(row, config)]
        if not clips:
            least = f"{config.min_seconds:g} s"
            raise ValueError(f"no clip of {root} has {least}: lower --min-seconds or see {ledger_path}")
        result = SplitResult(
            clips_path=storage.join(out, CLIPS),
            ledger_path=ledger_path,
            num_videos=num_videos,
            num_clips=len(clips),
            hours=sum(clip["end"] - clip["start"] for clip in clips) / 3600,
            num_left_out=sum(not parts_of(row, config) for row in rows),
            num_rejected={str(reason): count for reason, count in ledger.count_by_reason(rejected).items()},
        )
        storage.write_table(result.clips_path, pa.Table.from_pylist(clips, TIMED if config.by == "times" else TABLE))
        summary = {"config": dataclasses.asdict(config), "found": dataclasses.asdict(result)}
        storage.write_bytes_atomic(storage.join(out, MARKER), json.dumps(summary, indent=1).encode())
        return result


def parts_of(row: dict[str, Any], config: SplitConfig) -> list[dict[str, Any]]:
    """Return a span (a row with `start` and `end`, in seconds) as clips of allowed length."""
    spans = bound_lengths([(row["start"], row["end"])], config.min_seconds, config.max_seconds)
    return [row | {"start": start, "end": end} for start, end in spans]


def describe(result: SplitResult) -> str:
    """Return a summary for the terminal."""
    rejected = ", ".join(f"{reason} {count}" for reason, count in result.num_rejected.items()) or "none"
    return (
        f"videos    {result.num_videos}\nclips     {result.num_clips}, {result.hours:.2f} h: {result.clips_path}\n"
        f"too short {result.num_left_out}\nrejected  {rejected}: {result.ledger_path}"
    )


def _annotated(config: SplitConfig) -> tuple[list[dict[str, Any]], list[Rejected], int]:
    """Return the spans of the annotations with their captions, the rejected rows, and the number of videos and wrong
    rows."""
    reading = annotations.read(config.annotations)
    rejected = [
        Rejected(
            clip_id=clip_id("split", row.where),
            uri=row.where,
            stage=Stage.PREPARE,
            reason=Reason.WRONG_ROW,
            detail=row.reason,
        )
        for row in reading.wrong
    ]
    open_ended = [clip.relative_path for clip in reading.clips if clip.end_seconds is None]
    if open_ended:
        raise ValueError(f"{len(open_ended)} clips have no end, as {open_ended[0]}: --by times needs one of each")
    return list(map(_row, reading.clips)), rejected, len({clip.relative_path for clip in reading.clips}) + len(rejected)


def _row(clip: Annotation) -> dict[str, Any]:
    return {
        "clip_name": clip.relative_path,
        "start": clip.start_seconds or 0.0,
        "end": clip.end_seconds,
        "captions": list(clip.captions),
        "split": clip.split or None,
    }


def _found(config: SplitConfig, root: str, out: str) -> tuple[list[dict[str, Any]], list[Rejected], int]:
    """Return the spans detected in the videos, the rejected videos, and the number of videos."""
    versions = storage.file_versions(root)
    source = open_source(root, None, list(versions))
    videos = pa.Table.from_pylist(list(_videos(source, versions, config)))
    if not len(videos):
        raise ValueError(f"no video lies below {root}")
    find = partial(spans_of_files, cutting=config.cutting, limits=config.limits, decoder=config.decoder)
    folder = storage.join(out, KEPT)
    table = compute_missing(videos, find, folder, SPANS, max_block_rows=1, subcluster=config.subcluster)
    spans, rejected = ledger.split_by_reason(table, Stage.PREPARE)
    names = dict(zip(videos["clip_id"].to_pylist(), videos["name"].to_pylist(), strict=True))
    rows = [
        {"clip_name": names[span["clip_id"]], "start": span["start_seconds"], "end": span["end_seconds"]}
        for span in spans.sort_by([("uri", "ascending"), ("start_seconds", "ascending")]).to_pylist()
    ]
    return rows, rejected, len(videos)


def _videos(source: Source, versions: dict[str, str], config: SplitConfig) -> Iterator[dict[str, Any]]:
    """Yield the videos of a source, each with a key that depends on its file and on the settings."""
    how = (VERSION, config.cutting, decoders.resolve(config.decoder))
    for name, uri in sorted(source.places.items()):
        if media.kind_of(name) == Kind.VIDEO:
            version = versions.get(storage.relative_to(media.file_of(uri), source.root))
            yield {"clip_id": clip_id("split", name), "name": name, "uri": uri, "key": key_of(name, version, *how)}
