"""Files in folders and in buckets. The only file that imports an object-store client.

A path is a local path or a URL such as `s3://bucket/key`. Credentials and endpoint come from the environment alone
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, …) and appear in no message.

Every call goes through `_ask`, the one place where a store that is slow, throttles or cuts an answer short is asked
again, and where what it refuses is put into words: FileNotFoundError, PermissionError with the right that is missing,
or UnavailableError after the last try.
"""

from __future__ import annotations

import errno
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
from typing import IO, Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

T = TypeVar("T")

TRIES = 6
"""How often a store is asked for one thing, at least."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 8.0
OUTAGE_SECONDS = 180
"""How long a store may be gone while a run is under way."""
NUM_AHEAD = 8
"""Remote files that are on their way while one is used."""

_S3_OPTIONS = {
    "max_concurrency": 1,  # a clip is one GET, without a HEAD before it
    "use_listings_cache": False,  # other processes write to the same folders
    "config_kwargs": {"retries": {"total_max_attempts": 1}},  # `_ask` asks again, and nobody below it
}
_PASSING_CODES = {"SlowDown", "RequestTimeout", "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody"}
"""Answers with a status below 500 that another try may not get."""
_PASSING_ERRORS = (
    *("IncompleteReadError", "HTTPClientError", "EndpointConnectionError", "ConnectTimeoutError"),
    *("ResponseParserError", "ClientPayloadError"),
)
"""Names of botocore's and aiohttp's errors that another try may not get."""
_RIGHTS = {
    "HeadObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
}
"""The right that a call needs, where it is not named like the call."""

_jitter = random.Random()
_patience = {"seconds": 0.0}
_repeated: deque[str] = deque()


class UnavailableError(ConnectionError):
    """A store did not give or take something, however often it was asked."""


def be_patient(seconds: float) -> None:
    """From now on this process asks a store that fails again for so long: a run waits until the store is back."""
    _patience["seconds"] = seconds


def take_num_retries() -> int:
    """How often this process has asked a store again since this was called last."""
    count = len(_repeated)
    for _ in range(count):
        _repeated.popleft()
    return count


def is_remote(path: str) -> bool:
    """True for a URL, False for a path of this machine."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str) -> str:
    """`path` as every worker can use it: absolute if local, without a trailing slash."""
    return path.rstrip("/") if is_remote(path) else str(Path(path.removeprefix("file://")).expanduser().resolve())


def join(root: str, relative_path: str) -> str:
    """`relative_path` below `root`."""
    return f"{root.rstrip('/')}/{relative_path.lstrip('/')}"


def relative_to(path: str, root: str) -> str:
    """The part of `path` below `root`, with forward slashes. A path elsewhere is refused."""
    prefix = root.rstrip("/") + "/"
    if not path.startswith(prefix):
        raise ValueError(f"{path} does not lie below {root}")
    return path[len(prefix) :]


def exists(path: str) -> bool:
    """True if there is a file, a folder or a key prefix at `path`."""
    return _ask(path, lambda store, inner: store.exists(inner))


def is_folder(path: str) -> bool:
    """True if `path` is a folder or a key prefix."""
    return _ask(path, lambda store, inner: store.isdir(inner))


def num_bytes(path: str) -> int:
    """Size of a file."""
    return _ask(path, lambda store, inner: int(store.size(inner) or 0))


