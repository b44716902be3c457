"""A store with faults: a proxy on loopback before a real S3 endpoint, for tests and for the benchmark `s3-faults`.

Signatures stay valid, because the `Host` that the client has signed is passed on as it is.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

OWN_HEADERS = {"connection", "content-length", "date", "expect", "keep-alive", "server", "transfer-encoding"}
"""Headers that each side of the proxy writes for itself, in lower case."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong on the way; 0 switches a fault off."""

    slow_down_every: int = 0
    """Of this many GETs, the last is answered 503 SlowDown, unless it is cut."""
    cut_every: int = 0
    """Of this many GETs, the last gets half of the body that is announced."""
    latency_seconds: float = 0.0
    """Pause before each answer."""
    put_refusal: str = ""
    """Status and code that answer every PUT, e.g. "411 MissingContentLength"."""


class FaultyStore(ThreadingHTTPServer):
    """The proxy; `endpoint` is its own URL, `counts` the faults so far, `most_at_once` requests met in their pause."""

    daemon_threads = True

    def __init__(self, target: str, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.faults = urlsplit(target), faults
        if self.target.scheme != "http":
            raise ValueError(f"the endpoint behind the faults must be an http:// URL, got {target}")
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.gone_until = float("-inf")
        """Until then, in monotonic time, every request is answered 503."""
        self.counts: Counter[str] = Counter()
        self.most_at_once = self._num_waiting = 0
        self._gets, self._lock = itertools.count(1), threading.Lock()

    def wait(self) -> None:
        """Pass the latency."""
        with self._lock:
            self._num_waiting += 1
            self.most_at_once = max(self.most_at_once, self._num_waiting)
        time.sleep(self.faults.latency_seconds)
        with self._lock:
            self._num_waiting -= 1

    def fault(self, method: str) -> str:
        """The fault of the next request: "slow_down", "cut", "refused", or "" for none."""
        number = next(self._gets) if method == "GET" else 0
        chosen = ""
        if time.monotonic() < self.gone_until:
            chosen = "gone"
        elif method == "PUT" and self.faults.put_refusal:
            chosen = "refused"
        elif _is_due(number, self.faults.cut_every):
            chosen = "cut"
        elif _is_due(number, self.faults.slow_down_every):
            chosen = "slow_down"
        with self._lock:
            self.counts[chosen or "whole"] += 1
        return chosen


@contextlib.contextmanager
def faulty_store(target: str, faults: Faults) -> Iterator[FaultyStore]:
    """A store with `faults` before the endpoint `target`, while the context lasts."""
    with FaultyStore(target, faults) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _is_due(number: int, every: int) -> bool:
    return bool(number and every) and number % every == 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyStore  # pyright: ignore[reportIncompatibleVariableOverride]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.wait()
        match self.server.fault(self.command):
            case "slow_down" | "gone":
                self.refuse("503 SlowDown")
            case "refused":
                self.refuse(self.server.faults.put_refusal)
            case fault:
                self.pass_on(body, is_cut=fault == "cut")

    def refuse(self, words: str) -> None:
        status, code = words.split()
        content = f"<Error><Code>{code}</Code><Message>a fault of the test</Message></Error>".encode()
        self.send_response(int(status))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def pass_on(self, body: bytes, *, is_cut: bool) -> None:
        target = self.server.target
        connection = http.client.HTTPConnection(str(target.hostname), target.port or 80)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in OWN_HEADERS:
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        with contextlib.closing(connection), connection.getresponse() as response:
            content = response.read()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in OWN_HEADERS:
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        if length is not None:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if is_cut else content)
        self.close_connection = is_cut

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests of a test are no news."""


for _method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler.answer)
