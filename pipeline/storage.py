"""Files in folders and buckets. The only file that imports an object-store client.

A path is a local path or a URL such as `s3://bucket/key`. Credentials and endpoint come only from the environment
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, …) and never appear in a message.

Every call goes through `_with_retries`, the only place that retries when a store is slow, throttles or truncates an
answer, and that rewords errors: FileNotFoundError, PermissionError with the missing permission, or UnavailableError
after the last retry.
"""

from __future__ import annotations

import fcntl
import functools
import io
import os
import random
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import fsspec

from pipeline import storage_errors, storage_pages
from pipeline.storage_errors import is_remote, is_surrogate

if TYPE_CHECKING:  # importing Arrow is slow, and not needed to handle paths
    import pyarrow as pa
    import pyarrow.fs

T = TypeVar("T")

TRIES = 6
"""Smallest number of attempts per request to a failing store."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 8.0
OUTAGE_SECONDS = 180
"""How long a store may be unreachable during a run."""
NUM_PREFETCHED = 8
"""Number of remote files that are prefetched while one is used."""

_S3_OPTIONS = {
    "max_concurrency": 1,  # a clip is one GET, without a HEAD before it
    "use_listings_cache": False,  # other processes write to the same folders
    "config_kwargs": {"retries": {"total_max_attempts": 1}},  # only `_with_retries` retries
}
_COLONS = "\0\0"
"""Replaces `::` while fsspec parses a path; no name contains it."""
_jitter = random.Random()


class UnavailableError(ConnectionError):
    """Raised if a store still fails after all retries."""


_retries = storage_errors.RetryBudget()


def set_retry_seconds(seconds: float) -> None:
    """Set how long this process retries a failing store: a run waits until the store is back."""
    _retries.seconds = seconds


def pop_retry_count() -> int:
    """Return this process's number of retries since the last call."""
    return _retries.pop()


def absolute(path: str) -> str:
    """Return `path` in a form valid for every worker: absolute if local, without a trailing slash."""
    return path.rstrip("/") if is_remote(path) else str(Path(path.removeprefix("file://")).expanduser().resolve())


def join(root: str, relative_path: str) -> str:
    """Return `relative_path` below `root`."""
    return f"{root.rstrip('/')}/{relative_path.lstrip('/')}"


def relative_to(path: str, root: str) -> str:
    """Return `path` relative to `root`, with forward slashes. ValueError if it is not below `root`."""
    prefix = root.rstrip("/") + "/"
    if not path.startswith(prefix):
        raise ValueError(f"{path} does not lie below {root}")
    return path[len(prefix) :]


def exists(path: str) -> bool:
    """Return whether `path` is an existing file, folder or key prefix."""
    return _with_retries(path, lambda store, inner: store.exists(inner))


def is_folder(path: str) -> bool:
    """Return whether `path` is a folder or a key prefix."""
    return _with_retries(path, lambda store, inner: store.isdir(inner))


