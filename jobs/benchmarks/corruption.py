"""Files damaged on purpose: each must stand in the ledger under its own reason, and every good clip must come through.

clips ─► six kinds of damage ─► jobs.prepare ─► ledger                           (the corpus arrives damaged)
clips ─► jobs.prepare ─► six kinds of damage ─► training stream ─► ledger        (files go bad later)
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tempfile
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.connection import connected_ray
from jobs.corpus.preparation import PrepareConfig, prepare
from pipeline.corpus import ledger
from pipeline.corpus.ledger import TooManyRejectedError
from pipeline.corpus.manifest import read_manifest
from pipeline.decode.codec import encode_video
from pipeline.decode.config import Limits
from pipeline.records import Reason, Rejected, Stage
from pipeline.stream.epoch_plan import Plan
from pipeline.stream.loader import ClipSource, clip_rows, clip_stream, rejected_rows
from pipeline.stream.transforms import normalise

NUM_FRAMES, SIZE_PX, BATCH = 4, 32, 8
NUM_ENDLESS, NUM_PER_CHUNK = 30_000_000, 2_000
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


@dataclass
class Outcome:
    """What became of the damaged files of one share, over all passes."""

    num_injected: int = 0
    num_recorded: int = 0
    num_good: int = 0
    num_good_usable: int = 0
    crashes: int = 0
    nan: int = 0
    black_frames: int = 0
    same_ledger_on_second_run: bool = True
    stops_above_share: bool = True


def corruption(
    num_clips: int = 600, shares: tuple[float, ...] = (0.01, 0.05), time_limit_seconds: float = 2.0
) -> dict[str, Any]:
    """Six kinds of damage, injected into a generated corpus before and after prepare."""
    start, limits = time.perf_counter(), Limits(seconds=time_limit_seconds)
    result: dict[str, Any] = {"num_clips": num_clips, "kinds": sorted(DAMAGES)}
    with tempfile.TemporaryDirectory() as folder, connected_ray():
        clean = make_clips(Path(folder, "clean"), num_clips)
        for share in shares:
            found = Outcome()
            outcomes = {
                "prepare": damaged_before(clean, Path(folder, f"before-{share}"), share, limits, found),
                "train": damaged_after(clean, Path(folder, f"after-{share}"), share, limits, found),
            }
            name = f"{share:.0%}"
            result |= {f"{name}/{key}": value for key, value in vars(found).items()}
            result[f"{name}/recorded_fraction"] = found.num_recorded / found.num_injected
            result |= {f"{name}/{stage}/rejected": counts for stage, counts in outcomes.items()}
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def damaged_before(clean: Path, folder: Path, share: float, limits: Limits, found: Outcome) -> dict[str, int]:
    """Rejected clips by reason when a damaged corpus is prepared, twice."""
    shutil.copytree(clean, folder)
    injected = damage(folder, share)
    config = PrepareConfig(
        corpus="damaged",
        root=str(folder / "videos"),
        annotations=(str(folder / "captions.jsonl"),),
        out=str(folder / "out"),
        max_rejected_share=1.0,
        limits=limits,
        force=True,
    )
    try:
        made = prepare(config)
        rejected, first = ledger.read_ledger(made.ledger_path), Path(made.ledger_path).read_bytes()
        found.stops_above_share &= stops(dataclasses.replace(config, max_rejected_share=share / 2))
    except Exception as error:
        return failed(found, error)
    judge(found, injected, rejected, [first, Path(made.ledger_path).read_bytes()], sum(made.num_clips.values()))
    return made.num_rejected


def stops(config: PrepareConfig) -> bool:
    """Whether prepare stops because too many clips are rejected."""
    try:
        prepare(config)
    except TooManyRejectedError:
        return True
    return False


def damaged_after(clean: Path, folder: Path, share: float, limits: Limits, found: Outcome) -> dict[str, int]:
    """Rejected clips by reason when files go bad after they were prepared, in two epochs of the training stream."""
    shutil.copytree(clean, folder)
    root, out = folder / "videos", folder / "out"
    made = prepare(
        PrepareConfig(corpus="later", root=str(root), annotations=(str(folder / "captions.jsonl"),), out=str(out))
    )
    injected, num_clips = damage(folder, share), len(read_manifest(made.manifest_path))
    plan = Plan(seed=0, num_videos=num_clips, num_images=0, global_batch=BATCH)
    source = ClipSource(
        manifest_path=made.manifest_path,
        split="train",
        num_frames=NUM_FRAMES,
        frame_size_px=SIZE_PX,
        decoder="decord",
        seed=0,
        plan=plan,
        batch=BATCH,
        limits=limits,
    )
    ledgers, rejected, usable = [], [], 0
    for epoch in range(2):
        start, stop = epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch
        try:
            stream = clip_stream(source, start_step=start, stop_step=stop, num_ranks=1)
            tables = list(stream.iter_batches(batch_size=BATCH, batch_format="pyarrow"))
        except Exception as error:
            return failed(found, error)
        rejected = [one for table in tables for one in rejected_rows(table, Stage.TRAIN)]
        usable = sum(look_at(table, source, epoch, found) for table in tables)
        path = str(out / f"epoch-{epoch}.parquet")
        ledger.write_ledger(rejected, path)
        ledgers.append(Path(path).read_bytes())
    judge(found, injected, rejected, ledgers, usable)
    try:
        ledger.refuse_above_share(rejected, num_clips, share / 2, str(out))
        found.stops_above_share = False
    except TooManyRejectedError:
        pass
    return {str(reason): count for reason, count in ledger.count_by_reason(rejected).items()}


def failed(found: Outcome, error: Exception) -> dict[str, int]:
    """A pass that ended with an exception, which is a crash and has no counts."""
    print(f"crashed: {error}", flush=True)
    found.crashes += 1
    return {}


def look_at(table: pa.Table, source: ClipSource, epoch: int, found: Outcome) -> int:
    """Usable clips of a step; frames among them that are black or have pixels that are no number are counted."""
    rows = clip_rows(table, source=source, epoch=epoch)
    frames = torch.from_numpy(rows.frames[rows.weight > 0].copy())
    found.black_frames += int((frames.flatten(2).amax(2) == 0).sum())
    found.nan += int((~torch.isfinite(normalise(frames))).sum()) + int((~np.isfinite(rows.weight)).sum())
    return len(frames)


def judge(
    found: Outcome, injected: dict[str, Reason], rejected: list[Rejected], ledgers: list[bytes], num_usable: int
) -> None:
    """Adds a pass of which the ledger, and the usable clips beside it, are known."""
    recorded = {Path(one.uri).name: one.reason for one in rejected}
    for name, reason in injected.items():
        if recorded.get(name) != reason:
            print(f"{name}: {reason} was injected, {recorded.get(name)} is in the ledger", flush=True)
    num_good = len(list(Path(rejected[0].uri).parent.iterdir())) - len(injected) if rejected else 0
    found.num_injected += len(injected)
    found.num_recorded += sum(recorded.get(name) == reason for name, reason in injected.items())
    found.num_good, found.num_good_usable = found.num_good + num_good, found.num_good_usable + num_usable
    found.same_ledger_on_second_run &= len(set(ledgers)) == 1


def make_clips(folder: Path, num_clips: int) -> Path:
    """A folder of small bright clips and their captions."""
    rng = np.random.default_rng(0)
    (folder / "videos").mkdir(parents=True)
    lines = []
    for number in range(num_clips):
        coarse = rng.integers(64, 256, (12, 6, 8, 3), np.uint8)
        frames = coarse.repeat(8, 1).repeat(8, 2)
        (folder / "videos" / f"{number:05}.mp4").write_bytes(encode_video(frames, fps=8, gop=6))
        lines.append(json.dumps({"caption": f"clip number {number}", "clip_name": f"{number:05}", "type": "video"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def damage(folder: Path, share: float) -> dict[str, Reason]:
    """File name → reason, after `share` of the videos below `folder`, at least one per kind, were damaged in turns."""
    videos = sorted((folder / "videos").iterdir())
    count = max(len(DAMAGES), round(share * len(videos)))
    chosen = np.random.default_rng(1).choice(len(videos), count, replace=False).tolist()
    injected = {}
    for number, index in enumerate(chosen):
        reason = list(DAMAGES)[number % len(DAMAGES)]
        videos[index].write_bytes(DAMAGES[reason](videos[index].read_bytes()))
        injected[videos[index].name] = reason
    return injected


def cut(data: bytes) -> bytes:
    """The file without its end."""
    return data[: len(data) * 2 // 3]


def unknown_codec(data: bytes) -> bytes:
    """The same file, of a codec that nobody knows."""
    return data.replace(b"avc1", b"zzzz")


def sound_only(_: bytes) -> bytes:
    """A tenth of a second of silence."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    return buffer.getvalue()