def read_bytes(path: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes [start, stop) of a file; the whole file by default. FileNotFoundError names the path."""
    return _ask(path, lambda store, inner: store.cat_file(inner, start=start, end=stop))


def ahead(reads: Iterable[tuple[str, Callable[[], T]]]) -> Iterator[Callable[[], T]]:
    """Of each pair (path, function that reads from it) a function that gives or raises what that one does.

    Remote files are fetched while those before them are used, so that a distant store costs its latency once.
    """
    with ThreadPoolExecutor(NUM_AHEAD) as pool:
        waiting: deque[Callable[[], T]] = deque()
        for path, read in reads:
            waiting.append(pool.submit(read).result if is_remote(path) else read)
            if len(waiting) > NUM_AHEAD:
                yield waiting.popleft()
        yield from waiting


def read_with(path: str, function: Callable[[IO[bytes]], T]) -> T:
    """`function` of a file that it may read here and there; of a remote one only the blocks it reads are fetched."""

    def call(store: Any, inner: str) -> T:
        with store.open(inner, "rb") as file:
            return function(file)

    return _ask(path, call)


def list_files(root: str) -> list[str]:
    """Paths of all files below `root` relative to it, sorted; hidden files and folders are left out."""
    return sorted(_details(root))


def fingerprints(root: str) -> dict[str, str]:
    """Path below `root` → size and version (ETag, or time of change) of each file that `list_files` lists."""
    return {
        path: f"{detail.get('size')} {detail.get('ETag') or detail.get('mtime')}"
        for path, detail in sorted(_details(root).items())
    }


def write_bytes_atomic(path: str, data: bytes) -> None:
    """`path` holds `data` or what it held before, never a part. Missing local folders are made."""
    if is_remote(path):  # one PUT, or a multipart upload that is committed at its end
        _ask(path, lambda store, inner: store.pipe_file(inner, data))
    else:
        _ask(path, lambda _, inner: _replace(Path(inner), data))


def write_table(path: str, table: pa.Table, **options: Any) -> None:
    """`path` holds `table` as a Parquet file, written whole or not at all; `options` are those of Parquet's writer."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", **options)
    write_bytes_atomic(path, buffer.getvalue())


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """The Parquet file at `path`, or some of its columns. FileNotFoundError names the path."""
    return pq.read_table(io.BytesIO(read_bytes(path)), columns=columns)


def upload_folder(folder: str, path: str) -> None:
    """The files of a local folder below `path`. What is there before the last of them is not the whole."""
    for name in list_files(folder):
        target = join(path, name)
        if not is_remote(target):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        _ask(target, lambda store, inner, name=name: store.put_file(join(folder, name), inner))


def remove(path: str) -> None:
    """There is no file at `path` afterwards; none before is fine."""
    with suppress(FileNotFoundError):
        _ask(path, lambda store, inner: store.rm_file(inner))


def remove_folder(path: str) -> None:
    """There is nothing at or below `path` afterwards; nothing before is fine."""
    with suppress(FileNotFoundError):
        _ask(path, lambda store, inner: store.rm(inner, recursive=True))


def check_readable(path: str) -> None:
    """Nothing, if a file, folder or bucket can be read; otherwise an error that names it and the remedy."""
    _ask(path, lambda store, inner: store.info(inner))
    if not is_remote(path) and not os.access(absolute(path), os.R_OK | (os.X_OK if is_folder(path) else 0)):
        raise PermissionError(f"no permission to read {path}: give this user the right to read it")


def check_writable(path: str) -> None:
    """Nothing, if files can be written below the folder or bucket `path`; otherwise an error that names the remedy.

    A local folder is made if it is missing; one small file is written and removed.
    """
    name = f".writable-{uuid.uuid4().hex}"
    if not is_remote(path):
        _ask(path, lambda _, inner: Path(inner).mkdir(parents=True, exist_ok=True))
    _ask(path, lambda store, inner: store.pipe_file(join(inner, name), b""))
    _ask(path, lambda store, inner: store.rm_file(join(inner, name)))


@contextmanager
def temporary_bucket(url: str) -> Iterator[str]:
    """The URL of a bucket that is made, and removed at the end with all that is in it: for tests and measurements."""
    _ask(url, lambda store, inner: store.mkdir(inner))
    try:
        yield url
    finally:
        _ask(url, lambda store, inner: store.rm(inner, recursive=True))


def arrow_filesystem(path: str) -> tuple[pyarrow.fs.FileSystem | None, str]:
    """What Ray Train, which knows Arrow's file systems only, reaches `path` by, and the path inside it.

    None for this machine's own. Every call is repeated for about `OUTAGE_SECONDS` while the store fails.
    """
    if not is_remote(path):
        return None, absolute(path)
    store, inner = _resolve(path)
    handler = _PatientS3() if path.startswith(("s3://", "s3a://")) else pyarrow.fs.FSSpecHandler(store)
    return pyarrow.fs.PyFileSystem(handler), inner


class _PatientS3(pyarrow.fs.FSSpecHandler):
    """S3 for who does not go through `_ask`: botocore repeats instead, with pauses of up to 20 s, 10 on average."""

    def __init__(self) -> None:
        retries = {"mode": "standard", "total_max_attempts": 6 + OUTAGE_SECONDS // 10}
        store: Any = fsspec.filesystem("s3", config_kwargs={"retries": retries}, use_listings_cache=False)
        store.retries = 1
        super().__init__(store)

    def __reduce__(self) -> tuple[Any, ...]:
        return _PatientS3, ()


def pause_seconds(retry: int, draw: float) -> float:
    """Length of the pause before the `retry`-th repetition, from 1: doubled each time, up to a bound.

    `draw` in [0, 1) takes up to half of it off, so that many workers do not come back at once.
    """
    return min(FIRST_PAUSE_SECONDS * 2 ** (retry - 1), LONGEST_PAUSE_SECONDS) * (1 - draw / 2)


def _ask(path: str, call: Callable[[Any, str], T]) -> T:
    """What `call(store, path in the store)` returns, at one of `TRIES` tries or of those that patience allows."""
    store, inner = _resolve(path)
    tries, given_up = 0, time.monotonic() + _patience["seconds"]
    while True:
        try:
            return call(store, inner)
        except Exception as error:
            tries += 1
            if not (is_remote(path) and _may_pass(error)):
                if worded := _in_words(error, path):
                    raise worded from error
                raise
            if tries >= TRIES and time.monotonic() > given_up:
                raise UnavailableError(
                    f"{path}: the store failed {tries} times, at last with {_answer(error)}; try again later, and "
                    "check AWS_ENDPOINT_URL if it never answers"
                ) from error
        _repeated.append(path)
        time.sleep(pause_seconds(tries, _jitter.random()))


def _resolve(path: str) -> tuple[Any, str]:
    is_s3 = path.startswith(("s3://", "s3a://"))
    try:
        store, inner = fsspec.url_to_fs(path, **_S3_OPTIONS if is_s3 else {})
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path}: {error}; use a local path or s3://bucket/key") from error
    if is_s3:
        store.retries = 1
    return store, inner


def _may_pass(error: Exception) -> bool:
    """True if another try may succeed: the store is busy or broken for the moment, or the line was."""
    refusal = _refusal(error)
    if refusal is None:
        return isinstance(error, (TimeoutError, ConnectionError)) or _is_of_client(error, *_PASSING_ERRORS)
    status = refusal.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return _code(refusal) in _PASSING_CODES or status == 429 or (status >= 500 and status != 501)


def _in_words(error: Exception, path: str) -> Exception | None:
    """One of a store's errors with the path and what to do; None where its own words are the best."""
    refusal = _refusal(error)
    if refusal and _code(refusal) in ("411", "MissingContentLength"):
        return ConnectionError(_no_checksums(path))
    match error:
        case FileNotFoundError():
            return FileNotFoundError(_missing(path))
        case PermissionError():
            return PermissionError(f"no permission for {path}: {_missing_right(refusal, path)}")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return OSError(error.errno, f"no space left for {path}: make room there, and give the same command again")
        case NotADirectoryError() | FileExistsError():
            return NotADirectoryError(f"a part of {path} is a file, not a folder: choose another path")
        case _ if _is_of_client(error, "NoCredentialsError", "PartialCredentialsError"):
            return PermissionError(f"no credentials for {path}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        case _ if _is_of_client(error, "SSLError"):
            return ConnectionError(f"no secure connection for {path}: check AWS_ENDPOINT_URL and AWS_CA_BUNDLE")
        case _ if _is_of_client(error, "ParamValidationError"):
            return ValueError(f"{path} names no bucket and key: {error}")
    return None


def _missing_right(refusal: Any, path: str) -> str:
    """Which call was refused, and which right or credential would let it through."""
    if not is_remote(path):
        return "give this user the right"
    if refusal is None:
        return "check the credentials in the environment and the rights that they have there"
    code, call = _code(refusal), refusal.operation_name
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
        return (
            f"the store does not accept the key ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_SESSION_TOKEN"
        )
    if code == "RequestTimeTooSkewed":
        return "the clocks of this machine and of the store are too far apart: set this one"
    right = _RIGHTS.get(call, f"s3:{call}")
    where = f"s3://{_bucket(path)}" if right == "s3:ListBucket" else path
    words = f"{call} was refused ({code}); give this key the right {right} on {where}"
    if right == "s3:GetObject":
        words += f", and s3:ListBucket on s3://{_bucket(path)}, without which a missing key looks the same"
    return words + (", or check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if code == "403" else "")


def _refusal(error: Exception) -> Any:
    """The answer of an S3 store behind an error, if there was one."""
    return next((one for one in (error, error.__cause__) if _is_of_client(one, "ClientError")), None)


def _is_of_client(error: BaseException | None, *names: str) -> bool:
    """True for an error of the S3 client with one of these names. By name: only who uses S3 needs the client."""
    kinds = type(error).__mro__
    return any(kind.__module__.split(".")[0] in ("botocore", "aiohttp") and kind.__name__ in names for kind in kinds)


def _code(refusal: Any) -> str:
    return str(refusal.response.get("Error", {}).get("Code", ""))


def _answer(error: Exception) -> str:
    refusal = _refusal(error)
    return f"{_code(refusal)} for {refusal.operation_name}" if refusal else type(error).__name__


def _no_checksums(path: str) -> str:
    return (
        f"the store of {path} wants no checksums behind the data (HTTP 411), as Ceph and older MinIO do: set "
        "AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required, here "
        "and on every node, and start again"
    )


def _details(root: str) -> dict[str, dict[str, Any]]:
    """Path below `root` → what the store says of it, without hidden files and folders."""
    found = _ask(root, lambda store, inner: (inner.rstrip("/") + "/", store.find(inner, detail=True)))
    paths = {str(path).removeprefix(found[0]): detail for path, detail in found[1].items()}
    return {path: detail for path, detail in paths.items() if not _is_hidden(path)}


def _replace(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _bucket(path: str) -> str:
    return path.split("://", 1)[1].split("/", 1)[0]


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _missing(path: str) -> str:
    if is_remote(path):
        return f"{path} does not exist: check that there is a bucket {_bucket(path)!r} and that the key is spelt right"
    parent = next((str(p) for p in Path(path).absolute().parents if p.exists()), "/")
    return f"{path} does not exist (the nearest folder that does is {parent}): check the path"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
