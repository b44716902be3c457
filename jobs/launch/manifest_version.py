"""Pin a run to a version of its manifest: the newest when the run begins, and the same one whenever it resumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jobs.run import run_files
from jobs.run.config import DataConfig
from pipeline import storage
from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import PartedManifest, open_manifest
from pipeline.corpus.versions import split_version


def with_version(
    data: DataConfig, name: str, run_folder: str, say: Callable[[str], object] = lambda line: None
) -> tuple[DataConfig, Listing]:
    """Return the data of the run `name` and the manifest's listing. The path in the data names the version if the
    manifest is in parts.

    A resumed run that names no version keeps the version it began with, as long as that exists.
    """
    listing, identity_path = open_manifest(data.manifest), f"{run_folder}/{run_files.IDENTITY}"
    if not isinstance(listing, PartedManifest):
        return data, listing
    if split_version(data.manifest)[1] is None and storage.exists(identity_path):
        begun_with = run_files.read_json(identity_path).get("fields", {}).get("data.manifest_hash")
        newest = listing.index.version
        if any(version.hash == begun_with for version in listing.index.earlier):
            listing = open_manifest(f"{listing.path}@{begun_with}")
            assert isinstance(listing, PartedManifest)
            say(
                f"{name} goes on with {listing.place}, which it began with; version {newest.number} has "
                f"{newest.num_rows} clips: a run under another --name trains on it"
            )
    return dataclasses.replace(data, manifest=listing.place), listing
