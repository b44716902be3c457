"""Files damaged on purpose: the ledger must list each with the right reason, and every good clip must be delivered.

clips ─► six kinds of damage ─► jobs.prepare ─► ledger                           (the corpus arrives damaged)
clips ─► jobs.prepare ─► six kinds of damage ─► training stream ─► ledger        (files go bad later)
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import tempfile
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.connection import connected_ray
from jobs.benchmarks.support.file_surgery import with_boxes
from jobs.benchmarks.support.fixtures import clip_source, write_small_clips
from jobs.corpus.preparation import PrepareConfig, prepare
from pipeline.corpus import ledger
from pipeline.corpus.ledger import TooManyRejectedError
from pipeline.corpus.manifest import read_manifest
from pipeline.decode.config import Limits
from pipeline.records import Reason, Rejected, Stage
from pipeline.stream.loader import ClipSource, clip_rows, clip_stream, rejected_rows
from pipeline.stream.transforms import normalise

NUM_FRAMES, SIZE_PX, BATCH = 4, 32, 8
NUM_ENDLESS, NUM_PER_CHUNK = 30_000_000, 2_000


@dataclass
class Outcome:
    """Totals of the damaged files of one share, over all passes."""

    num_injected: int = 0
    num_recorded: int = 0
    num_good: int = 0
    num_good_usable: int = 0
    crashes: int = 0
    nan: int = 0
    black_frames: int = 0
    same_ledger_on_second_run: bool = True
    stops_above_share: bool = True

    def add(self, injected: dict[str, Reason], rejected: list[Rejected], ledgers: list[bytes], num_usable: int) -> None:
        """Add the ledger and the number of usable clips of a pass."""
        recorded = {Path(sample.uri).name: sample.reason for sample in rejected}
        for name, reason in injected.items():
            if recorded.get(name) != reason:
                print(f"{name}: {reason} was injected, {recorded.get(name)} is in the ledger", flush=True)
        num_files = len(list(Path(rejected[0].uri).parent.iterdir())) if rejected else len(injected)
        self.num_injected += len(injected)
        self.num_recorded += sum(recorded.get(name) == reason for name, reason in injected.items())
        self.num_good += num_files - len(injected)
        self.num_good_usable += num_usable
        self.same_ledger_on_second_run &= len(set(ledgers)) == 1


def corruption(
    num_clips: int = 600, shares: tuple[float, ...] = (0.01, 0.05), time_limit_seconds: float = 2.0
) -> dict[str, Any]:
    """Inject six kinds of damage into a generated corpus before and after `prepare`; return how they are handled."""
    start, limits = time.perf_counter(), Limits(seconds=time_limit_seconds)
    result: dict[str, Any] = {"num_clips": num_clips, "kinds": sorted(DAMAGES)}
    with tempfile.TemporaryDirectory() as scratch, connected_ray():
        clean = Path(scratch, "clean")
        write_small_clips(str(clean), num_clips)
        for share in shares:
            outcome, name = Outcome(), f"{share:.0%}"
            for stage, damaged in (("prepare", damaged_before), ("train", damaged_after)):
                folder = Path(scratch, f"{stage}-{share}")
                shutil.copytree(clean, folder)
                try:
                    result[f"{name}/{stage}/rejected"] = damaged(folder, share, limits, outcome)
                except Exception as error:
                    print(f"crashed: {error}", flush=True)
                    outcome.crashes += 1
                    result[f"{name}/{stage}/rejected"] = {}
            result |= {f"{name}/{key}": value for key, value in vars(outcome).items()}
            result[f"{name}/recorded_fraction"] = outcome.num_recorded / max(outcome.num_injected, 1)
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def damaged_before(folder: Path, share: float, limits: Limits, outcome: Outcome) -> dict[str, int]:
    """Prepare a damaged corpus twice; return its rejected clips by reason."""
    injected = damage(folder, share)
    config = dataclasses.replace(preparation(folder), max_rejected_share=1.0, limits=limits, force=True)
    prepared = prepare(config)
    rejected, first = ledger.read_ledger(prepared.ledger_path), Path(prepared.ledger_path).read_bytes()
    stricter = dataclasses.replace(config, max_rejected_share=share / 2)
    outcome.stops_above_share &= is_stopped(lambda: prepare(stricter))
    ledgers = [first, Path(prepared.ledger_path).read_bytes()]
    outcome.add(injected, rejected, ledgers, sum(prepared.num_clips.values()))
    return prepared.num_rejected


def damaged_after(folder: Path, share: float, limits: Limits, outcome: Outcome) -> dict[str, int]:
    """Damage files after they were prepared; return the clips that two epochs of training reject, by reason."""
    manifest_path = prepare(preparation(folder)).manifest_path
    injected, num_clips = damage(folder, share), len(read_manifest(manifest_path))
    source = clip_source(manifest_path, num_frames=NUM_FRAMES, size_px=SIZE_PX, batch=BATCH, limits=limits)
    steps_per_epoch = -(-num_clips // BATCH)
    ledgers, rejected, num_usable = [], [], 0
    for epoch in range(2):
        start = epoch * steps_per_epoch
        stream = clip_stream(source, start_step=start, stop_step=start + steps_per_epoch, num_ranks=1)
        tables = list(stream.iter_batches(batch_size=BATCH, batch_format="pyarrow"))
        rejected = [sample for table in tables for sample in rejected_rows(table, Stage.TRAIN)]
        num_usable = sum(inspect(table, source, epoch, outcome) for table in tables)
        path = str(folder / f"epoch-{epoch}.parquet")
        ledger.write_ledger(rejected, path)
        ledgers.append(Path(path).read_bytes())
    outcome.add(injected, rejected, ledgers, num_usable)
    refuse = partial(ledger.refuse_above_share, rejected, num_clips, share / 2, str(folder))
    outcome.stops_above_share &= is_stopped(refuse)
    return {str(reason): count for reason, count in ledger.count_by_reason(rejected).items()}


def preparation(folder: Path) -> PrepareConfig:
    """Return the configuration that prepares the clips in `folder`."""
    captions = (str(folder / "captions.jsonl"),)
    return PrepareConfig(corpus="damaged", root=str(folder / "videos"), annotations=captions, out=str(folder / "out"))


def is_stopped(function: Callable[[], Any]) -> bool:
    """Return whether `function` aborts because of too many rejected clips."""
    try:
        function()
    except TooManyRejectedError:
        return True
    return False


def inspect(table: pa.Table, source: ClipSource, epoch: int, outcome: Outcome) -> int:
    """Return the number of usable clips of a step; count their frames that are black or hold NaN."""
    rows = clip_rows(table, source=source, epoch=epoch)
    frames = torch.from_numpy(rows.frames[rows.weight > 0].copy())
    outcome.black_frames += int((frames.flatten(2).amax(2) == 0).sum())
    outcome.nan += int((~torch.isfinite(normalise(frames))).sum()) + int((~np.isfinite(rows.weight)).sum())
    return len(frames)


def damage(folder: Path, share: float) -> dict[str, Reason]:
    """Damage `share` of the videos below `folder`, at least one per kind, in turns; return the reason by file name."""
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
    """Cut off the last third."""
    return data[: len(data) * 2 // 3]


def unknown_codec(data: bytes) -> bytes:
    """Name a codec that does not exist."""
    return data.replace(b"avc1", b"zzzz")


def sound_only(_: bytes) -> bytes:
    """Return a tenth of a second of silence."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(1600))
    return buffer.getvalue()


