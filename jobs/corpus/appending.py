"""What of an earlier pass over a corpus in parts still holds: `prepare` looks at new and changed files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.corpus import media, parts
from pipeline.corpus.manifest import SCHEMA, open_manifest, read_manifest

FILES = "files.parquet"
"""Beside a manifest in parts: size and version of each file that it was made from."""
PLANNED = ("uri", "captions", "split", "group")
"""Columns of a clip that its file does not tell."""
_KEY = b"snps3_files"


def write_files(out: str, files: Mapping[str, str], made_by: str) -> None:
    """Note the files that the manifest in `out` was made from, and what it was made by."""
    table = pa.table({"name": list(files), "version": list(files.values())})
    storage.write_table(storage.join(out, FILES), table.replace_schema_metadata({_KEY: made_by.encode()}))


def unchanged_rows(
    out: str, manifest_path: str, clips: Sequence[Mapping[str, Any]], files: Mapping[str, str], root: str, made_by: str
) -> pa.Table:
    """Return the rows of the manifest whose clip is one of `clips` and whose file is as it was, with what is said of
    the clip now; none where nothing tells."""
    noted = storage.join(out, FILES)
    if not (storage.exists(noted) and parts.is_in_parts(manifest_path)):
        return SCHEMA.empty_table()
    table = storage.read_table(noted)
    if (table.schema.metadata or {}).get(_KEY) != made_by.encode():
        return SCHEMA.empty_table()
    before = dict(zip(table["name"].to_pylist(), table["version"].to_pylist(), strict=True))
    same = {storage.join(root, name) for name, version in files.items() if before.get(name) == version}
    known = {clip["clip_id"]: clip for clip in clips if clip["captions"] and media.file_of(clip["uri"]) in same}
    rows = read_manifest(manifest_path).table
    rows = rows.filter(pa.array(np.isin(rows["clip_id"].to_numpy(), np.array(list(known), np.int64))))
    for name in PLANNED:
        values = [known[clip_id][name] for clip_id in rows["clip_id"].to_pylist()]
        place = SCHEMA.get_field_index(name)
        rows = rows.set_column(place, SCHEMA.field(place), pa.array(values, SCHEMA.field(place).type))
    return rows


def version(manifest_path: str) -> tuple[dict[str, int], str]:
    """Return the clips per split and the hash of the manifest that is there; nothing if there is none."""
    if not parts.is_in_parts(manifest_path):
        return {}, ""
    listing = open_manifest(manifest_path)
    return listing.splits, listing.hash


def described(before: tuple[dict[str, int], str], after: tuple[dict[str, int], str]) -> str:
    """Return what differs between two manifests, for people; nothing if there was none before."""
    (counts, old), (now, new) = before, after
    if not old or old == new:
        return ""
    splits = [f"{split} {counts.get(split, 0)} → {now.get(split, 0)}" for split in sorted(counts.keys() | now.keys())]
    return f"{', '.join(splits)}; hash {new} was {old}"
