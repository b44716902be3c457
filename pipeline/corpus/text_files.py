"""Text files that people write: decoded, split into lines and objects, and refused with file and line."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline import storage

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ": "xz"}
"""First bytes → name."""
_NO_TEXT = {
    b"PK\x03\x04": "a zip or a spreadsheet: unpack it, or save the sheet as CSV",
    b"ARROW1": "an Arrow file: write it as Parquet, with datasets' to_parquet or pyarrow's write_table",
    b"\x93NUMPY": "an array of NumPy: write its rows as JSON lines",
    b"\x89HDF": "an HDF5 file: write its rows as JSON lines or Parquet",
    b"SQLite format 3": "a database: write its table as CSV",
}
"""First bytes → what it is, and what to do."""


def read_text(path: str) -> str:
    """Return the text of a file, decompressed and without a byte-order mark.

    ValueError if it is neither UTF-8 nor UTF-16 with its mark.
    """
    return decoded(decompressed(storage.read_bytes(path), path), path)


def is_compressed(start: bytes) -> bool:
    """Return whether a file that begins so is one that `decompressed` unpacks."""
    return start.startswith(tuple(_COMPRESSIONS))


def decompressed(data: bytes, path: str, most_bytes: int | None = None) -> bytes:
    """Return the bytes in a gzip, Zstandard, bzip2 or xz file; those of another as they are.

    ValueError if it is cut short, or holds more than `most_bytes`.
    """
    compression = next((name for start, name in _COMPRESSIONS.items() if data.startswith(start)), None)
    if compression is None:
        return data
    try:
        if compression == "xz":
            content = lzma.LZMADecompressor().decompress(data, -1 if most_bytes is None else most_bytes + 1)
        else:
            stream = pa.input_stream(pa.py_buffer(data), compression=compression)
            content = stream.read(None if most_bytes is None else most_bytes + 1)
    except (OSError, lzma.LZMAError) as error:
        raise ValueError(f"{path}: damaged {compression} ({error}): copy it again") from error
    if most_bytes is not None and len(content) > most_bytes:
        raise ValueError(f"{path} holds more than {most_bytes / 2**30:.0f} GiB when it is unpacked: unpack it")
    return content


def decoded(data: bytes, path: str) -> str:
    """Return the text in `data`. ValueError, with the line and a remedy, for what is no text in Unicode."""
    if data.startswith(b"\x80") or data.startswith((b"(dp", b"(lp")):
        script = f"import json, pickle; json.dump(pickle.load(open({path!r}, 'rb')), open({path + '.json'!r}, 'w'))"
        raise ValueError(f'{path}: a pickle, which runs code when it is opened: if you trust it, python -c "{script}"')
    if other := next((remedy for start, remedy in _NO_TEXT.items() if data.startswith(start)), None):
        raise ValueError(f"{path}: {other}")
    is_marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not is_marked and data[:2].count(0) == 1:
        order = "be" if data.startswith(b"\0") else "le"
        raise ValueError(f"{path}: UTF-16 without its mark: iconv -f utf-16{order} -t utf-8 {path} > FILE")
    try:
        return data.decode("utf-16" if is_marked else "utf-8-sig").replace("\0", "")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = f"convert it first: iconv -f cp1252 -t utf-8 {path} > FILE"
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason} {data[error.start]:#x}); {remedy}") from error


def lines(text: str, path: str) -> Iterator[tuple[str, str]]:
    """Yield (`path:line`, line) of the lines that are not blank."""
    # not str.splitlines: other ends of lines may stand within a caption
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


def json_value(text: str, path: str) -> Any:
    """Return the value of a JSON file. ValueError if it has none."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error


def text_field(fields: Any, name: str, where: str) -> str:
    """Return a field that must be a text or a whole number, as text without blanks around it. ValueError if not."""
    value = fields.get(name) if isinstance(fields, Mapping) else None
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: needs {name}, a text that is not empty, got {value!r}")
    return value.strip()
