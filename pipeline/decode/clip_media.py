"""Fetch what a clip needs of its file: the packets of its frames if `prepare` has indexed them, else the whole file."""

from __future__ import annotations

import functools
import threading
from typing import Any

from pipeline.corpus import media
from pipeline.corpus.fetching import fetch
from pipeline.decode.decoders import AUTO
from pipeline.decode.info import known_info, refuse_other_length
from pipeline.decode.packets import PacketIndex
from pipeline.decode.sampling import clip_indices
from pipeline.records import DecodeError, Media, Reason

NUM_CACHED = 16
"""Number of cached indexes per process: about 3 MB each for an hour of video."""
READERS_OF_PACKETS = (AUTO, "pyav")
"""Decoders that accept packets; others get the whole file."""
_locks = [threading.Lock() for _ in range(64)]


def fetch_clip(row: dict[str, Any], decoder: str, **sampling_arguments: Any) -> Media:
    """Fetch what `decode_frames` needs for the clip in a row of a manifest; `sampling_arguments` as in `clip_indices`.

    DecodeError if the file is unusable or has changed since `prepare`.
    """
    if not row["packets"] or decoder not in READERS_OF_PACKETS:
        return fetch(row["uri"], row["checksum"])
    index = index_at(row["packets"])
    refuse_other_length(len(index.timeline.times), known_info(row))
    key_frames_only = sampling_arguments["sampling"].rule == "key_frames"
    frames = clip_indices(index.timeline, key_frames=index.key_frames if key_frames_only else (), **sampling_arguments)
    return index.cut(frames, functools.partial(fetch_part, row["uri"]), key_frames_only=key_frames_only)


def fetch_part(path: str, start: int, stop: int) -> bytes:
    """Fetch the bytes [start, stop) of a file. DecodeError if it has become shorter."""
    data = fetch(media.range_uri(path, start, stop))
    if not isinstance(data, bytes) or len(data) != stop - start:
        raise DecodeError(Reason.WRONG_CHECKSUM, f"{path} has become shorter: prepare the corpus again")
    return data


def index_at(path: str) -> PacketIndex:
    """Return an index that `prepare` wrote. The lock makes concurrent threads fetch the same index only once."""
    with _locks[hash(path) % len(_locks)]:
        return _index_at(path)


@functools.lru_cache(NUM_CACHED)
def _index_at(path: str) -> PacketIndex:
    data = fetch(path)
    return PacketIndex.from_bytes(data if isinstance(data, bytes) else b"")
