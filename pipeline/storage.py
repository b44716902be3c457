"""Files in folders and in buckets. The only file that imports an object-store client.

A path is a local path or a URL such as `s3://bucket/key`. Credentials and endpoint come from the environment alone
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, …) and appear in no message.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow.fs


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
    filesystem, inner = _resolve(path)
    with _named(path):
        return filesystem.exists(inner)


def is_folder(path: str) -> bool:
    """True if `path` is a folder or a key prefix."""
    filesystem, inner = _resolve(path)
    with _named(path):
        return filesystem.isdir(inner)


def num_bytes(path: str) -> int:
    """Size of a file."""
    filesystem, inner = _resolve(path)
    with _named(path):
        return int(filesystem.size(inner) or 0)


def read_bytes(path: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes [start, stop) of a file; the whole file by default. FileNotFoundError names the path."""
    filesystem, inner = _resolve(path)
    with _named(path):
        return filesystem.cat_file(inner, start=start, end=stop)


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file to read here and there; of a remote one only the blocks that are read are fetched."""
    filesystem, inner = _resolve(path)
    with _named(path), filesystem.open(inner, "rb") as file:
        yield file


def list_files(root: str) -> list[str]:
    """Paths of all files below `root` relative to it, sorted; hidden files and folders are left out."""
    filesystem, inner = _resolve(root)
    prefix = inner.rstrip("/") + "/"
    with _named(root):
        found = [str(path).removeprefix(prefix) for path in filesystem.find(inner)]
    return sorted(path for path in found if not _is_hidden(path))


def fingerprints(root: str) -> dict[str, str]:
    """Path below `root` → size and version (ETag, or time of change) of each file that `list_files` lists."""
    filesystem, inner = _resolve(root)
    prefix = inner.rstrip("/") + "/"
    with _named(root):
        details = filesystem.find(inner, detail=True)
    files = {str(path).removeprefix(prefix): detail for path, detail in details.items()}
    return {
        path: f"{files[path].get('size')} {files[path].get('ETag') or files[path].get('mtime')}"
        for path in sorted(files)
        if not _is_hidden(path)
    }


def write_bytes_atomic(path: str, data: bytes) -> None:
    """`path` holds `data` or what it held before, never a part. Missing local folders are made."""
    filesystem, inner = _resolve(path)
    if is_remote(path):
        with _named(path):
            filesystem.pipe_file(inner, data)  # one PUT, or a multipart upload that is committed at its end
        return
    target = Path(inner)
    with _named(path):
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


def remove(path: str) -> None:
    """There is no file at `path` afterwards; none before is fine."""
    filesystem, inner = _resolve(path)
    with _named(path):
        if filesystem.exists(inner):
            filesystem.rm_file(inner)


def check_readable(path: str) -> None:
    """Nothing, if a file, folder or bucket can be read; otherwise an error that names it and the remedy."""
    filesystem, inner = _resolve(path)
    if is_remote(path):
        with _named(path):
            if not filesystem.exists(inner):
                raise FileNotFoundError(_missing(path))
        return
    if not Path(inner).exists():
        raise FileNotFoundError(_missing(path))
    if not os.access(inner, os.R_OK | (os.X_OK if Path(inner).is_dir() else 0)):
        raise PermissionError(f"no permission to read {path}: give this user the right to read it")


def check_writable(path: str) -> None:
    """Nothing, if files can be written below the folder or bucket `path`; otherwise an error that names the remedy.

    A local folder is made if it is missing; one small file is written and removed.
    """
    probe = join(path, f".writable-{uuid.uuid4().hex}")
    filesystem, inner = _resolve(probe)
    with _named(path):
        if not is_remote(path):
            Path(inner).parent.mkdir(parents=True, exist_ok=True)
        filesystem.pipe_file(inner, b"")
        filesystem.rm_file(inner)


def check_uploads(path: str) -> None:
    """Nothing, if Ray Train can upload checkpoints below `path`; otherwise an error that names the remedy.

    Ray Train writes with Arrow's own client, which sends checksums behind the data. Ceph and older MinIO answer that
    with HTTP 411, and would do so when the first checkpoint is due.
    """
    if not path.startswith("s3://"):
        return
    probe = join(path, f".writable-{uuid.uuid4().hex}")
    store, inner = pyarrow.fs.FileSystem.from_uri(probe)
    try:
        with store.open_output_stream(inner) as file:
            file.write(b"\0")
        store.delete_file(inner)
    except OSError as error:
        if "HTTP status 411" not in str(error):
            raise
        raise ConnectionError(
            f"the store of {path} wants no checksums behind the data (HTTP 411), as Ceph and older MinIO do: set "
            "AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required, here "
            "and on every node, and start again"
        ) from error


def _resolve(path: str) -> tuple[Any, str]:
    try:
        return fsspec.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path}: {error}; use a local path or s3://bucket/key") from error


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors of the store are raised again with the path and what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(_missing(path)) from error
    except PermissionError as error:
        rights = "check the AWS_* variables and the bucket's policy" if is_remote(path) else "give this user the right"
        raise PermissionError(f"no permission for {path}: {rights}") from error
    except (NotADirectoryError, FileExistsError) as error:
        raise NotADirectoryError(f"a part of {path} is a file, not a folder: choose another path") from error
    except Exception as error:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            raise PermissionError(
                f"no credentials for {path}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        if type(error).__name__ == "EndpointConnectionError":
            raise ConnectionError(f"the store of {path} does not answer: check AWS_ENDPOINT_URL") from error
        raise


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _missing(path: str) -> str:
    if is_remote(path):
        bucket = path.split("://", 1)[1].split("/", 1)[0]
        return f"{path} does not exist: check that there is a bucket {bucket!r} and that the key is spelt right"
    parent = next((str(p) for p in Path(path).absolute().parents if p.exists()), "/")
    return f"{path} does not exist (the nearest folder that does is {parent}): check the path"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
