"""Ray Serve's deployment of the page answers as one process does, also where a searcher is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from cluster.connection import connected_ray
from cluster.head import free_ports
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.inference.indexed_files import Filters, UndatedError
from jobs.serving.library import Library, Sentence
from jobs.serving.settings import ReplicasConfig, deployment_of
from tests.made_run import made_run
from tests.served import drawn_library, get, served

TOKEN = "0123456789abcdef"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MISSING = "the extra is not installed: pip install 'snps3-ray[ray-serve]'"
RETURN_SECONDS = 60.0
"""Limit for which the start of another searcher is awaited."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """An index of drawn windows, by a model with random weights."""
    return drawn_library(tmp_path_factory.mktemp("ray_serve"))


@pytest.fixture(scope="module")
def ray_serve() -> Any:
    return pytest.importorskip("jobs.serving.ray_serve", reason=MISSING, exc_type=ModuleNotFoundError)


def test_a_batch_of_sentences_is_answered_as_each_alone(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    dated = Filters(since=datetime.date(2026, 1, 1))
    monkeypatch.setattr(library, "files", dataclasses.replace(library.files, changed=np.full(40, np.nan)))
    for filters in (Filters(), Filters(max_seconds=5.0)):
        sentences = [Sentence(text=text, filters=filters, num=5, rerank=n) for text, n in (("a ring", 0), ("star", 7))]
        alone = [library.by_text(one.text, filters, num=5, rerank=one.rerank) for one in sentences]
        first, refused, second = library.by_texts(
            [sentences[0], Sentence(text="it", filters=dated, num=1), sentences[1]]
        )
        assert isinstance(refused, UndatedError)
        for answer, expected in ((first, alone[0]), (second, alone[1])):
            assert isinstance(answer, list)
            assert [moment.row for moment in answer] == [moment.row for moment in expected]
            assert [m.score for m in answer] == pytest.approx([m.score for m in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("args", "token", "words"),
    [
        ({}, TOKEN, r"index must name the folder .* got none; add index=FOLDER"),
        ({"index": "i", "replica": "2"}, TOKEN, r"replica is no argument; did you mean replicas\?"),
        ({"index": "i", "port": "1"}, TOKEN, r"port is no argument; there are index, run, replicas"),
        ({"index": "i"}, None, "set SNPS3_TOKEN to the token of requests"),
        ({"index": "i"}, "abc", "SNPS3_TOKEN must have at least 16 characters, got 3"),
        ({"index": "i", "replicas": "0"}, TOKEN, "replicas must be at least 1, got 0"),
        ({"index": "i", "replicas": "two"}, TOKEN, "replicas: Input should be a valid integer.* got 'two'"),
    ],
)
def test_a_deployment_refuses_a_wrong_argument(args: dict[str, str], token: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        deployment_of(args, token)


def test_arguments_of_a_command_line_and_of_a_file_are_the_same() -> None:
    expected = (ReplicasConfig(index="i", replicas=4, replica_cpus=0.5), TOKEN)
    assert deployment_of({"index": "i", "replicas": "4", "replica_cpus": "0.5"}, TOKEN) == expected
    assert deployment_of({"index": "i", "replicas": 4, "replica_cpus": 0.5}, TOKEN) == expected


def test_the_application_refuses_another_model_and_a_missing_index(
    ray_serve: Any, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNPS3_TOKEN", TOKEN)
    with pytest.raises(ValueError, match=r"was made with the model .* name it with --run"):
        ray_serve.build_app({"index": library.folder, "run": made_run(tmp_path, hidden=48)})
    with pytest.raises(FileNotFoundError, match=r"none/index\.json"):
        ray_serve.build_app({"index": f"{tmp_path}/none"})


class Handle:
    """Stands for a handle of Ray Serve: each request first meets the errors in `errors`, then a library answers it."""

    def __init__(self, library: Library, *errors: Exception) -> None:
        self.library, self.errors = library, [*errors]
        self.by_text = SimpleNamespace(remote=lambda *args, **options: self.sent("by_text", *args, **options))
        self.answer = SimpleNamespace(remote=self.sent)

    def sent(self, method: str, *args: Any, **options: Any) -> Any:
        def result(timeout_s: float) -> Any:
            assert timeout_s > 0
            if self.errors:
                raise self.errors.pop(0)
            return getattr(self.library, method)(*args, **options)

        return SimpleNamespace(result=result)


def test_a_request_is_repeated_where_its_searcher_died_and_errors_keep_their_words(
    ray_serve: Any, library: Library
) -> None:
    expected = library.by_text("ring", Filters(), num=5)
    dying = Handle(library, ActorDiedError(), RayActorError())
    assert ray_serve.ask_handle(dying, "by_text", "ring", Filters(), num=5) == expected
    assert ray_serve.ask_handle(dying, "facts") == library.facts()
    with pytest.raises(UndatedError, match="no file has a date"):
        ray_serve.ask_handle(Handle(library, RayTaskError("f", "", UndatedError("no file has a date"))), "facts")
    with pytest.raises(TimeoutError, match="no replica answers"):
        ray_serve.ask_handle(Handle(library, TimeoutError()), "facts")


@contextlib.contextmanager
def deployed(port: int, app: Any) -> Iterator[None]:
    """Run an application of Ray Serve behind its proxy on this machine's loopback."""
    from ray import serve

    with connected_ray(worker_environment=WORKER_ENVIRONMENT, num_cpus=2):
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        try:
            serve.run(app)
            yield
        finally:
            serve.shutdown()