def without_frames(data: bytes) -> bytes:
    """Empty the index of frames; the video stream stays."""
    empty = bytes(8)  # version and flags, no entries
    tables = {b"stts": empty, b"stsc": empty, b"stsz": bytes(12), b"stco": empty}
    return with_boxes(data, tables | {b"stss": None, b"ctts": None})


def endless(data: bytes) -> bytes:
    """Make the index list thirty million frames, all in the same few bytes, so that a reader never returns."""

    def table(*entries: int) -> bytes:
        return b"".join(entry.to_bytes(4, "big") for entry in (0, *entries))

    first = data.index(b"mdat") + 4
    chunks = NUM_ENDLESS // NUM_PER_CHUNK
    return with_boxes(
        data,
        {
            b"stts": table(1, NUM_ENDLESS, 1),
            b"stsc": table(1, 1, NUM_PER_CHUNK, 1),
            b"stsz": table(1, NUM_ENDLESS),
            b"stco": table(chunks, *[first] * chunks),
            b"stss": None,
            b"ctts": None,
            b"edts": None,  # it ends playback after the original frames
        },
    )


DAMAGES: dict[Reason, Callable[[bytes], bytes]] = {
    Reason.TRUNCATED: cut,
    Reason.EMPTY: lambda _: b"",
    Reason.UNSUPPORTED_CODEC: unknown_codec,
    Reason.NO_VIDEO_STREAM: sound_only,
    Reason.NO_FRAMES: without_frames,
    Reason.TIMEOUT: endless,
}
"""Expected reason in the ledger → function that damages the file."""
