"""Request captions from an endpoint with OpenAI's chat completions API: one request per clip, frames as JPEG data URLs.

The key comes only from the environment, and never appears in a message.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.corpus import web
from pipeline.records import DecodeError, Reason
from pipeline.redaction import HIDDEN, without_secrets

RETRIED_STATUS = web.TRANSIENT_STATUS | {409}
"""Status codes after which a retry may succeed."""
FATAL_STATUS = frozenset({401, 402, 403, 404})
"""Status codes that every other request would get, too."""


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Endpoint, model, prompt, limits and prices of caption requests."""

    url: str
    """Base URL of the API, without /chat/completions: https://api.openai.com/v1, http://HOST:8000/v1."""
    model: str
    prompt: str = "Describe in one sentence what happens in the video that these frames are from."
    max_tokens: int = 100
    """Largest length of a caption."""
    temperature: float = 0.0
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; unset for an endpoint without one."""
    timeout_seconds: float = 60.0
    tries: int = 6
    """Largest number of requests for one clip, with growing pauses."""
    requests_per_minute: float | None = None
    """Rate limit of this job, retries included; None: unlimited."""
    dollars_per_million_input_tokens: float | None = None
    dollars_per_million_output_tokens: float | None = None
    """Prices; without both of them tokens are counted and no cost."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint.url must begin with http:// or https://, got {self.url!r}")
        for name, least in (("max_tokens", 1), ("tries", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"endpoint.{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("timeout_seconds", "requests_per_minute"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"endpoint.{name} must be above 0, got {value}")

    def dollars(self, input_tokens: int, output_tokens: int) -> float | None:
        """Return the price of the tokens; None without prices."""
        prices = (self.dollars_per_million_input_tokens, self.dollars_per_million_output_tokens)
        if prices[0] is None or prices[1] is None:
            return None
        return (input_tokens * prices[0] + output_tokens * prices[1]) / 1e6


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A caption, and the tokens and requests it cost."""

    text: str
    input_tokens: int
    output_tokens: int
    num_requests: int


class RateLimiter:
    """Rate limiter for several threads: requests start at least 60 / `per_minute` seconds apart."""

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._seconds_apart = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep, self._lock = clock, sleep, threading.Lock()
        self._next = float("-inf")

    def wait(self) -> None:
        """Block until the next request may begin."""
        with self._lock:
            begins = max(self._clock(), self._next)
            self._next = begins + self._seconds_apart
        if (seconds := begins - self._clock()) > 0:
            self._sleep(seconds)


class Endpoint:
    """Client of an endpoint, for use by several threads."""

    def __init__(self, config: EndpointConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        self.config, self._sleep = config, sleep
        self._key = os.environ.get(config.key_variable, "")
        self._rate_limiter, self._random = RateLimiter(config.requests_per_minute, sleep=sleep), random.Random()

    def caption(self, images: Sequence[bytes]) -> Answer:
        """Request the caption of a clip, given JPEGs of its frames.

        DecodeError: `unavailable` if all retries fail, `no_caption` if the endpoint rejects this clip. ValueError if it
        would reject every clip.
        """
        request = self._request(images)
        for number in range(1, self.config.tries + 1):
            self._rate_limiter.wait()
            try:
                return _answer(self._send(request), number)
            except urllib.error.HTTPError as error:
                problem, after = f"{error.code} {self._without_key(error)}", web.retry_after_seconds(error)
                if error.code in FATAL_STATUS:
                    raise ValueError(self._remedy(problem)) from None
                if error.code not in RETRIED_STATUS:
                    raise DecodeError(Reason.NO_CAPTION, f"the endpoint refuses the clip: {problem}") from None
            except (OSError, http.client.HTTPException) as error:  # connection failed or lost, or timeout
                problem, after = f"{type(error).__name__}: {error}", 0.0
            except (ValueError, KeyError, IndexError, TypeError) as error:
                problem, after = f"no chat completion ({type(error).__name__}: {error})", 0.0
            if number < self.config.tries:
                self._sleep(max(after, storage.pause_seconds(number, self._random.random())))
        raise DecodeError(Reason.UNAVAILABLE, f"no caption after {self.config.tries} requests, at last {problem}")

    def _request(self, images: Sequence[bytes]) -> urllib.request.Request:
        parts: list[dict[str, Any]] = [{"type": "text", "text": self.config.prompt}]
        for image in images:
            url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        url = f"{self.config.url.rstrip('/')}/chat/completions"
        return urllib.request.Request(url, json.dumps(body).encode(), headers)

    def _send(self, request: urllib.request.Request) -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=self.config.timeout_seconds) as response:
            return json.loads(response.read())

    def _without_key(self, error: urllib.error.HTTPError) -> str:
        """Return the first line of an error response without the key, which it may repeat."""
        with error:
            said = error.read(300).decode(errors="replace").partition("\n")[0]
        return without_secrets(said.replace(self._key, HIDDEN) if self._key else said)

    def _remedy(self, problem: str) -> str:
        config = self.config
        is_set = "is set" if self._key else "is not set"
        return (
            f"{config.url} refuses every clip: {problem}: see whether the key ({config.key_variable} {is_set}), "
            f"the model {config.model!r} and the url are right"
        )


def _answer(body: dict[str, Any], num_requests: int) -> Answer:
    text = " ".join(body["choices"][0]["message"]["content"].split())
    if not text:
        raise DecodeError(Reason.NO_CAPTION, "the endpoint answers without a word")
    usage = body.get("usage") or {}
    tokens = {f"{ours}_tokens": int(usage.get(f"{theirs}_tokens") or 0) for ours, theirs in _USAGE.items()}
    return Answer(text=text, num_requests=num_requests, **tokens)


_USAGE = {"input": "prompt", "output": "completion"}
