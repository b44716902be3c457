"""Read the bytes of a clip: from its own file, a packed file, an LMDB, or a folder of key frames.

| uri in the manifest | what `read` returns |
|---|---|
| `PATH` | the file's bytes |
| `PATH#bytes=START-STOP` | these bytes of it: a member of a tar, a raw clip in a shard |
| `PATH#unpacked=START-STOP` | these bytes of the decompressed file: a member of a .tar.gz |
| `PATH#frames=START-STOP` | the images in these bytes of a shard, each after its length (4 bytes, little-endian) |
| `PATH.lmdb#key=NAME` | the value of a key |
| `PATH#row=NUMBER&column=COLUMN` | a value in a Parquet file |
| `PATH/` | the images of a folder, in order of their names |

A part of a packed file may end with `&name=NAME`: the clip's path below the root of the corpus that was packed.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
import struct
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Literal
from urllib.parse import quote, unquote

import pyarrow as pa

from pipeline import storage
from pipeline.corpus import manifest
from pipeline.corpus.text_files import decompressed_pieces
from pipeline.records import EncodedFrames, Kind, Stored

if TYPE_CHECKING:
    import lmdb

VIDEO_SUFFIXES = frozenset(
    ".mp4 .mov .qt .m4v .f4v .3gp .3g2 .avi .divx .mkv .webm .mpg .mpeg .mpe .m1v .m2v .vob .ts .mts .m2ts .wmv .asf "
    ".flv .ogv .ogm .gif .mxf .rm .rmvb .dv .nut .ivf .h264 .264 .h265 .265 .hevc".split()
)
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .tif .tiff .avif .heic .heif .jxl .jp2 .svg .eps .psd .tga".split()
)
"""The last eight are not supported: their files are rejected, so the ledger lists them."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_UNPACKED_BYTES = 2**33
_INSIDE = re.compile(r"(?P<path>.+)#(?P<form>bytes|frames|unpacked)=(?P<start>\d+)-(?P<stop>\d+)(&name=(?P<name>.+))?")
_KEYED = re.compile(r"(?P<path>.+\.lmdb)#key=(?P<key>.+)")
_ROW = re.compile(r"(?P<path>.+)#row=(?P<row>\d+)&column=(?P<column>[^&]+)(&name=(?P<name>.+))?")
_LENGTH = struct.Struct("<I")


class DamagedMediaError(ValueError):
    """Raised if the bytes at a uri are not those that were written there."""


def kind_of(path: str) -> Kind | None:
    """Return the kind of a file by its suffix; None if it is neither a video nor an image."""
    suffix = posixpath.splitext(path)[1].lower()
    return Kind.IMAGE if suffix in IMAGE_SUFFIXES else Kind.VIDEO if suffix in VIDEO_SUFFIXES else None


def read(uri: str, checksum: str | None = None) -> Stored:
    """Return the encoded clip at `uri`, which has one of the forms above.

    FileNotFoundError: the file, key or folder does not exist. DamagedMediaError: a part of a packed file does not have
    the given checksum, because the file was damaged or rewritten after its manifest.
    """
    if match := _INSIDE.fullmatch(uri):
        start, stop = int(match["start"]), int(match["stop"])
        is_packed = match["form"] == "unpacked"
        data = unpacked(match["path"])[start:stop] if is_packed else storage.read_bytes(match["path"], start, stop)
        data = _checked(data, checksum, uri)
        return EncodedFrames(unpack(data, uri)) if match["form"] == "frames" else data
    if match := _KEYED.fullmatch(uri):
        return _read_key(match["path"], unquote(match["key"]))
    if match := _ROW.fullmatch(uri):
        value = _read_row(match["path"], int(match["row"]), unquote(match["column"]))
        return _checked(value, checksum, uri)
    if uri.endswith("/"):
        names = [name for name in storage.list_files(uri) if kind_of(name) == Kind.IMAGE and "/" not in name]
        if not names:
            raise FileNotFoundError(f"{uri} holds no images")
        return EncodedFrames(tuple(storage.read_bytes(storage.join(uri, name)) for name in names))
    return storage.read_bytes(uri)


def _checked(data: bytes, checksum: str | None, uri: str) -> bytes:
    if checksum is not None and manifest.checksum(data) != checksum:
        raise DamagedMediaError(f"{uri} has another checksum than its manifest says: pack or prepare it again")
    return data


def file_of(uri: str) -> str:
    """Return the file or folder that contains `uri`."""
    match = _INSIDE.fullmatch(uri) or _KEYED.fullmatch(uri) or _ROW.fullmatch(uri)
    return match["path"] if match else uri


def is_part(uri: str) -> bool:
    """Return whether `uri` is a part of a file or a folder, not a whole file."""
    return file_of(uri) != uri or uri.endswith("/")


def range_uri(path: str, start: int, stop: int, form: Literal["bytes", "frames", "unpacked"] = "bytes") -> str:
    """Return the uri of the bytes [start, stop) of a file, of the images in them, or of these decompressed bytes."""
    return f"{path}#{form}={start}-{stop}"


def is_tar(path: str) -> bool:
    """Return whether a name is that of a tar, compressed or not."""
    return path.lower().endswith(TAR_SUFFIXES)


@functools.lru_cache(maxsize=1)
def unpacked(path: str) -> bytes:
    """Return the content of a compressed file, cached for neighbouring clips. ValueError if it is damaged."""
    return b"".join(decompressed_pieces(storage.read_bytes(path), path, MAX_UNPACKED_BYTES))


