"""Stream of decoded clips in the order of the plan, on Ray Data.

    block number ─► a few steps' slots of one rank ─► look up row, fetch bytes, decode ─► one row per slot

Until it is decoded, a block is just its number, so no process holds the order of the epoch. A clip that fails keeps its
slot with weight 0: nothing is filtered, and all ranks get the same number of rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from jaxtyping import UInt8
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.fetching import fail
from pipeline.decode.clip_media import fetch_clip
from pipeline.decode.codec import decode_frames, known_info
from pipeline.decode.isolation import isolated
from pipeline.decode.packets import decode_with_retry
from pipeline.decode.pixels import PixelBuffer
from pipeline.decode.sampling import Policy
from pipeline.records import ClipRows, DecodeError, Kind, Media, Reason, Rejected, Stage
from pipeline.stream.config import ANNOTATION, caption_weights
from pipeline.stream.epoch_plan import PADDING, PlannedStep
from pipeline.stream.failures import read_failures, record_failure
from pipeline.stream.randomness import Purpose, clip_rng
from pipeline.stream.source import ClipSource

MAX_BLOCKS = 10_000
"""Largest number of full blocks per dataset. Ray Data plans all blocks of a dataset at once, so longer runs are cut
into segments."""

CLIP_SCHEMA = pa.schema(
    [
        ("slot", pa.int64()),
        ("clip_id", pa.int64()),
        ("weight", pa.float32()),
        ("caption", pa.string()),
        ("frames", pa.large_binary()),  # uint8 (num_frames, real_height, real_width, 3); empty where the weight is 0
        ("num_frames", pa.int32()),
        ("real_height", pa.int32()),
        ("real_width", pa.int32()),
        ("uri", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("num_retries", pa.int64()),  # retries of the store since the slot before
    ]
)


def segments(source: ClipSource, num_steps: int, max_ranks: int) -> list[tuple[str, int, int]]:
    """Cut a run of `num_steps` on up to `max_ranks` ranks into datasets; return their names and step ranges."""
    size = max(1, MAX_BLOCKS // max_ranks) * source.steps_per_block(max_ranks)
    starts = range(0, num_steps, size)
    return [(f"train-{number}", start, min(start + size, num_steps)) for number, start in enumerate(starts)]


def decode_block(numbers: pa.Table, *, source: ClipSource, start_step: int, stop_step: int, num_ranks: int) -> pa.Table:
    """Fetch and decode a rank's slots of a few steps; a slot without a usable clip holds the reason."""
    if len(numbers) != 1:
        raise RuntimeError(f"a block has {len(numbers)} numbers instead of its own")
    steps, rank = source.steps_of_block(numbers["id"][0].as_py(), start_step, stop_step, num_ranks)
    storage.set_retry_seconds(source.patience_seconds)
    return decode_shares(source, steps, rank, num_ranks, read_failures(source.failures))


def clip_stream(
    source: ClipSource,
    *,
    start_step: int,
    stop_step: int,
    num_ranks: int,
    decode: Callable[..., pa.Table] = decode_block,
) -> ray.data.Dataset:
    """Return a dataset with one row per slot of the steps [start, stop); block b belongs to rank b mod `num_ranks`.

    `decode`: maps the number of a block to its rows.
    """
    num_blocks = source.num_groups(stop_step - start_step, num_ranks) * num_ranks
    return ray.data.range(num_blocks, override_num_blocks=num_blocks).map_batches(
        decode,  # pyright: ignore[reportArgumentType]
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        fn_kwargs={"source": source, "start_step": start_step, "stop_step": stop_step, "num_ranks": num_ranks},
        num_cpus=1,
    )


def decode_share(
    source: ClipSource,
    step: int,
    rank: int,
    num_ranks: int,
    failures: Mapping[int, DecodeError] = MappingProxyType({}),
) -> pa.Table:
    """Decode one rank's slots of one step. `failures`: clips known to fail, which are not tried again."""
    return decode_shares(source, range(step, step + 1), rank, num_ranks, failures)


def decode_shares(
    source: ClipSource, steps: range, rank: int, num_ranks: int, failures: Mapping[int, DecodeError]
) -> pa.Table:
    """Decode one rank's slots of a few steps into one chunk, out of which shares are sliced without a copy."""
    pixels = PixelBuffer(len(steps) * source.share(num_ranks) * source.clip_bytes)
    slots, stops = [], [0]
    for step in steps:
        for slot in decoded_slots(source, step, rank, num_ranks, failures, pixels):
            slots.append(slot)
            stops.append(pixels.used)
    buffers = [None, pa.py_buffer(np.array(stops)), pa.py_buffer(pixels.memory())]
    frames = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(slots), buffers)
    place = CLIP_SCHEMA.get_field_index("frames")
    table = pa.Table.from_pylist(slots, schema=CLIP_SCHEMA.remove(place))
    return table.add_column(place, CLIP_SCHEMA.field(place), frames)


