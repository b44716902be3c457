"""Build an index of a folder or bucket of videos, one row per window; indexed videos are not embedded again."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
import tyro

from cluster.connection import connected_ray
from cluster.rank_datasets import grows
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.inference.index_files import (
    FORMAT,
    INDEX,
    REJECTED,
    keep_tensors,
    num_windows,
    parts_in,
    remove_part,
    write_tensors,
)
from jobs.inference.model import folder_of, windows
from jobs.inference.search_model import load_searcher, unpadded, weights_of
from jobs.launch import lease
from jobs.run import run_files
from jobs.run.fields import refuse_below
from pipeline import storage
from pipeline.corpus.ledger import read_ledger, with_reason, write_ledger
from pipeline.corpus.manifest import clip_id
from pipeline.corpus.media import kind_of
from pipeline.decode.config import Limits
from pipeline.decode.images import encode_image
from pipeline.offline.shards import TRANSIENT
from pipeline.records import DecodeError, Rejected, Stage

DONE = with_reason(pa.schema([("clip_id", pa.int64()), ("uri", pa.string()), ("windows", pa.int64())]))
EMBEDDED = pa.schema(
    [
        ("clip_id", pa.int64()),
        ("uri", pa.string()),
        ("version", pa.string()),  # size and modification time, or ETag
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),  # null for an image
        ("strip", pa.binary()),  # JPEG
    ]
)
ROWS_PER_FILE = 2048
"""Number of windows after which a file of the index is written, at the end of a video."""
STRIP_FRAMES, STRIP_QUALITY = 4, 75


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """The videos to embed, the model, and the index."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run, of an exported model, or of a CLIP or SigLIP; or name of a released model."""
    videos: str
    """Folder or s3:// URL; images count too."""
    out: str
    """Folder or s3:// URL of the index."""
    window_seconds: float | None = 10.0
    """Length of the windows that a video is cut into; None: the whole video is one window."""
    stride_seconds: float = 5.0
    """Distance from the start of one window to the next."""
    num_workers: int = 1
    """Workers, each with a copy of the model."""
    decode_cpus: int = 1
    """Videos that a worker decodes concurrently, each on one CPU."""
    use_gpu: bool = False
    videos_per_part: int = 64
    """Videos per task of a worker."""
    limits: Limits = field(default_factory=Limits)
    """Limits for decoding one video, or 32 windows of it."""

    def __post_init__(self) -> None:
        refuse_below(self, "", num_workers=1, decode_cpus=1, videos_per_part=1)
        if self.window_seconds is not None and not 0 < self.stride_seconds <= self.window_seconds:
            raise ValueError(
                "windows need 0 < stride_seconds <= window_seconds, so that no second is left out; got "
                f"{self.stride_seconds} and {self.window_seconds}"
            )


def embed(config: EmbedConfig) -> dict[str, int]:
    """Embed the videos that the index lacks, and remove the windows of changed or deleted ones.

    Return the counts of all videos, of those embedded now, and of those rejected now. Raise ValueError for an index of
    another model, folder or windows, and for one that another process is writing.
    """
    with lease.held(storage.absolute(config.out)) as held:
        return _embed(config, held)


def _embed(config: EmbedConfig, held: lease.Lease) -> dict[str, int]:
    run, videos, out = folder_of(config.run), storage.absolute(config.videos), storage.absolute(config.out)
    num_videos, rows = rows_to_embed(config, videos, out)
    if not rows:
        return {"videos": num_videos, "embedded": 0, "rejected": 0}
    with connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True):
        refuse_too_many(config)
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        outcomes = data.map_batches(
            Embedder,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(run, out, config),
            concurrency=config.num_workers,
            num_gpus=1 if config.use_gpu else 0,
            num_cpus=config.decode_cpus,
        ).take_all()
    held.check()
    rejected = [Rejected.from_row(row, Stage.EVALUATE) for row in outcomes if row["reason"]]
    write_ledger(rejected_for_good(out) + rejected, f"{out}/{REJECTED}")
    return {"videos": num_videos, "embedded": len(outcomes) - len(rejected), "rejected": len(rejected)}


