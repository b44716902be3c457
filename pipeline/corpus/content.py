"""Hashes of the rows of a manifest, independent of where the files lie.

Version 1 (`manifest_hash`) hashes column after column, so it needs all rows at once. Version 2 (`rows_digest`) sums the
digests of the rows, so that parts can be hashed separately and in any order.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions at import, so type checkers cannot see them

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, UInt32

from pipeline.corpus.schema import PLACES, SCHEMA

MODULUS = 2**128
_ROWS_AT_ONCE = 65_536


def checksum(data: bytes) -> str:
    """Return the BLAKE2b hash of `data`, 128 bits in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def manifest_hash(table: pa.Table) -> str:
    """Hash the rows in order of their ids, over every column of `SCHEMA` but `PLACES`, to 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    table = table.sort_by("clip_id")
    for field in SCHEMA:
        if field.name not in PLACES:
            digest.update(f"{field.name}:{field.type}:{table.num_rows};".encode())
            _update(digest, table[field.name].combine_chunks())
    return digest.hexdigest()


def _update(digest: Any, array: pa.Array) -> None:
    """Add values, lengths and nulls to `digest`, but not Arrow's buffers: they differ between equal arrays."""
    digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_list(array.type):
        digest.update(
            pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype("<i8").tobytes()
        )
        _update(digest, array.flatten())
    elif pa.types.is_string(array.type):
        values = pc.fill_null(array, "")
        digest.update(pc.binary_length(values).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        digest.update("".join(values.to_pylist()).encode())
    else:
        dtype = "<f8" if pa.types.is_floating(array.type) else "<i8"
        digest.update(pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(dtype).tobytes())


def rows_digest(table: pa.Table) -> int:
    """Return the sum of the rows' digests modulo 2¹²⁸, over every column of `SCHEMA` but `PLACES`.

    The sum over all tables depends neither on the order of the rows nor on how they are cut into tables.
    """
    total = 0
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        total += _sum_of_digests(table.slice(start, _ROWS_AT_ONCE).combine_chunks())
    return total % MODULUS


def hex_digest(digest: int) -> str:
    """Format a digest as 32 hex digits."""
    return f"{digest % MODULUS:032x}"


def _sum_of_digests(table: pa.Table) -> int:
    words = row_digests(table).sum(0, dtype=np.uint64).tolist()
    return sum(word << (32 * place) for place, word in enumerate(words))


def row_digests(table: pa.Table) -> UInt32[np.ndarray, "n 4"]:
    """Return the digest of each row, over every column of `SCHEMA` but `PLACES`, as 32-bit words, the lowest first.

    The numbers of a row and the lengths of its texts have a fixed width, so that no two different rows have the same
    bytes.
    """
    numbers, texts = [], []
    for field in SCHEMA:
        if field.name in PLACES:
            continue
        column = table[field.name].combine_chunks()
        if pa.types.is_list(field.type):
            lengths, text = _joined(column)
            numbers.append(_int64(pc.list_value_length(column)))
            texts += [lengths, text]
            numbers += [_int64(pc.binary_length(lengths)), _int64(pc.binary_length(text))]
        elif pa.types.is_string(field.type):
            numbers.append(_int64(pc.binary_length(column)))
            texts.append(pc.fill_null(column, ""))
        else:
            numbers += [pc.is_valid(column).to_numpy(zero_copy_only=False).astype("<i8"), _bits(column)]
    joined = pc.binary_join_element_wise(*texts, "").cast(pa.binary())
    fixed, width = np.stack(numbers, axis=1).tobytes(), 8 * len(numbers)
    digests = b"".join(
        hashlib.blake2b(fixed[row * width : (row + 1) * width] + text, digest_size=16, person=b"snps3 row 2").digest()
        for row, text in enumerate(joined.to_pylist())
    )
    return np.frombuffer(digests, "<u4").reshape(-1, 4)


def _joined(lists: pa.ListArray) -> tuple[pa.Array, pa.Array]:
    """Return for each list the lengths of its texts (−1: null), joined by commas, and its texts concatenated."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(_int64(pc.list_value_length(lists)))]), pa.int32())
    flat = lists.flatten()
    lengths = pc.fill_null(pc.binary_length(flat), -1).cast(pa.string())
    return tuple(
        pc.binary_join(pa.ListArray.from_arrays(offsets, values), separator)
        for values, separator in ((lengths, ","), (pc.fill_null(flat, ""), ""))
    )


def _int64(array: pa.Array) -> Int64[np.ndarray, " n"]:
    return pc.fill_null(array, -1).to_numpy(zero_copy_only=False).astype("<i8")


def _bits(array: pa.Array) -> Int64[np.ndarray, " n"]:
    """Return the bit patterns of numbers, 0 for null."""
    dtype = "<f8" if pa.types.is_floating(array.type) else "<i8"
    return pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(dtype).view("<i8")
