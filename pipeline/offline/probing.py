"""Probe one file of a corpus for `prepare`. What its clips share is computed once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.fetching import fetch
from pipeline.corpus.media import kind_of
from pipeline.decode.clip_media import READERS_OF_PACKETS
from pipeline.decode.codec import frames_to_probe, index_packets, probe
from pipeline.decode.config import Limits
from pipeline.decode.distant import BLOCK_BYTES
from pipeline.decode.formats import kind_by_bytes
from pipeline.decode.isolation import isolated
from pipeline.decode.packets import PacketIndex, decode_with_retry
from pipeline.records import DecodeError, DistantFile, Kind, Reason, Stored


@dataclass(frozen=True)
class ProbedFile:
    """A file, or anything else that has a uri. All methods raise DecodeError if it is unusable."""

    uri: str
    data: Stored | DistantFile
    decoder: str
    limits: Limits
    packets_folder: str | None
    """Where packet indexes are written; None: none are written."""

    def columns(self, clip: dict[str, Any]) -> dict[str, Any]:
        """Return the manifest columns of a clip that need its file."""
        times = {name: clip[name] for name in ("start_seconds", "end_seconds")}
        kind = Kind(clip["kind"])
        if isinstance(self.data, bytes) and not kind_of(media.name_of(self.uri, "")):
            kind = kind_by_bytes(self.data) or kind
        probing = partial(isolated, probe, limits=self.limits, kind=kind, decoder=self.decoder, **times)
        is_part = isinstance(self.data, DistantFile) or set(times.values()) != {None}
        index = self._index if kind == Kind.VIDEO and is_part else None
        if isinstance(index, DecodeError):
            raise index
        if index:
            frames = frames_to_probe(_window(index, times))
            probed = decode_with_retry(index.cut(frames, self._read), probing) | {"packets": self._packets_path}
        else:
            probed = probing(self._whole)
        return probed | {"kind": str(kind), "bytes": len(self.data), "checksum": self._checksum}

    @cached_property
    def _index(self) -> PacketIndex | DecodeError | None:
        """Index the packets and write the index for training. None: clips need the whole file. A DecodeError is
        returned and cached, so that a file that hangs the demuxer does so once, not once per clip."""
        if self.packets_folder is None or self.decoder not in READERS_OF_PACKETS or media.is_part(self.uri):
            return None
        try:
            encoded = np.asarray(isolated(index_packets, self.data, limits=self.limits), np.uint8)
            if not encoded.size:
                return None
            index = PacketIndex.from_bytes(encoded.tobytes())
        except DecodeError as error:
            return error
        storage.write_bytes_atomic(self._packets_path, index.to_bytes())
        return index

    @property
    def _packets_path(self) -> str:
        """Return the path of the index, named by content: equal files share it, a changed file gets a new one."""
        return storage.join(self.packets_folder or "", f"{self._checksum}.packets")

    @cached_property
    def _checksum(self) -> str:
        if not isinstance(self.data, DistantFile):
            return media.checksum(self.data)
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(self.data), BLOCK_BYTES):
            digest.update(self._read(start, min(start + BLOCK_BYTES, len(self.data))))
        return digest.hexdigest()

    @cached_property
    def _whole(self) -> Stored:
        return fetch(self.uri) if isinstance(self.data, DistantFile) else self.data

    def _read(self, start: int, stop: int) -> bytes:
        if isinstance(self.data, DistantFile):
            return self.data.read(start, stop)
        return self.data[start:stop] if isinstance(self.data, bytes) else b""


def _window(index: PacketIndex, times: dict[str, float | None]) -> range:
    try:
        return index.timeline.window(**times)
    except ValueError as error:
        raise DecodeError(Reason.OUT_OF_RANGE, str(error)) from error
