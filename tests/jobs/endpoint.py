"""An endpoint of OpenAI's kind on this machine that reads captions from pixels, and fails as it is told."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

INPUT_TOKENS, OUTPUT_TOKENS = 900, 12
BITS = 8
"""Stripes of a frame, black and white, by which a clip shows its number."""


class StubEndpoint:
    """What an endpoint was asked, and how it answers."""

    def __init__(self, read: Callable[[np.ndarray], str] | None = None) -> None:
        """`read`: of frames, uint8 (T, H, W, 3), the caption; None: the number that the first one shows."""
        self.read = read or number_in
        self.key = "sk-of-nobody-1234567890"
        self.num_requests = 0
        self.answered: Counter[str] = Counter()
        self.begun: list[float] = []
        self.fail_every = self.hang_every = 0
        """Each so-manieth request is answered with 500, or not in time."""
        self.hang_seconds = 1.0
        self.status: int | None = None
        """What every request is answered with, if anything."""
        self.lock = threading.Lock()

    def answer(self, authorization: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            self.num_requests += 1
            self.begun.append(time.monotonic())
            number = self.num_requests
        if self.status:
            return self.status, {"error": {"message": f"Incorrect API key provided: {self.key}"}}
        if authorization != f"Bearer {self.key}":
            return 401, {"error": {"message": f"{authorization} is no key"}}
        if self.hang_every and number % self.hang_every == 0:
            time.sleep(self.hang_seconds)
        if self.fail_every and number % self.fail_every == 0:
            return 500, {"error": {"message": "overloaded"}}
        text = self.read(frames_of(body))
        with self.lock:
            self.answered[text] += 1
        usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS}
        return 200, {"choices": [{"message": {"content": text}}], "usage": usage}


def frames_of(body: dict[str, Any]) -> np.ndarray:
    """Return the frames of a request, uint8 (T, H, W, 3)."""
    prompt, *images = body["messages"][0]["content"]
    assert prompt["type"] == "text"
    urls = (image["image_url"]["url"].removeprefix("data:image/jpeg;base64,") for image in images)
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(url))).convert("RGB")) for url in urls])


def number_in(frames: np.ndarray) -> str:
    """Return the number that the first frame shows, and how many frames there are."""
    stripes = frames[0].reshape(frames.shape[1], BITS, -1).mean((0, 2)) > 128
    return f"clip {int(stripes @ 2 ** np.arange(BITS))} in {len(frames)} frames"


def frames_showing(number: int, num_frames: int, height: int = 32) -> np.ndarray:
    """Return frames, uint8 (T, H, 128, 3), that show a number."""
    stripes = (number >> np.arange(BITS) & 1).astype(np.uint8) * 255
    return np.broadcast_to(stripes.repeat(16)[None, None, :, None], (num_frames, height, 16 * BITS, 3)).copy()


@contextmanager
def serving(stub: StubEndpoint) -> Iterator[str]:
    """Yield the URL at which the stub answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = stub.answer(self.headers.get("Authorization", ""), body)
            data = json.dumps(answer).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # who asked has given up
                pass

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
