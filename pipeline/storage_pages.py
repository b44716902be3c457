"""Files of a store some at a time, in order of their paths. The stores themselves are `storage`'s."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

PAGE_KEYS = 1000
"""Objects of a page of a bucket: no store gives more."""


def local_files(root: str, folder: str = "") -> Iterator[tuple[str, str]]:
    """Yield path below `root`, and size and time of change, of each file in `folder`, but for hidden ones."""
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            named = sorted((entry.name + "/" * entry.is_dir(follow_symlinks=False), entry.path) for entry in entries)
    except OSError:  # gone meanwhile, or not for us to read
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


def s3_files(ask: Callable[[Callable[[Any, str], Any]], Any]) -> Iterator[tuple[str, str]]:
    """Yield path, size and ETag of each object below the prefix that `ask` hands to its call with the store."""
    place: dict[str, str] = {}
    while True:

        def page(store: Any, inner: str, place: dict[str, str] = place) -> tuple[str, dict[str, Any]]:
            bucket, key, _ = store.split_path(inner)
            prefix = f"{key.rstrip('/')}/" if key else ""
            return prefix, store.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=PAGE_KEYS, **place)

        prefix, answer = ask(page)
        for item in answer.get("Contents", ()):
            if not item["Key"].endswith("/"):
                yield item["Key"].removeprefix(prefix), f"{item['Size']} {item['ETag']}"
        if not answer.get("IsTruncated"):
            return
        place = {"ContinuationToken": answer["NextContinuationToken"]}
