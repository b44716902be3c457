"""A server of the page in a thread of this process, and Debian's Chromium to look at it with."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.serving.app import make_app
from jobs.serving.library import Library
from jobs.serving.replicas import Replicas
from jobs.serving.server import listening, make_server


@contextlib.contextmanager
def served(library: Library | Replicas, token: str | None = None) -> Iterator[int]:
    """Serve a library, and yield the port."""
    with listening(0) as listener:
        server = make_server(make_app(library, token=token))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser without a window, and yield it. The test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (path := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
