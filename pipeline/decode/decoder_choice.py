"""Which decoder reads a corpus fastest: measured on its own clips, since none is the fastest everywhere."""

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
"""Clips that are timed, spread over the corpus."""
NUM_FRAMES, SIZE_PX = 8, 224


def measure_decoders(rows: pa.Table, limits: Limits) -> dict[str, dict[str, float]]:
    """Decoder → median seconds and CPU seconds of a clip's decoding on this machine; {} without videos.

    The decoders take turns on each clip, so that what slows the machine down slows all of them. One that fails on a
    clip is left out.
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
        decoder: {name: round(statistics.median(one[name] for one in found), 5) for name in found[0]}
        for decoder, found in times.items()
    }