def rows_to_embed(config: EmbedConfig, videos: str, out: str) -> tuple[int, list[dict[str, Any]]]:
    """Bring the index in `out` up to date; return the number of all videos, and those that the index lacks, in parts.

    Raise ValueError for a folder without videos, and for an index of another model, folder or windows.
    """
    listed = storage.file_versions(videos)
    versions = {storage.join(videos, path): listed[path] for path in sorted(listed) if kind_of(path)}
    if not versions:
        raise ValueError(f"{videos} holds neither videos nor images")
    claim(config, videos, out)
    parts = parts_of(versions, bring_up_to_date(out, versions), config.videos_per_part)
    rows = [{"part": name, "uris": part, "versions": [versions[uri] for uri in part]} for name, part in parts]
    return len(versions), rows


def refuse_too_many(config: EmbedConfig) -> None:
    """Raise ValueError for more workers than fit on the connected cluster: they would wait forever."""
    have = ray.cluster_resources()
    cpus, gpus = config.num_workers * config.decode_cpus, config.num_workers if config.use_gpu else 0
    if not grows() and (cpus > have.get("CPU", 0) or gpus > have.get("GPU", 0)):
        raise ValueError(
            f"{config.num_workers} workers × {config.decode_cpus} CPUs and {gpus} GPUs are more than the cluster's "
            f"{have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs; lower --num-workers or --decode-cpus"
        )


def claim(config: EmbedConfig, videos: str, out: str) -> None:
    """Write index.json. Raise ValueError if `out` holds an index of another model, folder or windows."""
    folder = folder_of(config.run)
    identity = {
        "format": FORMAT,
        "model": weights_of(folder),
        "videos": videos,
        "window_seconds": config.window_seconds,
        "stride_seconds": config.stride_seconds if config.window_seconds else None,
    }
    path = f"{out}/{INDEX}"
    if storage.exists(path):
        known = run_files.read_json(path)
        if wrong := [name for name in identity if known.get(name) != identity[name]]:
            raise ValueError(
                f"{out} is the index of another {wrong[0]}: {known.get(wrong[0])}, not {identity[wrong[0]]}; "
                "take another --out"
            )
    run_files.write_json(path, identity | {"run": folder})


def rejected_for_good(out: str) -> list[Rejected]:
    """Return the rejected videos of an index, except those with transient failures, which are retried."""
    path = f"{out}/{REJECTED}"
    return [row for row in read_ledger(path) if row.reason not in TRANSIENT] if storage.exists(path) else []


def bring_up_to_date(out: str, versions: Mapping[str, str]) -> set[str]:
    """Remove the rows of changed or deleted videos, and rename those of moved ones. Return the known paths: indexed, or
    rejected for good.

    A new path with the size and modification time (or the ETag) of exactly one missing path is a moved video. A part
    whose tensors are broken, or of another length, is removed, so that its videos are embedded again.
    """
    known = {str(row.uri) for row in rejected_for_good(out)}
    contents = {path: table for path in parts_in(out) if (table := readable(path)) is not None}
    indexed = {uri: version for table in contents.values() for uri, version in pairs(table)}
    moved = renamed(indexed, versions)
    for path, table in contents.items():
        names = [moved.get(uri, uri) for uri, _ in pairs(table)]
        stays = [versions.get(name) == version for name, (_, version) in zip(names, pairs(table), strict=True)]
        known |= {uri for uri, is_current in zip(names, stays, strict=True) if is_current}
        if not any(stays):
            remove_part(path)
        elif names != table["uri"].to_pylist() or not all(stays):
            if not all(stays):
                keep_tensors(path, stays)
            rows = storage.read_table(path)
            rows = rows.set_column(rows.schema.get_field_index("uri"), "uri", pa.array(names, pa.string()))
            storage.write_table(path, rows.filter(pa.array(stays)))
    return known


def readable(path: str) -> pa.Table | None:
    """Return path and version of each row of a part. Remove a part whose tensors do not fit its rows, and return
    None."""
    table = storage.read_with(path, lambda file: pq.read_table(file, columns=["uri", "version"]))
    with contextlib.suppress(ValueError):
        if num_windows(path) == len(table):
            return table
    remove_part(path)
    return None


def pairs(table: pa.Table) -> Iterator[tuple[str, str]]:
    """Yield path and version of each row."""
    for row in table.select(["uri", "version"]).to_pylist():
        yield str(row["uri"]), str(row["version"])


