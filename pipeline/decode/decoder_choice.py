"""Measure which decoder reads a corpus fastest, on clips of this corpus, since no decoder is fastest everywhere."""

from __future__ import annotations

import logging
import statistics

import numpy as np
import pyarrow as pa

from pipeline.corpus import media
from pipeline.decode import decoders
from pipeline.decode.codec import known_info, time_decoding
from pipeline.decode.config import Limits
from pipeline.decode.isolation import isolated
from pipeline.records import DecodeError, Kind

log = logging.getLogger(__name__)

NUM_CLIPS = 20
"""Number of timed clips, spread over the corpus."""
NUM_FRAMES, SIZE_PX = 8, 224


def measure_decoders(rows: pa.Table, limits: Limits) -> dict[str, dict[str, float]]:
    """Return decoder → median seconds and CPU seconds to decode a clip on this machine; {} without videos.

    All decoders run on each clip in turn, so that a busy machine slows all of them down. A decoder that fails on a clip
    is excluded.
    """
    videos = [row for row in rows.to_pylist() if row["kind"] == Kind.VIDEO]
    if not videos:
        return {}
    chosen = [videos[index] for index in np.linspace(0, len(videos) - 1, min(NUM_CLIPS, len(videos))).astype(int)]
    times: dict[str, list[dict[str, float]]] = {decoder: [] for decoder in decoders.loadable()}
    for number, row in enumerate(chosen):
        data = media.read(row["uri"])
        window = {"start_seconds": row["start_seconds"], "end_seconds": row["end_seconds"]}
        settings = window | {"kind": Kind.VIDEO, "num_frames": NUM_FRAMES, "size_px": SIZE_PX, "known": known_info(row)}
        for decoder in np.roll(list(times), number).tolist():
            try:
                times[decoder].append(isolated(time_decoding, data, limits=limits, decoder=decoder, **settings))
            except DecodeError as error:
                log.warning("%s is out of the race, it fails on %s: %s", decoder, row["uri"], error)
                del times[decoder]
    return {
        decoder: {name: round(statistics.median(time[name] for time in measured), 5) for name in measured[0]}
        for decoder, measured in times.items()
    }
