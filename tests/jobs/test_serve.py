"""The page and its API for others: who may ask, what the API says of itself, and replicas that go and come back."""

from __future__ import annotations

import base64
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmarks.serve_load import serve
from jobs.inference.indexed_files import Filters
from jobs.serving import replicas as serving_replicas
from jobs.serving.app import UPLOAD_TYPE, Question
from jobs.serving.library import Library
from jobs.serving.openapi import description
from jobs.serving.replicas import GoneError, Replicas
from jobs.serving.service import ServeConfig, token_for
from tests.made_run import made_run
from tests.served import drawn_library, get, served

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """An index of drawn windows, by a model with random weights."""
    return drawn_library(tmp_path_factory.mktemp("serve"))


class Process:
    """A replica of this process, which ends when it is told to, in the middle of a question."""

    def __init__(self, library: Library) -> None:
        self.library, self.is_gone, self.num_answered = library, False, 0
        self.ends = False

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        if self.ends:
            self.is_gone, self.ends = True, False
        if self.is_gone:
            raise GoneError
        self.num_answered += 1
        return getattr(self.library, method)(*args, **options)


def test_a_request_without_the_token_is_refused_however_it_is_sent(library: Library) -> None:
    with served(library, token=TOKEN) as port:
        assert get(port, "/healthz")[0] == 200
        for path in ("/", "/api/index", "/api/search?q=a", "/strips/0", "/files/0", "/openapi.json"):
            status, content, headers = get(port, path)
            assert status == 401
            assert content["error"].startswith("a token is needed")
            assert headers["WWW-Authenticate"].startswith("Basic")
            assert headers["Cache-Control"] == "no-cache"
        for wrong in ("Bearer", f"Bearer {TOKEN}0", "Basic ???", f"Digest {TOKEN}", f"Bearer {TOKEN[:-1]}"):
            assert get(port, "/api/index", Authorization=wrong)[0] == 401
        basic = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
        for right in (f"Bearer {TOKEN}", f"Basic {basic}"):
            assert get(port, "/api/index", Authorization=right)[1]["windows"] == 40


def test_others_need_a_token_that_cannot_be_guessed() -> None:
    assert token_for("127.0.0.1", None) is None
    assert token_for("0.0.0.0", TOKEN) == TOKEN
    with pytest.raises(ValueError, match=r"--host 0.0.0.0 lets others ask: set SNPS3_TOKEN"):
        token_for("0.0.0.0", None)
    with pytest.raises(ValueError, match="must have at least 16 characters, got 3"):
        token_for("127.0.0.1", "abc")
    with pytest.raises(ValueError, match="replicas must be at least 1, got 0"):
        ServeConfig(index="index", replicas=0)


def test_the_description_names_each_parameter_and_field_that_is_answered(library: Library) -> None:
    said = description(Question, UPLOAD_TYPE)
    with served(library) as port:
        assert get(port, "/openapi.json")[1] == json.loads(json.dumps(said))
        (moment,) = get(port, "/api/search?q=a&num=1&rerank=0")[1]["moments"]
        for path in said["paths"]:
            assert get(port, path.replace("{row}", "99"))[0] in (400, 404, 405) or path == "/healthz"
    assert moment.keys() == said["components"]["schemas"]["Moment"]["properties"].keys()
    search = said["paths"]["/api/search"]["get"]["parameters"]
    assert {one["name"] for one in search} == Question.model_fields.keys()
    assert all(one["description"] for one in search if one["name"] not in ("min_seconds", "since"))


def test_replicas_answer_what_the_library_does_and_a_question_survives_the_one_it_was_put_to(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_replicas, "RETRY_SECONDS", 0.02)
    processes = [Process(library) for _ in range(3)]
    both = Replicas(library.files, processes, Process.ask)
    expected = library.by_text("ring", Filters(), num=5)
    processes[0].ends = True
    with served(both) as port:
        answers = [get(port, "/api/search?q=ring&num=5")[1]["moments"] for _ in range(6)]
    assert [[moment["row"] for moment in answer] for answer in answers] == [[one.row for one in expected]] * 6
    assert processes[0].num_answered == 0
    assert set(both.num_asked) == set(processes[1:])
    processes[0].is_gone = False  # started again
    deadline = time.monotonic() + 20
    while len(both.num_asked) < 3 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert both.num_asked == dict.fromkeys(processes, 0)


def test_where_no_replica_comes_back_the_answer_is_to_ask_later(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_replicas, "PATIENCE_SECONDS", 0.1)
    gone = Process(library)
    gone.is_gone = True
    with served(Replicas(library.files, [gone], Process.ask)) as port:
        status, content, headers = get(port, "/api/search?q=ring")
    assert (status, headers["Retry-After"]) == (503, "5")
    assert content["error"] == "no replica answers: ask again in some seconds"


def test_a_question_goes_to_the_replica_with_the_fewest(library: Library) -> None:
    first, second = Process(library), Process(library)
    both = Replicas(library.files, [first, second], Process.ask)
    taken = [both.take(time.monotonic() + 1) for _ in range(4)]
    assert [taken.count(one) for one in (first, second)] == [2, 2]


@pytest.mark.ray
@pytest.mark.slow
def test_no_request_is_lost_where_a_replica_is_killed_under_load(tmp_path: Path) -> None:
    result = serve(run=made_run(tmp_path), num_windows=3_000, num_clients=4, seconds=3.0, reranked=5)
    assert result["lost"] == 0
    assert result["killed"]["num_requests"] > 4