def renamed(indexed: Mapping[str, str], versions: Mapping[str, str]) -> dict[str, str]:
    """Return old → new path of moved videos."""

    def by_version(files: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for uri, version in files:
            groups.setdefault(version, []).append(uri)
        return groups

    gone = by_version((uri, version) for uri, version in indexed.items() if uri not in versions)
    new = by_version((uri, version) for uri, version in versions.items() if uri not in indexed)
    return {old[0]: new[version][0] for version, old in gone.items() if len(old) == 1 == len(new.get(version, ()))}


def parts_of(versions: Mapping[str, str], known: set[str], size: int) -> list[tuple[str, list[str]]]:
    """Divide the videos that are not yet known into parts, in order; return name and videos of each.

    A name is a hash of all videos of the part, so that a part never overwrites one with other videos.
    """
    new = [uri for uri in versions if uri not in known]
    parts = [new[start : start + size] for start in range(0, len(new), size)]
    contents = ["\n".join(f"{uri} {versions[uri]}" for uri in part) for part in parts]
    names = [hashlib.blake2b(content.encode(), digest_size=8).hexdigest() for content in contents]
    return [(f"part-{name}", part) for name, part in zip(names, parts, strict=True)]


class Embedder:
    """Decodes videos, embeds them with a model, and writes the files of an index."""

    def __init__(self, run: str, out: str, config: EmbedConfig) -> None:
        self.model, self.out, self.config = load_searcher(run, "cuda" if config.use_gpu else "cpu"), out, config
        self.weights = weights_of(run)
        self.lock = threading.Lock()

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Index the videos of some parts. Return a row per video, with the reason if it is rejected."""
        outcomes = []
        with ThreadPoolExecutor(self.config.decode_cpus) as pool:
            for part in parts.to_pylist():
                rows, number = [], 0
                for row, windows in pool.map(self.video, part["uris"], part["versions"]):
                    outcomes.append(row)
                    rows += windows
                    if len(rows) >= ROWS_PER_FILE:
                        self.write(f"{part['part']}-{number}.parquet", rows)
                        rows, number = [], number + 1
                self.write(f"{part['part']}-{number}.parquet", rows)
        return pa.Table.from_pylist(outcomes, schema=DONE)

    def video(self, uri: str, version: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the outcome of a video, and its rows for the index."""
        facts: dict[str, Any] = {"clip_id": clip_id("embedded", uri), "uri": uri}
        try:
            rows = [facts | {"version": version} | row for row in self.rows(uri)]
        except DecodeError as error:
            return facts | {"windows": 0, "reason": str(error.reason), "detail": error.detail}, []
        return facts | {"windows": len(rows)}, rows

    def rows(self, uri: str) -> Iterator[dict[str, Any]]:
        """Yield times, strip, vectors and tokens of each window of a video."""
        config = self.config
        for spans, frames in windows(uri, self.model.data, config.limits, config.window_seconds, config.stride_seconds):
            with self.lock:
                videos = self.model.embed_frames(frames)
            parts = videos.vectors.cpu().float(), videos.tokens.cpu().float()
            for (start, end), clip, vectors, tokens in zip(spans, frames, *parts, strict=True):
                yield {
                    "start_seconds": start,
                    "end_seconds": end,
                    "strip": strip_of(clip),
                    "vectors": vectors,
                    "tokens": tokens,
                }

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write a part of the index, unless it has no rows."""
        if rows:
            path = f"{self.out}/{name}"
            vectors, tokens = (torch.stack([row[name] for row in rows]) for name in ("vectors", "tokens"))
            write_tensors(path, vectors, tokens, self.weights)
            storage.write_table(path, pa.Table.from_pylist(list(rows), schema=EMBEDDED))


def strip_of(clip: np.ndarray) -> bytes:
    """Return some frames of a clip, uint8 (T, S, S, 4) with padding in the last channel, side by side as a JPEG."""
    frames = sorted(set(np.linspace(0, len(clip) - 1, STRIP_FRAMES).round().astype(int).tolist()))
    return encode_image(np.concatenate([*unpadded(clip)[frames]], axis=1), quality=STRIP_QUALITY)
