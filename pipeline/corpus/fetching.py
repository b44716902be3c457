"""Fetch the encoded media that manifest rows name, one file or several ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from pipeline import storage
from pipeline.corpus import media
from pipeline.records import DecodeError, Media, Reason


def fetch(uri: str, checksum: str | None = None) -> Media:
    """`media.read`; DecodeError if there is nothing usable at `uri`."""
    try:
        return media.read(uri, checksum)
    except FileNotFoundError as error:
        raise DecodeError(Reason.MISSING, str(error)) from error
    except storage.UnavailableError as error:
        raise DecodeError(Reason.UNAVAILABLE, str(error)) from error
    except media.DamagedMediaError as error:
        raise DecodeError(Reason.WRONG_CHECKSUM, str(error)) from error
    except IsADirectoryError as error:
        raise DecodeError(Reason.UNREADABLE, "a folder, not a file") from error


def fetch_ahead(wanted: Iterable[tuple[str, str | None]]) -> Iterator[Callable[[], Media]]:
    """For each pair (uri, checksum) a function that does what `fetch` does; distant files are then on their way."""
    return storage.ahead((media.file_of(uri), partial(fetch, uri, checksum)) for uri, checksum in wanted)


def fetched(read: Callable[[], Media]) -> Media | DecodeError:
    """What `read` gives, or why it gives nothing."""
    try:
        return read()
    except DecodeError as error:
        return error