def decoded_slots(
    source: ClipSource,
    step: int,
    rank: int,
    num_ranks: int,
    failures: Mapping[int, DecodeError],
    pixels: PixelBuffer,
) -> Iterator[dict[str, Any]]:
    """Yield `decode_slot` for one rank's slots of one step, and record new failures."""
    share, planned = source.share(num_ranks), source.planned(step)
    rows = np.pad(planned.rows, (0, share * num_ranks - source.batch), constant_values=PADDING)
    rows, first_slot = rows[rank * share : (rank + 1) * share], (step * num_ranks + rank) * share
    taken = iter(source.clips(planned.kind).take(rows[rows != PADDING]).to_pylist())
    clips = [next(taken) if row != PADDING else None for row in rows.tolist()]
    prefetch_rows(source, step)
    known = [failures.get(row["clip_id"]) if row else None for row in clips]
    to_fetch = [row if row and not error else None for row, error in zip(clips, known, strict=True)]
    reads = storage.prefetched(
        (
            media.file_of(row["uri"]),
            functools.partial(fetch_clip, row, source.decoder, **sampling_arguments(source, planned, row)),
        )
        if row
        else ("", fetch_nothing)
        for row in to_fetch
    )
    for slot, (row, read, error) in enumerate(zip(clips, reads, known, strict=True), first_slot):
        result = decode_slot(slot, row, source, planned, functools.partial(fail, error) if error else read, pixels)
        if not error:
            record_failure(source.failures, result)
        yield result | {"num_retries": storage.pop_retry_count()}


def prefetch_rows(source: ClipSource, step: int) -> None:
    """Prefetch the manifest rows of the step one window later."""
    later = source.plan.step_to_prefetch(step) if source.plan else None
    if later:
        source.clips(later.kind).prefetch(later.rows[later.rows != PADDING])


def decode_slot(
    slot: int,
    row: dict[str, Any] | None,
    source: ClipSource,
    planned: PlannedStep,
    read: Callable[[], Media],
    pixels: PixelBuffer,
) -> dict[str, Any]:
    """Decode the file that `read` returns into the row of a slot; the frames go to `pixels`. A clip that cannot be
    fetched or decoded gets weight 0 and the reason; it never raises."""
    length, size = source.num_frames if planned.kind == Kind.VIDEO else 1, source.frame_size_px
    empty = {
        "slot": slot,
        "clip_id": row["clip_id"] if row else -1,
        "weight": 0.0,
        "caption": "",
        "num_frames": length,
        "real_height": size,
        "real_width": size,
        "uri": row["uri"] if row else "",
        "reason": "",
        "detail": "",
    }
    if row is None:
        return empty
    decode = functools.partial(
        isolated,
        decode_frames,
        limits=source.limits,
        pixels=pixels.expecting(length, size),
        kind=planned.kind,
        size_px=drawn_size_px(source, planned, row),
        decoder=source.decoder,
        known=known_info(row) if planned.kind == Kind.VIDEO else None,
        **sampling_arguments(source, planned, row),
    )
    try:
        _, height, width, _ = decode_with_retry(read(), decode)
        caption = drawn_caption(source, planned, row)
    except DecodeError as error:
        return empty | {"reason": str(error.reason), "detail": error.detail}
    return empty | {"weight": 1.0, "caption": caption, "real_height": height, "real_width": width}


def drawn_caption(source: ClipSource, planned: PlannedStep, row: dict[str, Any]) -> str:
    """Return the caption of a clip: a random one in training, else the first."""
    if source.plan is None:
        return row["captions"][0]
    rng = clip_rng(source.seed, planned.epoch, row["clip_id"], Purpose.CAPTION)
    return choose_caption(row["captions"], rng, row["caption_sources"], source.caption_weights)


def drawn_size_px(source: ClipSource, planned: PlannedStep, row: dict[str, Any]) -> int:
    """Return the long side of a clip, in pixels; training draws one of `long_sides_px`, if given."""
    if source.plan is None or not source.long_sides_px:
        return source.frame_size_px
    return int(clip_rng(source.seed, planned.epoch, row["clip_id"], Purpose.SIZE).choice(source.long_sides_px))


