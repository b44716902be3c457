"""Reuse of an earlier manifest in parts, so that `prepare` probes only new and changed files."""

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
"""Folder beside a manifest in parts, with name, size and version of each file that the manifest was made from."""
PLANNED = ("uri", "captions", "split", "group")
"""Columns of a clip that come from annotations and paths, not from the content of its file."""
FILE_ROWS = 2**17
_KEY = b"snps3_files"


def write_listing(out: str, files: Buckets, made_by: str) -> None:
    """Record the files that the manifest in `out` was made from. `made_by`: version of `prepare`, and decoder."""
    storage.remove_folder(folder := storage.join(out, LISTING))
    for number, (start, stop) in enumerate(portions(files.counts, FILE_ROWS)):
        table = files.read(start, stop).replace_schema_metadata({_KEY: made_by.encode()})
        storage.write_table(storage.join(folder, f"{number:05d}.parquet"), table)


@dataclass(frozen=True)
class EarlierManifest:
    """The rows of an earlier manifest in parts and the files that it was made from, both bucketed by file name."""

    rows: Buckets
    files: Buckets

    @classmethod
    def read(cls, out: str, manifest_path: str, made_by: str) -> EarlierManifest | None:
        """Return the earlier manifest and its files; None if there is none of the same `made_by`."""
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
        """Return the earlier rows of those `clips` whose files are unchanged, with the present values of `PLANNED`.

        `portion` and `files_in` are the ranges of buckets of clips and files. `versions`: present version by file name.
        """
        before = self.files.read(*files_in)
        recorded = zip(before["name"].to_pylist(), before["version"].to_pylist(), strict=True)
        same = {storage.join(root, name) for name, version in recorded if versions.get(name) == version}
        known = {clip["clip_id"]: clip for clip in clips if clip["captions"] and media.file_of(clip["uri"]) in same}
        rows = self.rows.read(*portion)
        rows = rows.filter(pa.array(np.isin(rows["clip_id"].to_numpy(), np.array(list(known), np.int64))))
        for name in PLANNED:
            values = [known[clip_id][name] for clip_id in rows["clip_id"].to_pylist()]
            place = SCHEMA.get_field_index(name)
            rows = rows.set_column(place, SCHEMA.field(place), pa.array(values, SCHEMA.field(place).type))
        return rows


def newest(manifest_path: str) -> PartedManifest | None:
    """Return the newest version of the manifest in parts at `manifest_path`; None if there is none."""
    listing = open_manifest(manifest_path) if parts.is_in_parts(manifest_path) else None
    return listing if isinstance(listing, PartedManifest) else None


def describe_change(before: PartedManifest | None, after: PartedManifest | None) -> str:
    """Return the differences of two versions of a manifest in words; empty if one is missing or they are equal."""
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
    """Return the number of clips only in `after`, only in `before`, and in both with different rows.

    Parts that both have are not read. The rows of other parts take 24 bytes of memory each.
    """
    shared = {part.name for part in before.index.parts} & {part.name for part in after.index.parts}
    (old_ids, old_rows), (ids, rows) = (_digests_of(listing, shared) for listing in (before, after))
    both, old_places, places = np.intersect1d(old_ids, ids, assume_unique=True, return_indices=True)
    num_changed = np.count_nonzero((old_rows[old_places] != rows[places]).any(1))
    return len(ids) - len(both), len(old_ids) - len(both), int(num_changed)


def _digests_of(listing: PartedManifest, shared: Set[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and digests of the rows of a manifest, except those in the parts `shared`."""
    ids, digests = [np.empty(0, np.int64)], [np.empty((0, 4), np.uint32)]
    for part in listing.index.parts:
        if part.name not in shared:
            table = read_part(storage.join(listing.path, part.name), part)
            ids.append(table["clip_id"].to_numpy())
            digests.append(row_digests(table))
    return np.concatenate(ids), np.concatenate(digests)
