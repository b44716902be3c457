"""Download the files of a list of URLs to a folder or a bucket, and write their paths as a table for prepare."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from jobs.corpus.resumption import request_missing
from jobs.launch import lease
from pipeline import storage
from pipeline.corpus import ledger
from pipeline.corpus.clip_rows import WrongRow
from pipeline.corpus.manifest import clip_id
from pipeline.corpus.url_lists import read_urls
from pipeline.corpus.web import WebLimits, copy_url, name_of_url
from pipeline.offline.kept import key_of
from pipeline.records import DecodeError, Reason, Rejected, Stage
from pipeline.redaction import without_secrets

log = logging.getLogger(__name__)

CLIPS, LEDGER, KEPT = "clips.jsonl", "rejected.parquet", "downloads"
FILES = pa.schema(
    [
        *(("clip_id", pa.int64()), ("uri", pa.string()), ("name", pa.string())),
        *(("num_bytes", pa.int64()), ("sha256", pa.string())),
    ]
)
"""Columns of a downloaded file."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Which URLs are downloaded, and where to."""

    table: str
    """File with a URL in each row: any table that prepare reads, or a URL per line."""
    out: str
    """Folder or bucket: `--root` of prepare, whose `--annotations` is clips.jsonl in it."""
    column: str | None = None
    """Column of the URLs; None: the only column with nothing but URLs."""
    suffix: str = ".mp4"
    """Of files whose URL names no video or image."""
    num_at_once: int = 16
    """Downloads at a time."""
    num_per_host: int = 4
    """Downloads at a time from one host."""
    max_rejected_share: float = 0.2
    """Largest share of rows without a file, in [0, 1]."""
    limits: WebLimits = field(default_factory=WebLimits)

    def __post_init__(self) -> None:
        for name in ("num_at_once", "num_per_host"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.suffix.startswith("."):
            raise ValueError(f"suffix must begin with a dot, as .mp4, got {self.suffix!r}")
        if not 0 <= self.max_rejected_share <= 1:
            raise ValueError(f"max_rejected_share must lie in [0, 1], got {self.max_rejected_share}")


@dataclass(frozen=True, kw_only=True)
class DownloadResult:
    """The result of `download`."""

    clips_path: str
    ledger_path: str
    num_rows: int
    """Rows whose file exists."""
    num_files: int
    num_bytes: int
    num_asked: int
    """Files that this pass requested."""
    num_rejected: dict[str, int]
    """Rows per reason."""


def download(config: DownloadConfig) -> DownloadResult:
    """Download the files that are missing; write the rows with the paths of their files, and the ledger.

    ValueError for a table without URLs, or while another job writes to the same folder. TooManyRejectedError, after the
    ledger is written, when more than the allowed share of rows has no file.
    """
    out = storage.absolute(config.out)
    rows, wrong, column = read_urls(config.table, config.column)
    storage.check_writable(out)
    with lease.held(out) as held:
        files = files_of([row[column] for row in rows], config, storage.file_versions(out))
        hosts: dict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(config.num_per_host))

        def fetch(file: dict[str, Any]) -> dict[str, Any]:
            with hosts[urlsplit(file["url"]).netloc]:
                return fetch_file(file, out, config.limits)

        folder = storage.join(out, KEPT)
        table, num_asked = request_missing(files, fetch, folder, FILES, num_at_once=config.num_at_once, what="files")
        held.check()
        by_name = {file["name"]: file for file in table.to_pylist()}
        return _write_results(config, out, rows, wrong, column, by_name, num_asked)


def files_of(urls: Sequence[str], config: DownloadConfig, existing: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row per file, interleaved by host, so that a slow host does not hold up the others.

    The key depends on the size of the file in `existing` (name → size and version), so that a file that was deleted is
    downloaded again. The key of a missing file depends on the limits that may have rejected it.
    """
    names = {name_of_url(url, config.suffix): url for url in urls}
    limits = (config.limits.max_gib, config.limits.seconds, config.limits.allow_private)
    turns: Counter[str] = Counter()
    ordered = []
    for name, url in names.items():
        host = urlsplit(url).netloc
        turns[host] += 1
        size = existing.get(name, "").partition(" ")[0]
        key = key_of(name, size) if size else key_of(name, *limits)
        row = {"clip_id": clip_id("download", name), "uri": without_secrets(url), "name": name, "url": url, "key": key}
        ordered.append((turns[host], row))
    return [row for _, row in sorted(ordered, key=lambda pair: pair[0])]


def fetch_file(file: dict[str, Any], out: str, limits: WebLimits) -> dict[str, Any]:
    """Download a file and return its row of `FILES`, or a row with the reason of the rejection."""
    row = {name: file[name] for name in ("clip_id", "uri", "name")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file["name"])
        path.parent.mkdir(parents=True)
        try:
            with path.open("w+b") as target:
                num_bytes, sha256 = copy_url(file["url"], target, limits)
        except DecodeError as error:
            return row | {"key": file["key"], "reason": str(error.reason), "detail": error.detail}
        storage.upload_folder(folder, out)
    return row | {"key": key_of(file["name"], str(num_bytes)), "num_bytes": num_bytes, "sha256": sha256}


def _write_results(
    config: DownloadConfig,
    out: str,
    rows: Sequence[Mapping[str, Any]],
    wrong: Sequence[WrongRow],
    column: str,
    files: Mapping[str, Mapping[str, Any]],
    num_asked: int,
) -> DownloadResult:
    """Write the ledger and the list of clips. Rows without a file go to the ledger."""
    rejected = [
        Rejected(clip_id=clip_id("download", row.where), uri=row.where, stage=Stage.PREPARE,
                 reason=Reason.WRONG_ROW, detail=row.reason)
        for row in wrong
    ]  # fmt: skip
    clips = []
    for row in rows:
        file = files[name_of_url(row[column], config.suffix)]
        if file["reason"]:
            rejected.append(Rejected.from_row(file, Stage.PREPARE))
        else:
            clips.append({**row, column: file["uri"], "clip_name": file["name"], "sha256": file["sha256"]})
    lines = "".join(json.dumps(clip, ensure_ascii=False, default=str) + "\n" for clip in clips)
    existing = [file for file in files.values() if not file["reason"]]
    result = DownloadResult(
        clips_path=storage.join(out, CLIPS),
        ledger_path=storage.join(out, LEDGER),
        num_rows=len(clips),
        num_files=len(existing),
        num_bytes=sum(file["num_bytes"] for file in existing),
        num_asked=num_asked,
        num_rejected={str(reason): count for reason, count in ledger.count_by_reason(rejected).items()},
    )
    ledger.write_ledger(rejected, result.ledger_path)
    storage.write_bytes_atomic(result.clips_path, lines.encode())
    ledger.refuse_above_share(rejected, len(rows) + len(wrong), config.max_rejected_share, result.ledger_path)
    return result


def describe(result: DownloadResult) -> str:
    """Return a summary for the terminal."""
    rejected = ", ".join(f"{reason} {count}" for reason, count in result.num_rejected.items()) or "none"
    return (
        f"files     {result.num_files}, {result.num_bytes / 2**30:.3f} GiB, {result.num_asked} asked for now\n"
        f"rows      {result.num_rows}: {result.clips_path}\nrejected  {rejected}: {result.ledger_path}"
    )
