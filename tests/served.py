"""A server of the page in a thread of this process, and Debian's Chromium to look at it with."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.benchmarks.support.served_app import served_app
from jobs.serving.app import make_app
from jobs.serving.library import Library
from jobs.serving.replicas import Replicas


def served(library: Library | Replicas, token: str | None = None) -> contextlib.AbstractContextManager[int]:
    """Serve a library, and yield the port."""
    return served_app(make_app(library, token=token))


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
