"""Interpret a store's errors: whether a retry may succeed, and which message to show. The only file that imports
botocore, and only after a remote store has failed."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody"}
"""Error codes with a status below 500 that are transient."""
_CONDITION_CODES = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
"""Error codes of a conditional PUT whose condition did not hold."""
_RIGHTS = {
    "HeadObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
}
"""Call → the permission it needs, if the two have different names."""


class RetryBudget:
    """How long this process retries a failing store, and its number of retries; shared by all threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock, self._count = threading.Lock(), 0

    def count(self) -> None:
        """Count a retry."""
        with self._lock:
            self._count += 1

    def pop(self) -> int:
        """Return the number of retries since the last call."""
        with self._lock:
            count, self._count = self._count, 0
        return count


def is_remote(path: str) -> bool:
    """Return whether `path` is a URL, not a path on this machine."""
    return "://" in path and not path.startswith("file://")


def is_surrogate(path: str) -> bool:
    """Return whether a name on a local disk is not UTF-8, so that no manifest can hold it."""
    return any("\udc80" <= character <= "\udcff" for character in path)


def refuse_special(path: str, inner: str) -> None:
    """Raise OSError for a local pipe, socket or device: reading it may block forever."""
    if not is_remote(path) and not stat.S_ISREG(mode := os.stat(inner).st_mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{path} is a pipe, socket or device, not a file")


def is_transient(error: Exception) -> bool:
    """Return whether a retry may succeed: the remote store or the connection failed temporarily."""
    if (status := _hub_status(error)) is not None or not _has_s3():
        return status == 429 or (status or 0) >= 500 or isinstance(error, TimeoutError | ConnectionError)
    refusal = _refusal(error)
    if refusal is None:
        from aiohttp import ClientPayloadError
        from botocore import exceptions as boto
        from botocore.parsers import ResponseParserError

        passing = (TimeoutError, ConnectionError, ClientPayloadError, ResponseParserError, boto.IncompleteReadError)
        passing += (boto.HTTPClientError, boto.EndpointConnectionError, boto.ConnectTimeoutError)
        return isinstance(error, passing)
    status = refusal.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return _code(refusal) in _TRANSIENT_CODES or status == 429 or (status >= 500 and status != 501)


def is_failed_condition(error: Exception) -> bool:
    """Return whether a store rejected a conditional write because its condition did not hold."""
    refusal = _refusal(error)
    return refusal is not None and _code(refusal) in _CONDITION_CODES


@contextlib.contextmanager
def empty_past_end(path: str) -> Iterator[None]:
    """Suppress the error of a remote store that a file has no byte of the requested range."""
    try:
        yield
    except OSError as error:
        refusal = _refusal(error) if is_remote(path) else None
        if not refusal or _code(refusal) not in ("InvalidRange", "416"):
            raise


def as_user_error(error: Exception, path: str) -> Exception | None:
    """Return a store's error reworded, with path and remedy; None if the original message is best."""
    refusal = _refusal(error) if is_remote(path) else None
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
    return _remote_as_user_error(error, path) if is_remote(path) else None


def _remote_as_user_error(error: Exception, path: str) -> Exception | None:
    if _hub_status(error) in (401, 403):
        remedy = "set HF_TOKEN, and accept the terms of a gated data set on its page"
        return PermissionError(f"no permission for {path}: {remedy}")
    if not _has_s3():
        return None
    from botocore import exceptions as boto

    match error:
        case boto.NoCredentialsError() | boto.PartialCredentialsError():
            keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            return PermissionError(f"no credentials for {path}: set {keys}, or for a public bucket FSSPEC_S3_ANON=true")
        case boto.SSLError():
            return ConnectionError(f"no secure connection for {path}: check AWS_ENDPOINT_URL and AWS_CA_BUNDLE")
        case boto.ParamValidationError():
            return ValueError(f"{path} names no bucket and key: {error}")
    return None


def _missing_right(refusal: ClientError | None, path: str) -> str:
    """Describe which call was refused, and which permission or credential it needs."""
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
    words += ", or check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if code == "403" else ""
    is_read = right in ("s3:GetObject", "s3:ListBucket")
    return words + ("; where the requester pays, set FSSPEC_S3_REQUESTER_PAYS=true" if is_read else "")


def _hub_status(error: Exception) -> int | None:
    """Return the HTTP status of a hub's error; None for other errors."""
    status = getattr(getattr(error, "response", None), "status_code", None)  # S3's response is a dictionary
    return status if isinstance(status, int) else None


def _has_s3() -> bool:
    return importlib.util.find_spec("botocore") is not None


def _refusal(error: Exception) -> ClientError | None:
    """Return the S3 error behind an exception; None if there is none."""
    if not _has_s3():
        return None
    from botocore.exceptions import ClientError

    return next((cause for cause in (error, error.__cause__) if isinstance(cause, ClientError)), None)


def _code(refusal: ClientError) -> str:
    return str(refusal.response.get("Error", {}).get("Code", ""))


def summarise(error: Exception) -> str:
    """Summarise a store's error in a few words."""
    refusal = _refusal(error)
    return f"{_code(refusal)} for {refusal.operation_name}" if refusal else type(error).__name__


def _no_checksums(path: str) -> str:
    return (
        f"the store of {path} wants no checksums behind the data (HTTP 411), as Ceph and older MinIO do: set "
        "AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required, here "
        "and on every node, and start again"
    )


def _bucket(path: str) -> str:
    return path.split("://", 1)[1].split("/", 1)[0]


def _missing(path: str) -> str:
    if is_remote(path):
        return f"{path} does not exist: check that there is a bucket {_bucket(path)!r} and that the key is spelt right"
    parent = next((str(p) for p in Path(path).absolute().parents if p.exists()), "/")
    return f"{path} does not exist (the nearest folder that does is {parent}): check the path"
