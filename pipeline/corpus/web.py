"""Download files from untrusted URLs, and name them below a root.

A list of URLs may name anything, so private addresses are rejected before a byte is sent, also after redirects. So are
other schemes, web pages in place of files, and downloads beyond a size or a time.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import ipaddress
import posixpath
import random
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pipeline import storage
from pipeline.corpus.media import kind_of
from pipeline.records import DecodeError, Reason
from pipeline.redaction import without_secrets

MISSING_STATUS = frozenset({404, 410, 451})
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Status codes after which a retry may succeed."""
SIGNATURES = re.compile(
    r"(?i)x-(amz|goog)-.*|signature|sig|policy|key-pair-id|expires|awsaccesskeyid|googleaccessid|.*token|s[etvprk]"
)
"""Query parameters of presigned URLs: they vary for the same file."""
_CHUNK_BYTES = 2**20
_STEM = 60
"""Largest number of characters kept of a host name or stem."""


@dataclass(frozen=True, kw_only=True)
class WebLimits:
    """Limits of one download, and which hosts are allowed."""

    max_gib: float = 4.0
    """Largest file."""
    seconds: float = 900.0
    """Longest download."""
    timeout_seconds: float = 30.0
    """Longest silence of a host."""
    tries: int = 5
    """Requests at most, with growing pauses."""
    allow_private: bool = False
    """Also take addresses of this machine and of private networks, and use the proxy that the environment names."""

    def __post_init__(self) -> None:
        for name in ("max_gib", "seconds", "timeout_seconds", "tries"):
            if getattr(self, name) <= 0:
                raise ValueError(f"limits.{name} must be above 0, got {getattr(self, name)}")


def address_of(url: str) -> str:
    """Return the identity of a file on the web: its URL without fragment, login and signature."""
    parts = urlsplit(url)
    query = [f"{name}={value}" for name, value in parse_qsl(parts.query) if not SIGNATURES.fullmatch(name)]
    return f"{parts.scheme}://{_host(parts.netloc)}{parts.path}{'?' * bool(query)}{'&'.join(query)}"


def name_of_url(url: str, suffix: str = ".mp4") -> str:
    """Return the path of a URL's file below a root, HOST/XX/STEM-HASH.SUFFIX, a function of `address_of`.

    `suffix`: used if the URL has none of a video or image.
    """
    parts = urlsplit(url)
    digest = hashlib.blake2b(address_of(url).encode(), digest_size=8).hexdigest()
    stem, ending = posixpath.splitext(posixpath.basename(unquote(parts.path)))
    ending = ending.lower() if kind_of(f"x{ending}") else suffix
    host, stem = (re.sub(r"[^\w-]+", "_", part)[:_STEM].strip("_") for part in (_host(parts.netloc), stem))
    return f"{host or 'host'}/{digest[:2]}/{stem or 'file'}-{digest}{ending}"


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2].lower()


def copy_url(
    url: str, file: io.BufferedIOBase, limits: WebLimits, sleep: Callable[[float], None] = time.sleep
) -> tuple[int, str]:
    """Download the file at a URL (http, https, or of a store) to `file`; return its size and its SHA-256 in hex.

    DecodeError: `missing`; `refused`: the URL, its host or its content is not allowed; `timeout`; `unavailable`: after
    the last retry, or for another HTTP error.
    """
    scheme = urlsplit(url).scheme
    if scheme not in ("http", "https"):
        return _copy_stored(url, file, limits)
    problem = ""
    for number in range(1, limits.tries + 1):
        file.seek(0)
        file.truncate()
        after = 0.0
        try:
            return _copy_web(url, file, limits)
        except urllib.error.HTTPError as error:
            problem, after = f"HTTP {error.code} {error.reason}", retry_after_seconds(error)
            error.close()
            if error.code not in TRANSIENT_STATUS:
                of_others = Reason.REFUSED if error.code < 400 else Reason.UNAVAILABLE  # unfollowed redirect
                reason = Reason.MISSING if error.code in MISSING_STATUS else of_others
                raise DecodeError(reason, problem) from None
        except http.client.InvalidURL:  # its message may contain a password
            raise DecodeError(Reason.REFUSED, "no URL of a host and a path") from None
        except (OSError, http.client.HTTPException) as error:  # connection failed or lost, or timeout
            reason = getattr(error, "reason", None)
            problem = f"{type(reason or error).__name__}: {reason or error}"
        if number < limits.tries:
            sleep(max(after, storage.pause_seconds(number, random.random())))
    raise DecodeError(Reason.UNAVAILABLE, without_secrets(f"no answer to {limits.tries} requests, at last {problem}"))


