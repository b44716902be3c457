"""The files of an index of embedded videos, part by part. Imports no Ray: a search reads them.

    index.json               model, folder of videos and windows that the index belongs to
    part-NAME.parquet        a row per window: file, version, times, strip of frames
    part-NAME.safetensors    the same windows as tensors, which a search memory-maps: `vectors` (n, T, D) and `tokens`
                             (n, S, D), float32; `codes` (n, D), int8: means of the vectors, divided by `scale` (1,)

The tensors are written before their table and removed after it. A search rejects a table without tensors of its own
length, and `embed` embeds its videos again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from jobs.run import run_files
from pipeline import storage

INDEX, REJECTED = "index.json", "rejected.parquet"
FORMAT = 3
"""Format with tensors in files beside the tables; earlier formats hold them in the tables, and remain searchable."""
NAMES = ("vectors", "tokens", "codes", "scale")
MAX_HEADER_BYTES = 2**16
"""Limit of a header of tensors; ours take about 500 bytes."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Windows of an index. Tensors are memory-mapped: a page is loaded at its first access."""

    path: str
    """Path of its table."""
    vectors: Float[Tensor, "n T D"]
    tokens: Float[Tensor, "n S D"]
    codes: Int8[Tensor, "n D"]
    scale: Float[Tensor, " 1"]

    def __len__(self) -> int:
        return len(self.codes)


def parts_in(out: str) -> list[str]:
    """Return the paths of the tables of an index's parts, in order."""
    names = storage.list_files(out)
    return sorted(storage.join(out, name) for name in names if name.startswith("part-") and name.endswith(".parquet"))


def videos_of(index: str) -> str:
    """Return the folder of an index's videos."""
    return run_files.read_json(f"{storage.absolute(index)}/{INDEX}")["videos"]


def tensors_of(path: str) -> str:
    """Return the path of a table's tensors."""
    return f"{path.removesuffix('.parquet')}.safetensors"


def coded(vectors: Float[Tensor, "n T D"]) -> tuple[Int8[Tensor, "n D"], Float[Tensor, " 1"]]:
    """Return the mean over the frames of each window as 8-bit codes, and the scale: mean ≈ code · scale."""
    means = vectors.mean(1)
    scale = (means.abs().amax() / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (means / scale).round().to(torch.int8), scale[None]


def write_tensors(path: str, vectors: Float[Tensor, "n T D"], tokens: Float[Tensor, "n S D"], model: str) -> None:
    """Write the tensors of the table `path`; `model`: hash of the weights that made them."""
    codes, scale = coded(vectors)
    tensors = {"vectors": vectors, "tokens": tokens, "codes": codes, "scale": scale}
    metadata = {"format": str(FORMAT), "model": model, "part": path.rpartition("/")[2]}
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    storage.write_bytes_atomic(tensors_of(path), data)


def keep_tensors(path: str, stays: Sequence[bool]) -> None:
    """Rewrite the tensors of a table with only the rows that stay."""
    model = facts_of(path)[0]["model"]
    tensors = safetensors.torch.load(storage.read_bytes(tensors_of(path)))
    write_tensors(path, tensors["vectors"][[*stays]], tensors["tokens"][[*stays]], model)


def remove_part(path: str) -> None:
    """Remove a table and its tensors."""
    storage.remove(path)
    storage.remove(tensors_of(path))


def num_windows(path: str) -> int:
    """Return how many windows the tensors of a table hold. Raise ValueError for truncated or missing tensors."""
    return facts_of(path)[1]


def facts_of(path: str) -> tuple[dict[str, str], int]:
    """Read the header of a table's tensors: return its metadata and the number of windows. Raise ValueError for
    truncated or missing tensors."""

    def read(file: IO[bytes]) -> tuple[dict[str, str], int]:
        num_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(num_bytes, MAX_HEADER_BYTES)))
        metadata, num_rows = header.pop("__metadata__"), header["codes"]["shape"][0]
        if 8 + num_bytes + max(tensor["data_offsets"][1] for tensor in header.values()) != file.seek(0, 2):
            raise ValueError
        return metadata, num_rows

    try:
        return storage.read_with(tensors_of(path), read)
    except FileNotFoundError as error:
        raise broken(path, "are not there") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise broken(path, "are cut off, or no tensors") from error


def broken(path: str, what: str) -> ValueError:
    """Return the error for a table's broken tensors."""
    return ValueError(f"{tensors_of(path)}: the tensors {what}; give the same `embed` again, which makes them anew")


def open_part(path: str, model: str, width: int) -> Part:
    """Memory-map a part of an index; of an index in a bucket, map a local copy. `model`: hash of the model's weights;
    `width`: of its vectors.

    Raise ValueError for a part of another model or number of windows, and for truncated or malformed tensors.
    """
    if "vectors" in storage.read_with(path, pq.read_schema).names:
        return read_earlier(path, width)
    metadata, num_rows = facts_of(path)
    if metadata.get("model") != model:
        raise ValueError(
            f"{tensors_of(path)} was made with the model {metadata.get('model')}, not {model}; name its model with "
            "--run, or take another --out"
        )
    num_in_table = storage.read_with(path, pq.read_metadata).num_rows
    if (metadata.get("part"), num_rows) != (path.rpartition("/")[2], num_in_table):
        raise broken(path, f"are {num_rows} windows of {metadata.get('part')}, the table has {num_in_table}")
    if not storage.is_remote(path):
        return mapped(path, tensors_of(path), (num_rows, width))
    with tempfile.NamedTemporaryFile() as file:  # the mapping outlives the file's name
        file.write(storage.read_bytes(tensors_of(path)))
        file.flush()
        return mapped(path, file.name, (num_rows, width))


def mapped(path: str, tensors: str, shape: tuple[int, int]) -> Part:
    """Return the part with the table `path`, mapped from the local file `tensors`. Raise ValueError if the tensors do
    not have `shape` (n, D)."""
    try:
        with safetensors.safe_open(tensors, "pt") as file:
            part = Part(path=path, **{name: file.get_tensor(name) for name in NAMES})
    except safetensors.SafetensorError as error:
        raise broken(path, f"do not open: {error}") from error
    kinds = [(str(tensor.dtype), len(tensor), tensor.shape[-1]) for tensor in (part.codes, part.vectors, part.tokens)]
    if kinds != (expected := [("torch.int8", *shape), *[("torch.float32", *shape)] * 2]):
        raise broken(path, f"hold {kinds}, not {expected}")
    return part


def read_earlier(path: str, width: int) -> Part:
    """Read a part of an earlier format, whose table holds the tensors of each window as lists."""
    table = storage.read_table(path, ["tokens", "vectors"])
    columns = (table[name].combine_chunks().flatten().to_numpy() for name in ("tokens", "vectors"))
    tokens, vectors = (torch.from_numpy(numbers.reshape(len(table), -1, width).copy()) for numbers in columns)
    codes, scale = coded(vectors)
    return Part(path=path, vectors=vectors, tokens=tokens, codes=codes, scale=scale)