def uri_with_name(uri: str, name: str) -> str:
    """Append the clip's name to the uri of a part of a packed file; return any other uri unchanged."""
    match = _INSIDE.fullmatch(uri) or _ROW.fullmatch(uri)
    return f"{uri}&name={quote(name)}" if match and not match["name"] else uri


def name_of(uri: str, root: str) -> str:
    """Return the name of a clip: its path below the root of its corpus, or its key."""
    if (match := _INSIDE.fullmatch(uri) or _ROW.fullmatch(uri)) and match["name"]:
        return unquote(match["name"])
    if match := _KEYED.fullmatch(uri):
        return unquote(match["key"])
    return uri.removeprefix(root).strip("/")


def key_uri(path: str, key: str) -> str:
    """Return the uri of a key's value in an LMDB."""
    return f"{path}#key={quote(key)}"


def row_uri(path: str, row: int, column: str) -> str:
    """Return the uri of a value in a Parquet file."""
    return f"{path}#row={row}&column={quote(column)}"


def is_lmdb(path: str) -> bool:
    """Return whether this module reads a path as an LMDB."""
    return path.rstrip("/").endswith(".lmdb")


def keys(path: str) -> list[str]:
    """Return the keys of an LMDB, sorted."""
    with _environment(path).begin() as transaction:
        return sorted(key.decode() for key, _ in transaction.cursor())


def checksum(media: Stored) -> str:
    """Return the checksum of an encoded clip, as the manifest stores it."""
    return manifest.checksum(pack(media.images) if isinstance(media, EncodedFrames) else media)


def pack(values: Sequence[bytes]) -> bytes:
    """Concatenate `values`, each preceded by its length, as in Parquet's PLAIN encoding of binary values."""
    return b"".join(_LENGTH.pack(len(value)) + value for value in values)


def unpack(data: bytes, where: str) -> tuple[bytes, ...]:
    """Invert `pack`. DamagedMediaError if lengths and bytes do not match."""
    values, position = [], 0
    while position + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size + length
        values.append(data[position - length : position])
    if position != len(data) or not values:
        raise DamagedMediaError(f"{where}: the bytes there are no packed images; pack the corpus again")
    return tuple(values)


def _read_key(path: str, key: str) -> bytes:
    with _environment(path).begin() as transaction:
        value = transaction.get(key.encode())
    if value is None:
        raise FileNotFoundError(f"{path} has no key {key!r}")
    return bytes(value)


def _read_row(path: str, row: int, column: str) -> bytes:
    first, values = _row_group(path, row, column)
    value = values[row - first].as_py()
    while isinstance(value, dict):  # a nested column
        value = next(iter(value.values()))
    if value is None:
        raise FileNotFoundError(f"{path}: row {row} has no {column}")
    return value


@functools.lru_cache(maxsize=1)
def _groups(path: str) -> list[int]:
    """Return the number of rows of each row group. Cached: the list is small and needed for every clip."""
    import pyarrow.parquet as pq  # deferred: only corpora with videos in Parquet need it

    def count(file: IO[bytes]) -> list[int]:
        metadata = pq.ParquetFile(file).metadata
        return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]

    return storage.read_with(path, count)


def _row_group(path: str, row: int, column: str) -> tuple[int, pa.ChunkedArray]:
    """Return the number of the first row in the row group that contains `row`, and a column of that group."""
    first = 0
    for index, num_rows in enumerate(_groups(path)):
        if row < first + num_rows:
            return first, _values(path, index, column)
        first += num_rows
    raise FileNotFoundError(f"{path} has no row {row}")


@functools.lru_cache(maxsize=1)
def _values(path: str, group: int, column: str) -> pa.ChunkedArray:
    """Return a column of a row group, cached for neighbouring clips."""
    import pyarrow.parquet as pq

    def read(file: IO[bytes]) -> pa.ChunkedArray:
        return pq.ParquetFile(file).read_row_group(group, columns=[column]).column(0)

    return storage.read_with(path, read)


@functools.cache
def _environment(path: str) -> lmdb.Environment:
    """Open an LMDB, once per process, since LMDB forbids more. DamagedMediaError if it is truncated."""
    try:
        import lmdb  # optional dependency
    except ModuleNotFoundError as error:
        remedy = "the package lmdb is not installed; pip install 'snps3-ray[lmdb]' brings it"
        raise ModuleNotFoundError(f"{path}: {remedy}", name="lmdb") from error
    if storage.is_remote(path):
        raise ValueError(
            f"{path}: LMDB maps a file into memory, so it must be local; jobs/pack.py can pack it to a bucket"
        )
    storage.check_readable(path)
    local = storage.absolute(path)
    is_folder = storage.is_folder(local)
    environment = lmdb.open(local, subdir=is_folder, readonly=True, lock=False, readahead=False, max_readers=512)
    size = os.path.getsize(os.path.join(local, "data.mdb") if is_folder else local)
    # LMDB does not check the length of the mapped file: access to a page past its end would kill the process (SIGBUS)
    if (environment.info()["last_pgno"] + 1) * environment.stat()["psize"] > size:
        environment.close()
        raise DamagedMediaError(
            f"{path}: cut short, it ends at byte {size} and its pages do not: copy it again, or write it anew with "
            "mdb_copy -c"
        )
    return environment
