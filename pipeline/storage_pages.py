"""List the files of a store page by page, in order of their paths. `storage` opens the stores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

PAGE_KEYS = 1000
"""Objects per page of a bucket listing, the maximum of S3."""


def local_files(root: str, folder: str = "") -> Iterator[tuple[str, str]]:
    """Yield path below `root`, and size and modification time, of each file in `folder` that is not hidden."""
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            named = sorted((entry.name + "/" * entry.is_dir(follow_symlinks=False), entry.path) for entry in entries)
    except OSError:  # removed meanwhile, or not readable
        return
    for name, path in named:
        if name.startswith("."):
            continue
        if name.endswith("/"):
            yield from local_files(root, folder + name)
        else:
            with suppress(FileNotFoundError):
                size = os.stat(path, follow_symlinks=os.path.exists(path)).st_size
                yield folder + name, f"{size} {os.lstat(path).st_mtime}"


def s3_files(request: Callable[[Callable[[Any, str], Any]], Any]) -> Iterator[tuple[str, str]]:
    """Yield path, and size and ETag, of each object below a prefix; `request` calls a function on store and prefix."""
    place: dict[str, str] = {}
    while True:

        def page(store: Any, inner: str, place: dict[str, str] = place) -> tuple[str, dict[str, Any]]:
            bucket, key, _ = store.split_path(inner)
            prefix = f"{key.rstrip('/')}/" if key else ""
            return prefix, store.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=PAGE_KEYS, **place)

        prefix, answer = request(page)
        for item in answer.get("Contents", ()):
            if not item["Key"].endswith("/"):
                yield item["Key"].removeprefix(prefix), f"{item['Size']} {item['ETag']}"
        if not answer.get("IsTruncated"):
            return
        place = {"ContinuationToken": answer["NextContinuationToken"]}