def without_frames(data: bytes) -> bytes:
    """The same file; its index has a video stream and no frame."""
    empty = bytes(8)  # version and flags, no entries
    return with_tables(data, {b"stts": empty, b"stsc": empty, b"stsz": bytes(12), b"stco": empty, b"stss": None})


def endless(data: bytes) -> bytes:
    """A small file whose index names thirty million frames, all in the same few bytes: who reads it does not return."""

    def table(*entries: int) -> bytes:
        return b"".join(entry.to_bytes(4, "big") for entry in (0, *entries))

    first = data.index(b"mdat") + 4
    chunks = NUM_ENDLESS // NUM_PER_CHUNK
    return with_tables(
        data,
        {
            b"stts": table(1, NUM_ENDLESS, 1),
            b"stsc": table(1, 1, NUM_PER_CHUNK, 1),
            b"stsz": table(1, NUM_ENDLESS),
            b"stco": table(chunks, *[first] * chunks),
            b"stss": None,
            b"edts": None,  # it ends the show after the frames there were
        },
    )


def with_tables(data: bytes, tables: dict[bytes, bytes | None]) -> bytes:
    """An MP4 whose boxes of these types have other content; None removes them, and the order of display with them."""
    parts, position = [], 0
    while position < len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        body: bytes | None = data[position + 8 : position + size]
        if kind in CONTAINERS:
            body = with_tables(body, tables)
        elif kind in tables or kind == b"ctts":
            body = tables.get(kind)
        parts += [] if body is None else [(len(body) + 8).to_bytes(4, "big"), kind, body]
        position += size
    return b"".join(parts)


DAMAGES: dict[Reason, Callable[[bytes], bytes]] = {
    Reason.TRUNCATED: cut,
    Reason.EMPTY: lambda _: b"",
    Reason.UNSUPPORTED_CODEC: unknown_codec,
    Reason.NO_VIDEO_STREAM: sound_only,
    Reason.NO_FRAMES: without_frames,
    Reason.TIMEOUT: endless,
}
"""Reason under which a damaged file must stand in the ledger → what damages it."""
