"""Infer the split of clips from names in annotation files, folders and file names."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from types import MappingProxyType

from pipeline.corpus.media import is_tar

SPLITS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("train", "training", "trn"), "train"),
        **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
        **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation"), "test"),
    }
)
"""Name in lower case → canonical name, as in Hugging Face. Other names stay unchanged."""


def split_named(name: str) -> str:
    """Return the canonical name of a split."""
    return SPLITS.get(name.strip().lower(), name.strip())


def split_of_folder(path: str) -> str | None:
    """Return the split that a folder or packed file in `path` names; None if none does.

    ValueError if folders name several splits. In an absolute path or a URL only the innermost counts, since the outer
    folders may belong to another machine.
    """
    folders = posixpath.dirname(path).split("/")
    if path.startswith("/") or ":/" in path:
        folders = [name for name in folders if name.lower() in SPLITS][-1:]
    packed = [name for name in folders if is_tar(name) or name.lower().endswith(".parquet")]
    return _single(folders, path) or next(filter(None, map(split_of_file, packed)), None)


def split_of_file(path: str) -> str | None:
    """Return the split that occurs as a separate word in the name of an annotation file; None for none or several."""
    try:
        name = posixpath.basename(path.partition("?")[0] if "://" in path else path)
        return _single(re.split(r"[^a-z]+", name.lower()), path)
    except ValueError:
        return None


def _single(names: list[str], path: str) -> str | None:
    splits = {SPLITS[name.lower()] for name in names if name.lower() in SPLITS}
    if len(splits) > 1:
        raise ValueError(f"{path} names the splits {' and '.join(sorted(splits))}: name one in a column `split`")
    return next(iter(splits), None)