def _copy_web(url: str, file: io.BufferedIOBase, limits: WebLimits) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"User-Agent": "snps3", "Accept": "*/*"})
    with opener(allow_private=limits.allow_private).open(request, timeout=limits.timeout_seconds) as response:
        if response.headers.get_content_type() == "text/html":
            raise DecodeError(Reason.REFUSED, "a page, not a file")
        length = response.headers.get("Content-Length")
        num_bytes, digest = copy_limited(response, file, limits, int(length) if (length or "").isdigit() else None)
    if (length or "").isdigit() and num_bytes != int(length):
        raise ConnectionError(f"{num_bytes} of {length} bytes came")
    return num_bytes, digest


def copy_limited(source: Any, file: io.BufferedIOBase, limits: WebLimits, length: int | None = None) -> tuple[int, str]:
    """Copy `source` to `file`; return its size and SHA-256. DecodeError beyond the limits."""
    max_bytes, deadline = limits.max_gib * 2**30, time.monotonic() + limits.seconds
    num_bytes, digest = length or 0, hashlib.sha256()
    read = getattr(source, "read1", source.read)  # `read` would block for a whole chunk, past the deadline
    if num_bytes <= max_bytes:
        num_bytes = 0
        while num_bytes <= max_bytes and (chunk := read(_CHUNK_BYTES)):
            file.write(chunk)
            digest.update(chunk)
            num_bytes += len(chunk)
            if time.monotonic() > deadline:
                raise DecodeError(Reason.TIMEOUT, f"not here within {limits.seconds:g} s: raise --limits.seconds")
    if num_bytes > max_bytes:
        raise DecodeError(Reason.REFUSED, f"more than {limits.max_gib:g} GiB: raise --limits.max-gib")
    return num_bytes, digest.hexdigest()


def _copy_stored(url: str, file: io.BufferedIOBase, limits: WebLimits) -> tuple[int, str]:
    def copy(source: IO[bytes]) -> tuple[int, str]:
        file.seek(0)
        file.truncate()
        return copy_limited(source, file, limits)

    try:
        return storage.read_with(url, copy)
    except FileNotFoundError as error:
        raise DecodeError(Reason.MISSING, str(error)) from error
    except storage.UnavailableError as error:
        raise DecodeError(Reason.UNAVAILABLE, str(error)) from error
    except (PermissionError, IsADirectoryError, ValueError) as error:
        raise DecodeError(Reason.UNAVAILABLE, str(error)) from error


def retry_after_seconds(error: urllib.error.HTTPError) -> float:
    """Return the seconds of the header Retry-After, at most 60; 0 if there is none."""
    try:
        return min(60.0, float(error.headers.get("Retry-After", 0)))
    except ValueError:  # a date
        return 0.0


# --- addresses --------------------------------------------------------------------------------------------------------


def is_public(address: str) -> bool:
    """Return whether an IP address is public."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
    return ip.is_global and not ip.is_multicast


def open_public_connection(host: str, port: int, timeout: float | None) -> socket.socket:
    """Connect to a host all of whose addresses are public. DecodeError for any other host.

    The name is resolved once and the checked addresses are used, which defeats DNS rebinding.
    """
    addresses = [str(place[4][0]) for place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if private := [address for address in addresses if not is_public(address)]:
        remedy = "--limits.allow-private takes it"
        raise DecodeError(Reason.REFUSED, f"{host} is {private[0]}, which is no public address: {remedy}")
    problem: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout)
        except OSError as error:
            problem = error
    raise problem or OSError(f"{host} has no address")


class _PublicHTTP(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = open_public_connection(self.host, self.port, self.timeout)


class _PublicHTTPS(http.client.HTTPSConnection):
    def connect(self) -> None:
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(
            open_public_connection(self.host, self.port, self.timeout), server_hostname=self.host
        )


class _PublicHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_PublicHTTP, req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_PublicHTTPS, req)


class _SameScheme(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in (old, "https"):
            fp.close()
            raise DecodeError(Reason.REFUSED, f"leads from {old} to {new}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener(*, allow_private: bool) -> urllib.request.OpenerDirector:
    """Return a URL opener: without proxy and only for public addresses, unless private ones are allowed."""
    if allow_private:
        return urllib.request.build_opener(_SameScheme)
    return urllib.request.build_opener(_SameScheme, _PublicHandler, urllib.request.ProxyHandler({}))