def read_bytes(path: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Read the bytes [start, stop) of a file that exist; by default all. FileNotFoundError names the path."""

    def call(store: Any, inner: str) -> bytes:
        storage_errors.refuse_special(path, inner)
        with storage_errors.empty_past_end(path):
            return store.cat_file(inner, start=start, end=stop)
        return b""

    return _with_retries(path, call)


def prefetched(reads: Iterable[tuple[str, Callable[[], T]]]) -> Iterator[Callable[[], T]]:
    """Prefetch: for each pair (path, read), yield a function with the result or exception of `read`.

    Remote files are fetched while those before them are used, so that the latency of a store is paid only once.
    """
    with ThreadPoolExecutor(NUM_PREFETCHED) as pool:
        waiting: deque[Callable[[], T]] = deque()
        for path, read in reads:
            waiting.append(pool.submit(read).result if is_remote(path) else read)
            if len(waiting) > NUM_PREFETCHED:
                yield waiting.popleft()
        yield from waiting


def read_with(path: str, function: Callable[[IO[bytes]], T]) -> T:
    """Apply `function` to an open file. Of a remote file, only the blocks that it reads are fetched."""

    def call(store: Any, inner: str) -> T:
        storage_errors.refuse_special(path, inner)
        with store.open(inner, "rb") as file:
            return function(file)

    return _with_retries(path, call)


def list_files(root: str) -> list[str]:
    """Return the paths of all files below `root`, relative to it and sorted, except hidden files and folders.

    Names that are not UTF-8 and links to folders are skipped, too; see `sources.find_skipped`.
    """
    return [path for path, _ in iter_versions(root) if not is_surrogate(path)]


def file_versions(root: str) -> dict[str, str]:
    """Return path below `root` → size and version of each file, as in `iter_versions`."""
    return dict(iter_versions(root))


def iter_versions(root: str) -> Iterator[tuple[str, str]]:
    """Yield path below `root`, and size and version (ETag or modification time), of each visible file, sorted.

    A bucket is listed page by page, a local tree folder by folder.
    """
    if _is_s3(root):
        files = storage_pages.s3_files(functools.partial(_with_retries, root))
    elif not is_remote(root) and Path(absolute(root)).is_dir():
        files = storage_pages.local_files(absolute(root))
    else:
        inner, details = _with_retries(
            root, lambda store, inner: (inner.rstrip("/") + "/", store.find(inner, detail=True))
        )
        files = (
            (
                str(path).removeprefix(inner),
                f"{detail.get('size')} {detail.get('ETag') or detail.get('blob_id') or detail.get('mtime')}",
            )
            for path, detail in sorted(details.items())
        )
    return ((path, version) for path, version in files if not _is_hidden(path))


def write_bytes_atomic(path: str, data: bytes) -> None:
    """Write `data` to `path` atomically. Missing local folders are created."""
    if is_remote(path):  # one PUT, or a multipart upload that is committed at its end
        _with_retries(path, lambda store, inner: store.pipe_file(inner, data))
    else:
        _with_retries(path, lambda _, inner: _replace(Path(inner), data))


def write_if_unchanged(path: str, data: bytes, previous: bytes | None) -> bool:
    """Compare and swap: write `data` to `path` if it holds `previous` (None: no file); return whether it was written.

    Atomic by a lock file on local disks and by a conditional PUT on S3. Other stores compare and then write, so two
    writers may both succeed: read again after a moment to see which one won. A retried PUT may be rejected although the
    first one succeeded: read again then, too.
    """
    if not is_remote(path):
        return _with_retries(path, lambda _, inner: _replace_if_unchanged(Path(inner), data, previous))

    def call(store: Any, inner: str) -> bool:
        try:
            tag = store.info(inner).get("ETag")  # before reading, so that any later change fails the PUT
            current = store.cat_file(inner)
        except FileNotFoundError:
            tag = current = None
        if current != previous:
            return False
        if not path.startswith(("s3://", "s3a://")):
            store.pipe_file(inner, data)
            return True
        if tag is None:
            return _put_if(store, inner, data, IfNoneMatch="*")
        # Ceph compares the tag without quotes, others with quotes; a rejected PUT changes nothing
        return any(_put_if(store, inner, data, IfMatch=form) for form in (tag.strip('"'), tag))

    return _with_retries(path, call)


def write_table(path: str, table: pa.Table, **options: Any) -> None:
    """Write `table` to `path` as a Parquet file, atomically; `options` are passed to the Parquet writer."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", **options)
    write_bytes_atomic(path, buffer.getvalue())


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """Read the Parquet file at `path`, or some of its columns. FileNotFoundError names the path."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(read_bytes(path)), columns=columns)


def upload_folder(folder: str, path: str) -> None:
    """Copy the files of a local folder below `path`. Not atomic: until the last file, the copy is incomplete."""
    for name in list_files(folder):
        target = join(path, name)
        if not is_remote(target):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        _with_retries(target, lambda store, inner, name=name: store.put_file(join(folder, name), inner))


def remove(path: str) -> None:
    """Remove the file at `path`, if it exists."""
    with suppress(FileNotFoundError):
        _with_retries(path, lambda store, inner: store.rm_file(inner))


def remove_folder(path: str) -> None:
    """Remove everything at or below `path`, if it exists."""
    with suppress(FileNotFoundError):
        _with_retries(path, lambda store, inner: store.rm(inner, recursive=True))


def check_readable(path: str) -> None:
    """Raise an error that names the remedy if a file, folder or bucket cannot be read."""
    _with_retries(path, lambda store, inner: store.info(inner))
    if not is_remote(path) and not os.access(absolute(path), os.R_OK | (os.X_OK if is_folder(path) else 0)):
        raise PermissionError(f"no permission to read {path}: give this user the right to read it")


def check_writable(path: str) -> None:
    """Raise an error that names the remedy if no files can be written below the folder or bucket `path`.

    A missing local folder is created; one small file is written and removed.
    """
    name = f".writable-{uuid.uuid4().hex}"
    if not is_remote(path):
        _with_retries(path, lambda _, inner: Path(inner).mkdir(parents=True, exist_ok=True))
    _with_retries(path, lambda store, inner: store.pipe_file(join(inner, name), b""))
    _with_retries(path, lambda store, inner: store.rm_file(join(inner, name)))


@contextmanager
def temporary_bucket(url: str) -> Iterator[str]:
    """Create a bucket, yield its URL, and remove it with all its content: for tests and benchmarks."""
    _with_retries(url, lambda store, inner: store.mkdir(inner))
    try:
        yield url
    finally:
        _with_retries(url, lambda store, inner: store.rm(inner, recursive=True))


def arrow_filesystem(path: str) -> tuple[pyarrow.fs.FileSystem | None, str]:
    """Return the Arrow file system of `path` for Ray Train, which supports no other kind, and the path inside it.

    None for the local file system. Calls are retried for about `OUTAGE_SECONDS` while the store fails.
    """
    if not is_remote(path):
        return None, absolute(path)
    from pyarrow import fs

    store, inner = _resolve(path)
    return fs.PyFileSystem(_s3_handler() if _is_s3(path) else fs.FSSpecHandler(store)), inner


def _s3_handler() -> pyarrow.fs.FSSpecHandler:
    """Return S3 for callers that bypass `_with_retries`: botocore retries, pausing up to 20 s, 10 s on average."""
    from pyarrow import fs

    class Handler(fs.FSSpecHandler):
        def __reduce__(self) -> tuple[Any, ...]:
            return _s3_handler, ()

    retries = {"mode": "standard", "total_max_attempts": 6 + OUTAGE_SECONDS // 10}
    store: Any = fsspec.filesystem("s3", config_kwargs={"retries": retries}, use_listings_cache=False)
    store.retries = 1
    return Handler(store)


def pause_seconds(retry: int, draw: float) -> float:
    """Return the pause before the `retry`-th retry, from 1: exponential backoff up to `LONGEST_PAUSE_SECONDS`.

    `draw` in [0, 1) is the jitter, which shortens it by up to a half, so that many workers do not retry at once.
    """
    return min(FIRST_PAUSE_SECONDS * 2 ** (retry - 1), LONGEST_PAUSE_SECONDS) * (1 - draw / 2)


def _with_retries(path: str, call: Callable[[Any, str], T]) -> T:
    """Return `call(store, path in the store)`. Transient failures are retried: `TRIES` attempts in all, or more until
    the retry budget is used up."""
    store, inner = _resolve(path)
    tries, given_up = 0, time.monotonic() + _retries.seconds
    while True:
        try:
            return call(store, inner)
        except Exception as error:
            tries += 1
            if not (is_remote(path) and storage_errors.is_transient(error)):
                if worded := storage_errors.as_user_error(error, path):
                    raise worded from error
                raise
            if tries >= TRIES and time.monotonic() > given_up:
                raise UnavailableError(
                    f"{path}: the store failed {tries} times, at last with {storage_errors.summarise(error)}; try "
                    "again later, and check AWS_ENDPOINT_URL if it never answers"
                ) from error
        _retries.count()
        time.sleep(pause_seconds(tries, _jitter.random()))


def _is_s3(path: str) -> bool:
    return path.startswith(("s3://", "s3a://"))


def _resolve(path: str) -> tuple[Any, str]:
    try:
        # fsspec would take `::` in a name for two nested stores
        store, inner = fsspec.url_to_fs(path.replace("::", _COLONS), **_S3_OPTIONS if _is_s3(path) else {})
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path}: {error}; use a local path or s3://bucket/key") from error
    if _is_s3(path):
        store.retries = 1
    return store, inner.replace(_COLONS, "::")


def _replace(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it readable only for the owner
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _put_if(store: Any, inner: str, data: bytes, **condition: str) -> bool:
    bucket, key, _ = store.split_path(inner)
    try:
        store.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
    except OSError as error:
        if not storage_errors.is_failed_condition(error):
            raise
        return False
    return True


def _replace_if_unchanged(target: Path, data: bytes, previous: bytes | None) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.name}.lock"), "ab") as lock:
        with suppress(OSError):  # some shared file systems cannot lock
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (target.read_bytes() if target.exists() else None) != previous:
            return False
        _replace(target, data)
    return True


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
