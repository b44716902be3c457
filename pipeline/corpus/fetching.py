"""Fetch the encoded media that manifest rows name."""

from __future__ import annotations

import io
from typing import NoReturn

from pipeline import storage
from pipeline.corpus import media
from pipeline.records import DecodeError, DistantFile, Reason, Stored

IN_MEMORY_BYTES = 2**26
"""Prepare fetches smaller files whole and reads the others in parts."""


def fetch(uri: str, checksum: str | None = None) -> Stored:
    """Return `media.read`. DecodeError if there is nothing usable at `uri`."""
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
        if storage.is_remote(uri):  # a store raises these for wrong credentials or addresses, which concern every file
            raise
        raise DecodeError(Reason.UNREADABLE, str(error)) from error


def fetch_start(uri: str) -> Stored | DistantFile:
    """Return `fetch`, or a `DistantFile` for a file of `IN_MEMORY_BYTES` or more."""
    if media.is_part(uri):
        return fetch(uri)
    start = fetch(media.range_uri(uri, 0, IN_MEMORY_BYTES))
    if len(start) < IN_MEMORY_BYTES:
        return start

    def read(start: int, stop: int) -> bytes:
        part = fetch(media.range_uri(uri, start, stop))
        if not isinstance(part, bytes) or len(part) != stop - start:
            raise DecodeError(Reason.TRUNCATED, f"{uri} changes while it is read")
        return part

    return DistantFile(storage.read_with(uri, lambda file: file.seek(0, io.SEEK_END)), read)


def fail(error: DecodeError, *_: object) -> NoReturn:
    """Raise a copy of `error`, in place of fetching or decoding a file that is known to fail."""
    raise DecodeError(error.reason, error.detail)
