"""Fetch the encoded media that manifest rows name, one file or several ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from pipeline import storage
from pipeline.corpus import media
from pipeline.records import DecodeError, Media, Reason


def fetch(uri: str, checksum: str | None = None) -> Media:
    """Return `media.read`; raise DecodeError if there is nothing usable at `uri`."""
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
    except (OSError, ValueError) as error:  # a link to itself, a pipe, a name that is too long or holds a zero byte
        if storage.is_remote(uri):  # of a store, these are wrong credentials or addresses, which no other file has
            raise
        raise DecodeError(Reason.UNREADABLE, str(error)) from error


def fetch_ahead(files: Iterable[tuple[str, str | None]]) -> Iterator[Callable[[], Media]]:
    """Yield a function that does what `fetch` does, for each pair (uri, checksum), with distant files on their way."""
    return storage.ahead((media.file_of(uri), partial(fetch, uri, checksum)) for uri, checksum in files)