def searchers() -> list[int]:
    """Process ids of the searchers of the Ray that this process has started."""
    titles = {process.pid: " ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)}
    return [pid for pid, title in titles.items() if "ServeReplica" in title and "Searcher" in title]


def scores_of(content: Any) -> list[float]:
    """Every score of an answer, in order, taken out of it."""
    return [moment.pop(name) or 0.0 for moment in content["moments"] for name in ("score", "dual", "cross")]


def assert_same(answer: tuple[int, Any], expected: tuple[int, Any]) -> None:
    """Assert equal answers, but for rounding in scores."""
    assert answer[0] == expected[0]
    if isinstance(answer[1], dict) and "moments" in answer[1]:
        assert scores_of(answer[1]) == pytest.approx(scores_of(expected[1]), abs=1e-5)
    assert answer[1] == expected[1]


def asked_until(stop: float, port: int, path: str) -> list[tuple[int, Any]]:
    """Return the answers to a client that asks without a pause."""
    answers = []
    while time.monotonic() < stop:
        answers.append(get(port, path, **BEARER)[:2])
    return answers


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.nightly  # a Ray of its own, with Ray Serve and four processes
def test_ray_serve_answers_as_one_process_does_and_loses_nothing_where_a_searcher_is_killed(
    ray_serve: Any, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holds for searchers. Requests in the one `Front` are lost where its process is killed: nothing repeats them."""
    if ray.is_initialized():
        pytest.skip("another test of this session has started a Ray")
    monkeypatch.setenv("SNPS3_TOKEN", TOKEN)
    paths = ["/", "/openapi.json", "/api/index", "/api/around/3", "/strips/1", "/api/search?q=ring&since=2026-01-01"]
    paths += ["/api/search?like=3&num=4", "/api/search?q=", "/api/around/40"]
    paths += [f"/api/search?q={text}&num=5&rerank={rerank}" for text in ("ring", "star") for rerank in (0, 9)]
    (port,) = free_ports(1)
    with served(library, token=TOKEN) as here:
        expected = {path: get(here, path, **BEARER)[:2] for path in paths}
        again = [get(here, paths[-1], **BEARER)[:2]]
    with deployed(port, ray_serve.build_app({"index": library.folder, "replicas": "2", "replica_cpus": "0.5"})):
        for path in paths:
            assert_same(get(port, path, **BEARER)[:2], expected[path])
        assert get(port, "/healthz")[0] == 200
        assert [get(port, path)[0] for path in ("/", "/api/index", paths[-1])] == [401] * 3
        before = searchers()
        assert len(before) == 2
        with ThreadPoolExecutor(4) as pool:
            stop = time.monotonic() + 6
            clients = [pool.submit(asked_until, stop, port, paths[-1]) for _ in range(4)]
            time.sleep(1)
            os.kill(before[0], signal.SIGKILL)
            answers = [answer for client in clients for answer in client.result()]
        assert len(answers) > 8
        rows = [moment["row"] for moment in again[0][1]["moments"]]
        assert [(status, [m["row"] for m in content.get("moments", [])]) for status, content in answers] == [
            (200, rows)
        ] * len(answers)
        deadline = time.monotonic() + RETURN_SECONDS
        while len(now := searchers()) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert len(now) == 2
        assert before[0] not in now
