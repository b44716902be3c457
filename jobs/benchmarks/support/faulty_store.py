"""A store with faults: a proxy on loopback in front of a real S3 endpoint, for tests and the benchmark `s3-faults`.

Signatures stay valid, since the proxy forwards the `Host` that the client has signed.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ENDPOINT = "AWS_ENDPOINT_URL"
OWN_HEADERS = {"connection", "content-length", "date", "expect", "keep-alive", "server", "transfer-encoding"}
"""Headers that each side of the proxy writes for itself, in lower case."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults of the proxy; 0 switches a fault off."""

    slow_down_every: int = 0
    """Every n-th GET is answered 503 SlowDown, unless it is cut."""
    cut_every: int = 0
    """Every n-th GET gets only half of the announced body."""
    latency_seconds: float = 0.0
    """Pause before each answer."""
    put_refusal: str = ""
    """Status and code of the response to every PUT, e.g. "411 MissingContentLength"."""
    refused_part: str = ""
    """Refuse only PUTs to keys that contain this."""


def store_endpoint() -> str:
    """Return the URL of the real store. Raise ValueError if none is set."""
    if endpoint := os.environ.get(ENDPOINT):
        return endpoint
    raise ValueError(
        f"{ENDPOINT} is unset: set it to the http:// URL of an S3 server on which a bucket may be made, with "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


class FaultyStore(ThreadingHTTPServer):
    """The proxy; `endpoint`: its URL; `counts`: the faults so far; `most_at_once`: the peak of concurrent requests
    during the latency; `num_bytes`: bytes sent in response to GETs."""

    daemon_threads = True

    def __init__(self, target: str, faults: Faults, address: str) -> None:
        super().__init__((address, 0), _Handler)
        self.target, self.faults = urlsplit(target), faults
        if self.target.scheme != "http":
            raise ValueError(f"the endpoint behind the faults must be an http:// URL, got {target}")
        self.endpoint = f"http://{address}:{self.server_port}"
        self.gone_until = float("-inf")
        """Monotonic time until which every request is answered 503."""
        self.counts: Counter[str] = Counter()
        self.num_bytes = self.most_at_once = self._num_waiting = self._num_gets = 0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Sleep for the latency."""
        with self._lock:
            self._num_waiting += 1
            self.most_at_once = max(self.most_at_once, self._num_waiting)
        time.sleep(self.faults.latency_seconds)
        with self._lock:
            self._num_waiting -= 1

    def count_bytes(self, count: int) -> None:
        """Count sent bytes."""
        with self._lock:
            self.num_bytes += count

    def fault(self, method: str, key: str) -> str:
        """Choose the fault of the next request: "gone", "refused", "cut", "slow_down", or "whole" for none."""
        with self._lock:
            self._num_gets += method == "GET"
            is_refused = method == "PUT" and self.faults.put_refusal and self.faults.refused_part in key
            fault = "refused" if is_refused else "whole"
            for name, every in (("slow_down", self.faults.slow_down_every), ("cut", self.faults.cut_every)):
                if method == "GET" and every and self._num_gets % every == 0:
                    fault = name
            if time.monotonic() < self.gone_until:
                fault = "gone"
            self.counts[fault] += 1
        return fault


@contextlib.contextmanager
def faulty_store(
    target: str,
    faults: Faults,
    address: str = "127.0.0.1",
    network: contextlib.AbstractContextManager[object] | None = None,
) -> Iterator[FaultyStore]:
    """Run a store with `faults` in front of the endpoint `target` within the context. It listens on an address of
    `network`, and reaches the endpoint from this process's network."""
    with network or contextlib.nullcontext():
        server = FaultyStore(target, faults, address)
    with server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyStore  # pyright: ignore[reportIncompatibleVariableOverride]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.wait()
        fault = self.server.fault(self.command, self.path)
        if fault in ("slow_down", "gone", "refused"):
            self.refuse(self.server.faults.put_refusal if fault == "refused" else "503 SlowDown")
        else:
            self.pass_on(body, is_cut=fault == "cut")

    def refuse(self, words: str) -> None:
        status, code = words.split()
        content = f"<Error><Code>{code}</Code><Message>a fault of the test</Message></Error>".encode()
        self.send(int(status), {"Content-Type": "application/xml", "Content-Length": str(len(content))}, content)

    def pass_on(self, body: bytes, *, is_cut: bool) -> None:
        target = self.server.target
        connection = http.client.HTTPConnection(str(target.hostname), target.port or 80)
        connection.request(self.command, self.path, body, _foreign(self.headers))
        with contextlib.closing(connection), connection.getresponse() as response:
            content = response.read()
        headers = _foreign(response.headers)
        headers["Content-Length"] = response.getheader("Content-Length", str(len(content)))
        sent = content[: len(content) // 2] if is_cut else content
        self.server.count_bytes(len(sent) * (self.command == "GET"))
        self.send(response.status, headers, sent)
        self.close_connection = is_cut

    def send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Suppress the log of requests."""

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815  as http.server calls them


def _foreign(headers: Message) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in OWN_HEADERS}