def sampling_arguments(source: ClipSource, planned: PlannedStep, row: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `clip_indices` for a clip. Repeated calls return equal choices."""
    is_training = source.plan is not None
    return {
        "num_frames": source.num_frames if planned.kind == Kind.VIDEO else 1,
        "sampling": source.sampling,
        "policy": Policy.RANDOM if is_training else Policy.MIDDLE,
        "rng": clip_rng(source.seed, planned.epoch, row["clip_id"], Purpose.FRAMES) if is_training else None,
        "start_seconds": row["start_seconds"],
        "end_seconds": row["end_seconds"],
    }


def fetch_nothing() -> Media:
    """Stand in for the file of a slot without a clip; its result is never used."""
    return b""


def choose_caption(
    captions: Sequence[str],
    rng: np.random.Generator,
    sources: Sequence[str | None] | None = None,
    weights: Sequence[str] = (),
) -> str:
    """Draw a caption of a clip uniformly, or first a source by `weights` (SOURCE=WEIGHT), then a caption of it.

    `sources`: the source of each caption. DecodeError, `no_caption`, if no caption has a source of positive weight.
    """
    if not captions:
        raise ValueError("a clip without captions cannot be trained on; prepare rejects it as `no_caption`")
    if not weights:
        return captions[int(rng.integers(len(captions)))]
    by_source: dict[str, list[str]] = {}
    for caption, name in zip(captions, sources or [None] * len(captions), strict=True):
        by_source.setdefault(name or ANNOTATION, []).append(caption)
    drawable = {name: weight for name, weight in caption_weights(weights).items() if weight and name in by_source}
    if not drawable:
        detail = f"has captions of {', '.join(by_source)} alone, and data.caption_weights={' '.join(weights)}"
        raise DecodeError(Reason.NO_CAPTION, detail)
    shares = np.array(list(drawable.values()))
    of_source = by_source[list(drawable)[int(rng.choice(len(drawable), p=shares / shares.sum()))]]
    return of_source[int(rng.integers(len(of_source)))]


def clip_rows(
    table: pa.Table, *, source: ClipSource, epoch: int, allocate: Callable[..., NDArray[np.uint8]] = np.empty
) -> ClipRows:
    """Return a rank's share as arrays. Pixels are copied once, into padded squares made by `allocate`."""
    B, size, num_frames = len(table), source.frame_size_px, table["num_frames"].to_numpy()
    heights, widths = table["real_height"].to_numpy(), table["real_width"].to_numpy()
    frames = allocate((B, int(num_frames[0]), size, size, 3), np.uint8)
    is_any_padded = bool((heights < size).any() or (widths < size).any())
    is_padding = np.full((B if is_any_padded else 1, size, size), is_any_padded)
    for row, clip in enumerate(table["frames"]):
        height, width = int(heights[row]), int(widths[row])
        fill(frames[row], clip.as_buffer(), height, width)
        if is_any_padded:
            is_padding[row, :height, :width] = False
    return ClipRows(
        clip_ids=table["clip_id"].to_numpy(),
        weight=table["weight"].to_numpy(),
        epoch=epoch,
        captions=table["caption"].to_pylist(),
        frames=frames,
        # all frames of a clip share one mask, and without padding all clips
        frame_pad_mask=as_strided(is_padding, frames.shape[:4], (size * size * is_any_padded, 0, size, 1)),
        num_frames=num_frames.astype(np.int64),
    )


def fill(square: UInt8[np.ndarray, "T S S 3"], clip: pa.Buffer, height: int, width: int) -> None:
    """Copy a clip (T, height, width, 3) to the upper left corner of `square` and zero the rest; it may be empty."""
    if not clip.size:
        square[:] = 0
        return
    square[:, :height, :width] = np.frombuffer(clip, np.uint8).reshape(-1, height, width, 3)
    square[:, height:] = 0
    square[:, :height, width:] = 0


def rejected_rows(table: pa.Table, stage: Stage) -> list[Rejected]:
    """Return the clips of a share that failed to decode."""
    failed = table.filter(pc.field("reason") != "")
    rows = failed.select(["clip_id", "uri", "reason", "detail"]).to_pylist()
    return [Rejected.from_row(row, stage) for row in rows]


def in_plan_order(
    tables: Iterator[pa.Table], *, start_step: int, rank: int, num_ranks: int, share: int
) -> Iterator[pa.Table]:
    """Yield `tables` unchanged, after checking that each holds exactly this rank's slots of the next step.

    Training relies on Ray Data's order: a wrong share must stop the run (RuntimeError).
    """
    for step, table in enumerate(tables, start_step):
        first = (step * num_ranks + rank) * share
        slots = table["slot"].to_numpy()
        if len(slots) != share or slots[0] != first or (np.diff(slots) != 1).any():
            raise RuntimeError(
                f"rank {rank} expected slots [{first}, {first + share}) of step {step}, got {slots[:4].tolist()}… "
                f"({len(slots)}); the stream was not delivered in the order of the plan"
            )
        yield table
