"""The files of an index of embedded videos, part by part. Imports no Ray: a search reads them.

    index.json               model, folder of videos and windows that the index belongs to
    part-NAME.parquet        a row per window: file, version, times, strip of frames
    part-NAME.safetensors    the same windows as tensors, which a search maps and does not read: `vectors` (n, T, D) and
                             `tokens` (n, S, D), float32; `codes` (n, D), int8, means of the vectors over `scale` (1,)

The tensors are written before their table and removed after it. A table without tensors of its own length is refused
by a search, and embedded anew by `embed`.
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
"""Of an index with tensors beside its tables; one of an earlier format holds them in its tables, and is still
searched."""
NAMES = ("vectors", "tokens", "codes", "scale")
MAX_HEADER_BYTES = 2**16
"""Of tensors; ours take 500."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Windows of an index. Tensors are mapped: a page of them is in memory when it was looked at."""

    path: str
    """Of its table."""
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
    """Return the folder of the videos that an index is of."""
    return run_files.read_json(f"{storage.absolute(index)}/{INDEX}")["videos"]


def tensors_of(path: str) -> str:
    """Return where the tensors of a table lie."""
    return f"{path.removesuffix('.parquet')}.safetensors"


def coded(vectors: Float[Tensor, "n T D"]) -> tuple[Int8[Tensor, "n D"], Float[Tensor, " 1"]]:
    """Return the mean over the frames of each window in 8 bits, and the scale that makes it of them again."""
    means = vectors.mean(1)
    scale = (means.abs().amax() / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (means / scale).round().to(torch.int8), scale[None]


def write_tensors(path: str, vectors: Float[Tensor, "n T D"], tokens: Float[Tensor, "n S D"], model: str) -> None:
    """Write the tensors of the table `path`, whose model has the weights hash `model`."""
    codes, scale = coded(vectors)
    tensors = {"vectors": vectors, "tokens": tokens, "codes": codes, "scale": scale}
    metadata = {"format": str(FORMAT), "model": model, "part": path.rpartition("/")[2]}
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    storage.write_bytes_atomic(tensors_of(path), data)


def keep_tensors(path: str, stays: Sequence[bool]) -> None:
    """Write the tensors of a table anew, without those of the rows that do not stay."""
    model = facts_of(path)[0]["model"]
    tensors = safetensors.torch.load(storage.read_bytes(tensors_of(path)))
    write_tensors(path, tensors["vectors"][[*stays]], tensors["tokens"][[*stays]], model)


def remove_part(path: str) -> None:
    """Remove a table and its tensors."""
    storage.remove(path)
    storage.remove(tensors_of(path))


def num_windows(path: str) -> int:
    """Return how many windows the tensors of a table hold. ValueError for tensors that are cut, or not there."""
    return facts_of(path)[1]


def facts_of(path: str) -> tuple[dict[str, str], int]:
    """Return what the tensors of a table say they belong to, and their number of windows, by their header alone."""

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
    """Return the refusal of the tensors of a table."""
    return ValueError(f"{tensors_of(path)}: the tensors {what}; give the same `embed` again, which makes them anew")


def open_part(path: str, model: str, width: int) -> Part:
    """Map a part of an index of the model with these weights and vectors of `width`; of one in a bucket, a copy.

    ValueError for a part of another model or number of windows, and for tensors that are cut or crafted.
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
    with tempfile.NamedTemporaryFile() as file:  # what is mapped outlives the name
        file.write(storage.read_bytes(tensors_of(path)))
        file.flush()
        return mapped(path, file.name, (num_rows, width))


def mapped(path: str, tensors: str, shape: tuple[int, int]) -> Part:
    """Return the part whose table is `path`, with tensors of a local file that hold `shape`: (n, D)."""
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
    """Read a part of an earlier format, whose table has the numbers of each window in a list."""
    table = storage.read_table(path, ["tokens", "vectors"])
    columns = (table[name].combine_chunks().flatten().to_numpy() for name in ("tokens", "vectors"))
    tokens, vectors = (torch.from_numpy(numbers.reshape(len(table), -1, width).copy()) for numbers in columns)
    codes, scale = coded(vectors)
    return Part(path=path, vectors=vectors, tokens=tokens, codes=codes, scale=scale)
