"""What of an earlier pass over a corpus in parts still holds: `prepare` looks at new and changed files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.corpus.gathering import FILES, numbers_of
from pipeline import storage
from pipeline.corpus import media, parts
from pipeline.corpus.buckets import Buckets, portions
from pipeline.corpus.manifest import SCHEMA, open_manifest

LISTING = "listing"
"""Folder beside a manifest in parts: size and version of each file that it was made from."""
PLANNED = ("uri", "captions", "split", "group")
"""Columns of a clip that its file does not tell."""
FILE_ROWS = 2**17
_KEY = b"snps3_files"


def write_listing(out: str, files: Buckets, made_by: str) -> None:
    """Note the files that the manifest in `out` was made from, and what it was made by."""
    storage.remove_folder(folder := storage.join(out, LISTING))
    for number, (start, stop) in enumerate(portions(files.counts, FILE_ROWS)):
        table = files.read(start, stop).replace_schema_metadata({_KEY: made_by.encode()})
        storage.write_table(storage.join(folder, f"{number:05d}.parquet"), table)


@dataclass(frozen=True)
class Earlier:
    """The manifest in parts that is there, and the files that it was made of, in the buckets of their names."""

    rows: Buckets
    files: Buckets

    @classmethod
    def read(cls, out: str, manifest_path: str, made_by: str) -> Earlier | None:
        """Return what tells which rows still hold; None where nothing does."""
        folder = storage.join(out, LISTING)
        if not (storage.exists(folder) and parts.is_in_parts(manifest_path)):
            return None
        earlier = cls(Buckets(SCHEMA), Buckets(FILES))
        for name in storage.list_files(folder):
            table = storage.read_table(storage.join(folder, name))
            if (table.schema.metadata or {}).get(_KEY) != made_by.encode():
                return None
            earlier.files.add(numbers_of(table["name"].to_pylist()), table)
        listing = open_manifest(manifest_path)
        for rows in listing.batches():
            names = [media.name_of(uri, listing.root) for uri in rows["uri"].to_pylist()]
            earlier.rows.add(numbers_of(names), rows)
        return earlier

    def unchanged(
        self,
        portion: tuple[int, int],
        files_in: tuple[int, int],
        clips: Sequence[Mapping[str, Any]],
        versions: Mapping[str, str],
        root: str,
    ) -> pa.Table:
        """Return the rows whose clip is one of `clips`, those of the buckets `portion`, and whose file, one of the
        buckets `files_in`, has one of `versions`; with what is said of the clip now."""
        before = self.files.read(*files_in)
        noted = zip(before["name"].to_pylist(), before["version"].to_pylist(), strict=True)
        same = {storage.join(root, name) for name, version in noted if versions.get(name) == version}
        known = {clip["clip_id"]: clip for clip in clips if clip["captions"] and media.file_of(clip["uri"]) in same}
        rows = self.rows.read(*portion)
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
