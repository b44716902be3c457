"""What of an earlier pass over a corpus in parts still holds: `prepare` looks at new and changed files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.corpus.gathering import FILES, numbers_of
from pipeline import storage
from pipeline.corpus import media, parts
from pipeline.corpus.buckets import Buckets, portions
from pipeline.corpus.content import row_digests
from pipeline.corpus.manifest import SCHEMA, PartedManifest, open_manifest
from pipeline.corpus.part_rows import read_part

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


def newest(manifest_path: str) -> PartedManifest | None:
    """Return the manifest in parts that is there, if there is one."""
    listing = open_manifest(manifest_path) if parts.is_in_parts(manifest_path) else None
    return listing if isinstance(listing, PartedManifest) else None


def described(before: PartedManifest | None, after: PartedManifest | None) -> str:
    """Return what differs between two versions of a manifest, for people; nothing if there was none before."""
    if not before or not after or before.hash == after.hash:
        return ""
    counts, now = before.splits, after.splits
    splits = [f"{split} {counts.get(split, 0)} → {now.get(split, 0)}" for split in sorted(counts.keys() | now.keys())]
    added, gone, changed = changes(before, after)
    return (
        f"{added} clips added, {gone} gone, {changed} changed: {', '.join(splits)}; version {after.index.number} was "
        f"{before.index.number}; hash {after.hash} was {before.hash}"
    )


def changes(before: PartedManifest, after: PartedManifest) -> tuple[int, int, int]:
    """Return how many clips are in `after` alone, in `before` alone, and in both with other rows.

    Parts that both have are not read; of the rows of others, 24 bytes each are in memory.
    """
    shared = {part.name for part in before.index.parts} & {part.name for part in after.index.parts}
    (old_ids, old_rows), (ids, rows) = (_digests_of(listing, shared) for listing in (before, after))
    both, old_places, places = np.intersect1d(old_ids, ids, assume_unique=True, return_indices=True)
    num_changed = np.count_nonzero((old_rows[old_places] != rows[places]).any(1))
    return len(ids) - len(both), len(old_ids) - len(both), int(num_changed)


def _digests_of(listing: PartedManifest, shared: Set[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and digests of the rows of a manifest that are in other parts than `shared`."""
    ids, digests = [np.empty(0, np.int64)], [np.empty((0, 4), np.uint32)]
    for part in listing.index.parts:
        if part.name not in shared:
            table = read_part(storage.join(listing.path, part.name), part)
            ids.append(table["clip_id"].to_numpy())
            digests.append(row_digests(table))
    return np.concatenate(ids), np.concatenate(digests)
