"""An index to serve, a server of the page in a thread of this process, and a client and a browser for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.nn.functional import normalize

from jobs.benchmarks.support.served_app import served_app
from jobs.inference.index import EMBEDDED
from jobs.inference.index_files import INDEX, write_tensors
from jobs.run import run_files
from jobs.serving.app import make_app
from jobs.serving.library import Library
from jobs.serving.replicas import Replicas
from pipeline import storage
from tests.made_run import made_run


def drawn_library(root: Path) -> Library:
    """Return an index, below `root`, of 40 drawn windows by a model with random weights."""
    run, folder = made_run(root), f"{root}/index"
    weights = run_files.weights_hash(run)
    run_files.write_json(f"{folder}/{INDEX}", {"model": weights, "run": run, "videos": "/videos"})
    vectors = normalize(torch.randn(40, 4, 96, generator=torch.Generator().manual_seed(0)), dim=-1)
    path = f"{folder}/part-0.parquet"
    write_tensors(path, vectors, vectors.clone(), weights)
    rows = [
        {"uri": f"/videos/{i}.mp4", "version": "1 0.0", "start_seconds": 0.0, "end_seconds": 9.0} for i in range(40)
    ]
    storage.write_table(path, pa.Table.from_pylist(rows, schema=EMBEDDED))
    return Library.open(folder)


def get(port: int, path: str, **headers: str) -> tuple[int, Any, http.client.HTTPMessage]:
    """Return the status, the content and the headers of an answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(content) if is_json else content, answer.headers


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
