"""Fetch the encoded media that manifest rows name."""

from __future__ import annotations

import io
from typing import NoReturn

from pipeline import storage
from pipeline.corpus import media
from pipeline.records import DecodeError, DistantFile, Reason, Stored

IN_MEMORY_BYTES = 2**26
"""Files up to this size are fetched whole by prepare; larger ones are read in parts."""


def fetch(uri: str, checksum: str | None = None) -> Stored:
    """Return `media.read`; raise DecodeError if there is nothing usable at `uri`."""
    try:
        return media.read(uri, checksum)
    except (FileNotFoundError, NotADirectoryError) as error:  # the latter for a path below a tar
        raise DecodeError(Reason.MISSING, str(error)) from error
    except storage.UnavailableError as error:
        raise DecodeError(Reason.UNAVAILABLE, str(error)) from error
    except media.DamagedMediaError as error:
        raise DecodeError(Reason.WRONG_CHECKSUM, str(error)) from error
    except IsADirectoryError as error:
        raise DecodeError(Reason.UNREADABLE, "a folder, not a file") from error
    except (OSError, ValueError) as error:  # a link to itself, a pipe, a name that is too long or holds a zero byte
        if storage.is_remote(uri):  # of a store, these are wrong credentials or addresses, which no other file has
            raise
        raise DecodeError(Reason.UNREADABLE, str(error)) from error


def fetch_start(uri: str) -> Stored | DistantFile:
    """As `fetch`; of a file of more than `IN_MEMORY_BYTES`, a `DistantFile`."""
    if media.is_part(uri):
        return fetch(uri)
    start = fetch(media.inside(uri, 0, IN_MEMORY_BYTES))
    if len(start) < IN_MEMORY_BYTES:
        return start

    def read(start: int, stop: int) -> bytes:
        part = fetch(media.inside(uri, start, stop))
        if not isinstance(part, bytes) or len(part) != stop - start:
            raise DecodeError(Reason.TRUNCATED, f"{uri} changes while it is read")
        return part

    return DistantFile(storage.read_with(uri, lambda file: file.seek(0, io.SEEK_END)), read)


def fail(error: DecodeError, *_: object) -> NoReturn:
    """Raise what is known to become of a file, in place of fetching or decoding it."""
    raise DecodeError(error.reason, error.detail)
