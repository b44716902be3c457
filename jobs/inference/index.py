"""Vectors of a folder or bucket of videos, in parts: a part that is there is not embedded again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import tyro

from cluster.connection import connected_ray
from cluster.run import WORKER_ENVIRONMENT
from jobs.inference.index_files import INDEX, REJECTED, parts_in
from jobs.inference.model import decode, load
from jobs.run import run_files
from jobs.run.config import DataConfig
from jobs.run.fields import refuse_below
from jobs.run.run_identity import config_of
from pipeline import storage
from pipeline.corpus.ledger import read_ledger, with_reason, write_ledger
from pipeline.corpus.manifest import clip_id
from pipeline.corpus.media import kind_of
from pipeline.decode.config import Limits
from pipeline.offline.shards import PASSING
from pipeline.records import DecodeError, Rejected, Stage

DECODED = with_reason(
    pa.schema([("part", pa.string()), ("clip_id", pa.int64()), ("uri", pa.string()), ("frames", pa.large_binary())])
)
EMBEDDED = pa.schema(
    [
        ("clip_id", pa.int64()),
        ("uri", pa.string()),
        ("vectors", pa.list_(pa.float32())),  # T × D, by frames
        ("tokens", pa.list_(pa.float32())),  # S × D, by tokens
    ]
)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Which videos are embedded, with which model, and where to."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run, or of an exported model."""
    videos: str
    """Folder or s3:// URL; images count too."""
    out: str
    """Folder or s3:// URL of the index."""
    num_workers: int = 1
    """Copies of the model that embed."""
    decode_cpus: int = 1
    use_gpu: bool = False
    videos_per_part: int = 64
    """Videos of one file of the index."""
    limits: Limits = field(default_factory=Limits)
    """What the decoding of one video may take."""

    def __post_init__(self) -> None:
        refuse_below(self, "", num_workers=1, decode_cpus=1, videos_per_part=1)


def embed(config: EmbedConfig) -> dict[str, int]:
    """Embed the videos that the index lacks. Return counts: all videos, those embedded now, those rejected now."""
    run, videos, out = map(storage.absolute, (config.run, config.videos, config.out))
    uris = sorted(storage.join(videos, path) for path in storage.list_files(videos) if kind_of(path))
    if not uris:
        raise ValueError(f"{videos} holds neither videos nor images")
    claim(config, videos, out)
    parts = parts_of(uris, known_uris(out), config.videos_per_part)
    if not parts:
        return {"videos": len(uris), "embedded": 0, "rejected": 0}
    with connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True):
        data = ray.data.from_items(
            [{"part": name, "uris": part} for name, part in parts], override_num_blocks=len(parts)
        )
        data.context.target_max_block_size = None  # a part stays together
        done = (
            data.map_batches(
                decode_part,  # pyright: ignore[reportArgumentType]
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"data": config_of(run).data, "limits": config.limits},
                num_cpus=1,
            )
            .map_batches(
                Embedder,  # pyright: ignore[reportArgumentType]
                batch_size=None,
                batch_format="pyarrow",
                fn_constructor_args=(run, out, config.use_gpu),
                concurrency=config.num_workers,
                num_gpus=1 if config.use_gpu else 0,
                num_cpus=0 if config.use_gpu else 1,
            )
            .take_all()
        )
    rejected = [Rejected.from_row(row, Stage.EVALUATE) for row in done if row["reason"]]
    write_ledger(rejected_for_good(out) + rejected, f"{out}/{REJECTED}")
    return {"videos": len(uris), "embedded": len(done) - len(rejected), "rejected": len(rejected)}


def claim(config: EmbedConfig, videos: str, out: str) -> None:
    """Write what the index belongs to. ValueError if `out` holds the index of another model or folder."""
    folder = storage.absolute(config.run)
    identity = {"model": run_files.weights_hash(folder), "videos": videos, "run": folder}
    path = f"{out}/{INDEX}"
    if storage.exists(path):
        known = run_files.read_json(path)
        if wrong := [name for name in ("model", "videos") if known[name] != identity[name]]:
            raise ValueError(
                f"{out} is the index of another {wrong[0]}: {known[wrong[0]]}, not {identity[wrong[0]]}; "
                "take another --out"
            )
    run_files.write_json(path, identity)


def rejected_for_good(out: str) -> list[Rejected]:
    """Return the rejected videos of an index without those of passing failures, which are tried again."""
    path = f"{out}/{REJECTED}"
    return [row for row in read_ledger(path) if row.reason not in PASSING] if storage.exists(path) else []


def known_uris(out: str) -> set[str]:
    """Return the videos that the index holds or has rejected for good."""
    known = {row.uri for row in rejected_for_good(out)}
    for path in parts_in(out):
        known |= set(storage.read_table(path, ["uri"])["uri"].to_pylist())
    return known


def parts_of(uris: Sequence[str], known: set[str], size: int) -> list[tuple[str, list[str]]]:
    """Return file names with their videos: those that are not yet in a file, in order.

    A name is that of all its videos: a part that begins alike but holds others never takes the place of a written one.
    """
    left = [uri for uri in uris if uri not in known]
    parts = [left[start : start + size] for start in range(0, len(left), size)]
    names = [hashlib.blake2b("\n".join(part).encode(), digest_size=8).hexdigest() for part in parts]
    return [(f"part-{name}.parquet", part) for name, part in zip(names, parts, strict=True)]


def decode_part(parts: pa.Table, *, data: DataConfig, limits: Limits) -> pa.Table:
    """Return the frames of each video of a part, or the reason why there are none."""
    rows = []
    for part in parts.to_pylist():
        for uri in part["uris"]:
            row = {"part": part["part"], "clip_id": clip_id("embedded", uri), "uri": uri}
            try:
                row["frames"] = decode(uri, data, limits).tobytes()
            except DecodeError as error:
                row |= {"reason": str(error.reason), "detail": error.detail}
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=DECODED)


class Embedder:
    """A model that embeds decoded parts, and writes each as a file."""

    def __init__(self, run: str, out: str, use_gpu: bool) -> None:
        self.model, self.out = load(run, "cuda" if use_gpu else "cpu"), out

    def __call__(self, table: pa.Table) -> pa.Table:
        """Write the videos that were decoded; return all of them, with the reason where one was not."""
        usable = table.filter(table["reason"].is_null())
        for name in usable["part"].unique().to_pylist():
            self.write(name, usable.filter(pc.field("part") == name))
        return table.drop_columns(["part", "frames"])

    def write(self, name: str, rows: pa.Table) -> None:
        """Write the file of a part."""
        data = self.model.data
        shape = (len(rows), data.num_frames, data.frame_size_px, data.frame_size_px, 4)
        frames = np.frombuffer(b"".join(rows["frames"].to_pylist()), np.uint8).reshape(shape)
        videos = self.model.embed_frames(frames)
        vectors, tokens = (list(part.flatten(1).cpu().numpy()) for part in (videos.vectors, videos.tokens))
        columns = {"clip_id": rows["clip_id"], "uri": rows["uri"], "vectors": vectors, "tokens": tokens}
        storage.write_table(f"{self.out}/{name}", pa.table(columns, schema=EMBEDDED))
