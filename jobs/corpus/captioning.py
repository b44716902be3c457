"""Caption clips with a model endpoint: a new manifest adds the captions to the existing ones."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from jobs.corpus.preparation import PrepareResult, commit, refuse_writing_over
from jobs.corpus.resumption import request_missing
from jobs.launch import lease
from pipeline import storage
from pipeline.corpus.manifest import SCHEMA, Manifest, read_manifest
from pipeline.corpus.parts import is_in_parts
from pipeline.corpus.sorted_rows import SortedRows
from pipeline.curation.endpoint import Endpoint, EndpointConfig
from pipeline.decode.clip_frames import clip_frames
from pipeline.decode.codec import encode_image
from pipeline.decode.config import Limits
from pipeline.offline.kept import key_of
from pipeline.records import DecodeError, Rejected, Stage

log = logging.getLogger(__name__)

MARKER, KEPT = "caption.json", "answers"
ANSWERS = pa.schema(
    [
        ("clip_id", pa.int64()),
        ("uri", pa.string()),
        ("caption", pa.string()),
        ("caption_source", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("num_requests", pa.int64()),
    ]
)
QUALITY = 85
"""JPEG quality of the frames."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Which clips are captioned, and by which endpoint."""

    manifest: str
    """Manifest of the corpus: a file or a folder of parts; the new one has the same form. `prepare --keep-uncaptioned`
    makes one of clips without captions."""
    out: str
    """Folder or bucket for the manifest with the captions, and for the answers so far."""
    endpoint: EndpointConfig
    source: str | None = None
    """Name of the captions' author in the column `caption_sources`; None: the name of the model."""
    only_uncaptioned: bool = False
    """Caption only clips without captions."""
    num_frames: int = 8
    """Frames of a clip that are sent, evenly over its time."""
    frame_size_px: int = 512
    """Long side of a frame at most."""
    num_at_once: int = 8
    """Requests at a time."""
    max_rejected_share: float = 0.05
    """Largest share of clips that may be left without a caption, in [0, 1]."""
    limits: Limits = field(default_factory=Limits)
    """Limits of decoding one clip."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "frame_size_px", "num_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.max_rejected_share <= 1:
            raise ValueError(f"max_rejected_share must lie in [0, 1], got {self.max_rejected_share}")

    @property
    def source_name(self) -> str:
        return self.source or self.endpoint.model

    @property
    def question(self) -> tuple[object, ...]:
        """Return the settings that an answer depends on, besides the clip."""
        endpoint = self.endpoint
        asked = (endpoint.model, endpoint.prompt, endpoint.max_tokens, endpoint.temperature)
        return (self.source_name, *asked, self.num_frames, self.frame_size_px)


@dataclass(frozen=True, kw_only=True)
class CaptionResult:
    """The result of `caption`."""

    prepared: PrepareResult
    num_captions: int
    """Of this source, also of earlier passes."""
    num_asked: int
    """Clips that this pass sent to the endpoint."""
    num_requests: int
    input_tokens: int
    output_tokens: int
    dollars: float | None
    """Of all captions; None without prices."""

    @property
    def dollars_per_thousand(self) -> float | None:
        """Return the price of a thousand captions."""
        return None if self.dollars is None else 1000 * self.dollars / max(1, self.num_captions)


def caption(config: CaptionConfig) -> CaptionResult:
    """Write the manifest with a caption of the endpoint for each clip, and the ledger of the clips without one.

    Answers of earlier passes are reused. ValueError if captions would be overwritten, or while another job writes to
    the same folder. TooManyRejectedError, after the ledger is written, when more than the allowed share has no caption.
    """
    out = storage.absolute(config.out)
    manifest = read_manifest(config.manifest)
    refuse_overwriting(config, manifest, out)
    storage.check_writable(out)
    with lease.held(out) as held:
        storage.write_bytes_atomic(storage.join(out, MARKER), json.dumps(_identity(config)).encode())
        return _caption(config, manifest, out, held)


def refuse_overwriting(config: CaptionConfig, manifest: Manifest, out: str) -> None:
    """Raise ValueError if captions of the same source, or another manifest, would be overwritten."""
    refuse_writing_over(config.manifest, out)
    sources = {source for row in manifest.table["caption_sources"].to_pylist() for source in row or ()}
    if config.source_name in sources:
        raise ValueError(f"{config.manifest} has captions of {config.source_name!r} already: name another --source")
    marker = storage.join(out, MARKER)
    before = json.loads(storage.read_bytes(marker)) if storage.exists(marker) else _identity(config)
    if different := [name for name, value in _identity(config).items() if before.get(name) != value]:
        raise ValueError(f"{out} holds captions of another {different[0]}: take another --out")


def _identity(config: CaptionConfig) -> dict[str, Any]:
    asked = dataclasses.asdict(config.endpoint)
    names = ("model", "prompt", "max_tokens", "temperature")
    of_config = {"manifest": storage.absolute(config.manifest), "source": config.source_name}
    of_config |= {"num_frames": config.num_frames, "frame_size_px": config.frame_size_px}
    return of_config | {name: asked[name] for name in names}


def _caption(config: CaptionConfig, manifest: Manifest, out: str, held: lease.Lease) -> CaptionResult:
    started = time.monotonic()
    clips = [row for row in manifest.table.to_pylist() if not (config.only_uncaptioned and row["captions"])]
    keys = [
        key_of(*map(clip.get, ("clip_id", "checksum", "start_seconds", "end_seconds")), *config.question)
        for clip in clips
    ]
    keyed = [clip | {"key": key} for clip, key in zip(clips, keys, strict=True)]
    endpoint, folder = Endpoint(config.endpoint), storage.join(out, KEPT)
    ask = partial(answer_of, endpoint=endpoint, config=config)
    table, num_asked = request_missing(keyed, ask, folder, ANSWERS, num_at_once=config.num_at_once, what="captions")
    held.check()
    answers = table.to_pylist()
    written = {row["clip_id"]: row["caption"] for row in answers if not row["reason"]}
    rows = with_captions(manifest.table.to_pylist(), written, config.source_name)
    prepared = commit(
        SortedRows([pa.Table.from_pylist([row for row in rows if row["captions"]], SCHEMA)]),
        [Rejected.from_row(row, Stage.PREPARE) for row in answers if row["reason"]],
        corpus=manifest.corpus,
        root=manifest.root,
        out=out,
        num_samples=len(clips),
        max_rejected_share=config.max_rejected_share,
        started=started,
        decoders=manifest.decoders,
        in_parts=is_in_parts(config.manifest),
    )
    tokens = {
        name: sum(row[name] or 0 for row in answers) for name in ("input_tokens", "output_tokens", "num_requests")
    }
    dollars = config.endpoint.dollars(tokens["input_tokens"], tokens["output_tokens"])
    return CaptionResult(prepared=prepared, num_captions=len(written), num_asked=num_asked, dollars=dollars, **tokens)


def answer_of(clip: dict[str, Any], endpoint: Endpoint, config: CaptionConfig) -> dict[str, Any]:
    """Caption a clip and return its row of `ANSWERS`, or a row with the reason of the rejection."""
    row = {name: clip[name] for name in ("clip_id", "uri", "key")} | {"caption_source": config.source_name}
    try:
        frames = clip_frames(clip, num_frames=config.num_frames, size_px=config.frame_size_px, limits=config.limits)
        answer = endpoint.caption([encode_image(frame, quality=QUALITY) for frame in frames])
    except DecodeError as error:
        return row | {"reason": str(error.reason), "detail": error.detail}
    values = dataclasses.asdict(answer)
    return row | {"caption": values.pop("text")} | values


def with_captions(rows: Sequence[dict[str, Any]], written: dict[int, str], source: str) -> list[dict[str, Any]]:
    """Return the rows of a manifest, each with its new caption, if any, after the captions that it has."""
    changed = []
    for row in rows:
        text, captions = written.get(row["clip_id"]), row["captions"]
        sources = row["caption_sources"] or [None] * len(captions)
        more = [] if text is None else [text]
        changed.append(row | {"captions": captions + more, "caption_sources": sources + [source] * len(more)})
    return changed


def describe(result: CaptionResult) -> str:
    """Return a summary for the terminal."""
    rejected = ", ".join(f"{reason} {count}" for reason, count in result.prepared.num_rejected.items()) or "none"
    thousand = result.dollars_per_thousand
    count = max(1, result.num_captions)
    price = (
        "no prices given"
        if thousand is None
        else f"${thousand:.2f} per thousand captions, ${result.dollars:.2f} in all"
    )
    return (
        f"captions  {result.num_captions}, {result.num_asked} clips asked for now, {result.num_requests} requests\n"
        f"tokens    {result.input_tokens} in, {result.output_tokens} out: {result.input_tokens / count:.0f} and "
        f"{result.output_tokens / count:.0f} per caption\ncost      {price}\nrejected  {rejected}: "
        f"{result.prepared.ledger_path}\nmanifest  {result.prepared.manifest_path} ({result.prepared.manifest_hash})"
    )
