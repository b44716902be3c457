"""Read text files: decompress, decode, split into lines and objects. Errors name file and line."""

from __future__ import annotations

import io
import itertools
import json
import lzma
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline import storage

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ": "xz"}
"""First bytes → name."""
_MARKS_16 = (b"\xff\xfe", b"\xfe\xff")
"""Byte-order marks of UTF-16."""
PIECE_BYTES = 16 * 2**20
"""Bytes of a large file that are read at a time."""
MAX_EXPANSION, MAX_EXPANDED_BYTES = 200, 2**26
"""A compressed file may expand to the larger of this many times its size and this many bytes (guards against
decompression bombs). Captions expand tenfold."""
_NO_TEXT = {
    b"PK\x03\x04": "a zip or a spreadsheet: unpack it, or save the sheet as CSV",
    b"ARROW1": "an Arrow file: write it as Parquet, with datasets' to_parquet or pyarrow's write_table",
    b"\x93NUMPY": "an array of NumPy: write its rows as JSON lines",
    b"\x89HDF": "an HDF5 file: write its rows as JSON lines or Parquet",
    b"SQLite format 3": "a database: write its table as CSV",
}
"""First bytes → description and remedy."""
_TAR, _TAR_AT = b"ustar", 257
"""Magic bytes of a tar, and their offset."""


def read_text(path: str) -> str:
    """Read the text of a file, decompressed and without a byte-order mark.

    ValueError if it is neither UTF-8 nor UTF-16 with its mark.
    """
    return "".join(text_pieces(path))


def text_pieces(path: str) -> Iterator[str]:
    """Yield the text of a file, in pieces of whole lines if it is large. ValueError as in `read_text`."""
    first_line, rest = 1, b""
    for data in _unpacked_pieces(path):
        if first_line == 1 and not rest:
            _refuse_no_text(data, path)
        is_wide = data.startswith(_MARKS_16) or rest.startswith(_MARKS_16)  # not cut: a line feed has two bytes
        stop = 0 if is_wide else data.rfind(b"\n") + 1
        if stop:
            yield _decoded(rest + data[:stop], path, first_line)
            first_line += rest.count(b"\n") + data.count(b"\n", 0, stop)
            rest = b""
        rest += data[stop:]
    if rest:
        yield _decoded(rest, path, first_line)


def byte_pieces(path: str) -> Iterator[bytes]:
    """Yield the bytes of a file, `PIECE_BYTES` at a time."""
    start = 0
    while data := storage.read_bytes(path, start, start + PIECE_BYTES):
        yield data
        start += len(data)
        if len(data) < PIECE_BYTES:
            return


def _unpacked_pieces(path: str) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces, decompressed."""
    pieces = byte_pieces(path)
    head = next(pieces, b"")
    if is_compressed(head):
        data = b"".join([head, *pieces])
        yield from decompressed_pieces(data, path, max(MAX_EXPANDED_BYTES, MAX_EXPANSION * len(data)))
    else:
        yield from itertools.chain([head], pieces)


def is_compressed(start: bytes) -> bool:
    """Return whether a file with these first bytes is gzip, Zstandard, bzip2 or xz."""
    return start.startswith(tuple(_COMPRESSIONS))


def decompressed_pieces(data: bytes, path: str, max_bytes: int) -> Iterator[bytes]:
    """Yield the content of a compressed file in pieces. ValueError if it is damaged or exceeds `max_bytes`."""
    compression = next(name for start, name in _COMPRESSIONS.items() if data.startswith(start))
    size = 0
    try:
        is_xz, buffer = compression == "xz", pa.py_buffer(data)
        with lzma.open(io.BytesIO(data)) if is_xz else pa.input_stream(buffer, compression=compression) as stream:
            while piece := stream.read(PIECE_BYTES):
                if (size := size + len(piece)) > max_bytes:
                    raise ValueError(
                        f"{path}: {len(data)} bytes of {compression} decompress to more than {max_bytes}; if you "
                        "trust it, decompress it yourself"
                    )
                yield piece
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"{path}: damaged {compression} ({error}): copy it again") from error


def _refuse_no_text(data: bytes, path: str) -> None:
    """Raise ValueError, with a remedy, for a file whose first bytes are not those of a text."""
    named = shlex.quote(path)  # users paste the remedy into a shell
    if data.startswith(b"\x80") or data.startswith((b"(dp", b"(lp")):
        script = "import json, pickle; json.dump(pickle.load(open(0, 'rb')), open(1, 'w'))"
        remedy = f'python -c "{script}" < {named} > FILE'
        raise ValueError(f"{path}: a pickle, which runs code when it is opened: if you trust it, {remedy}")
    if description := next((remedy for start, remedy in _NO_TEXT.items() if data.startswith(start)), None):
        raise ValueError(f"{path}: {description}")
    if data[_TAR_AT:].startswith(_TAR):
        raise ValueError(f"{path}: a tar: unpack it, and name the files in it that have the captions")
    if not data.startswith(_MARKS_16) and data[:2].count(0) == 1:
        order = "be" if data.startswith(b"\0") else "le"
        raise ValueError(f"{path}: UTF-16 without its mark: iconv -f utf-16{order} -t utf-8 {named} > FILE")


def _decoded(data: bytes, path: str, first_line: int) -> str:
    """Decode `data`. ValueError, with the line and a remedy, if it is not Unicode text."""
    try:
        return data.decode("utf-16" if data.startswith(_MARKS_16) else "utf-8-sig").replace("\0", "")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        remedy = f"convert it first: iconv -f cp1252 -t utf-8 {shlex.quote(path)} > FILE"
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason} {data[error.start]:#x}); {remedy}") from error


def lines(text: str, path: str) -> Iterator[tuple[str, str]]:
    """Yield (`path:line`, line) of the lines that are not blank."""
    # not str.splitlines: captions may contain other line separators
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line


def json_lines(text: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (`path:line`, value) of a file with a JSON value in each line. ValueError for a line that has none."""
    for where, line in lines(text, path):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: no JSON ({error}): {line[:80]!r}") from error
        yield where, value


class RepeatedKeyError(ValueError):
    """Raised for a JSON object with a duplicate key, of which most parsers silently keep the last value."""


def unambiguous(text: str) -> Any:
    """Parse a JSON text. RepeatedKeyError for a duplicate key; ValueError for invalid JSON."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(
            f"{name!r} stands twice in one object: write its values as one list, or remove one of them"
        )
    return fields


def json_value(text: str, path: str) -> Any:
    """Parse the text of a JSON file. ValueError for invalid JSON and for a duplicate key."""
    try:
        return unambiguous(text)
    except RepeatedKeyError as error:
        raise ValueError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error


def text_field(fields: Any, name: str, where: str) -> str:
    """Return a field that must be a text or an integer, as stripped text. ValueError otherwise."""
    value = fields.get(name) if isinstance(fields, Mapping) else None
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: needs {name}, a text that is not empty, got {value!r}")
    return value.strip()
