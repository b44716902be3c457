"""The page of an index: its answers against those of the model, what it refuses and serves, and a browser's view."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.client
import itertools
import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch

from jobs.command_line import parsing
from jobs.inference.index import EmbedConfig
from jobs.inference.index_files import parts_in
from jobs.inference.indexed_files import Filters, start_of
from jobs.inference.local_index import embed_here
from jobs.inference.model import Videos
from jobs.inference.query import SearchConfig, search
from jobs.inference.ranking import distinct, is_same_moment
from jobs.serving.app import UPLOAD_TYPE
from jobs.serving.library import Library
from jobs.serving.server import index_of, serve
from pipeline import storage
from pipeline.decode.codec import encode_image
from tests.jobs.test_moments import film
from tests.made_run import made_run
from tests.served import chromium, served

MARKUP = "<script>document.title='taken'</script>.mp4"
"""A path of a folder and a file."""


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> EmbedConfig:
    """An index of two long videos, a short one in a folder, and a picture, by a model with random weights."""
    root = tmp_path_factory.mktemp("page")
    for number, name in enumerate(("long.mp4", MARKUP, "trips/sea/short.mp4")):
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(film((9, 8, 3)[number], seed=number))
    (root / "videos" / "still.png").write_bytes(encode_image(np.zeros((8, 8, 3), np.uint8), quality=90))
    config = EmbedConfig(
        run=made_run(root), videos=f"{root}/videos", out=f"{root}/index", window_seconds=2.0, stride_seconds=1.0
    )
    assert len(embed_here(config)) == 4
    return config


@pytest.fixture(scope="module")
def library(indexed: EmbedConfig) -> Library:
    return Library.open(indexed.out)


@pytest.fixture(scope="module")
def port(library: Library) -> Iterator[int]:
    with served(library) as port:
        yield port


def get(
    port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def answer(port: int, path: str) -> Any:
    return json.loads(get(port, path)[2])


def test_moments_have_the_scores_of_the_model_and_none_is_shown_twice(library: Library, indexed: EmbedConfig) -> None:
    text = "a red ring rises"
    rows = torch.arange(len(library.index))
    query = library.model.embed_texts([text])
    videos = Videos(tokens=library.index.tokens(rows), vectors=library.index.vectors(rows))
    dual, cross = (of(query, videos)[0].numpy() for of in (library.model.dual_scores, library.model.match))
    moments = library.by_text(text, Filters(), num=100)
    for moment in moments:
        assert (moment.dual, moment.cross) == pytest.approx((dual[moment.row], cross[moment.row]), abs=1e-4)
    assert moments[0].row == np.argmax((dual - dual.mean()) / dual.std() + (cross - cross.mean()) / cross.std())
    places = [library.index.place(row) for row in rows.tolist()]
    shown = [places[moment.row] for moment in moments]
    assert not any(is_same_moment(*pair) for pair in itertools.combinations(shown, 2))
    assert all(any(is_same_moment(place, other) for other in shown) for place in places)
    by_vectors = library.by_text(text, Filters(), num=100, rerank=0)
    assert by_vectors[0].row == dual.argmax()
    assert {moment.cross for moment in by_vectors} == {None}
    in_terminal = search(SearchConfig(index=indexed.out, text=text, num_results=100))
    assert [match.cross for match in in_terminal] == sorted((match.cross for match in in_terminal), reverse=True)
    spans = [(match.uri, match.start_seconds, match.end_seconds) for match in in_terminal]
    assert not any(is_same_moment(*pair) for pair in itertools.combinations(spans, 2))
    assert in_terminal[0].cross == pytest.approx(cross.max(), abs=1e-4)


def test_windows_are_the_same_moment_from_half_of_the_shorter_on() -> None:
    places = [("a", 0.0, 2.0), ("a", 1.0, 3.0), ("a", 1.1, 3.1), ("b", 0.0, 2.0), ("a", 3.0, 3.4), ("c", 0.0, None)]
    assert [*distinct(places.__getitem__, range(6), 10)] == [0, 2, 3, 4, 5]
    assert distinct(places.__getitem__, [1, 0, 2, 3], 1) == {1: places[1]}
    assert [*distinct(places.__getitem__, range(6), 2, shown=[1])] == [3, 4]


def test_more_like_this_orders_by_the_angles_between_frames(library: Library) -> None:
    row, vectors = 3, library.index.vectors(torch.arange(len(library.index))).double()
    query = vectors[row].mean(0)
    cosines = vectors @ (query / query.norm())
    expected = torch.logsumexp(cosines / library.model.temperature, 1)
    moments = library.like(row, Filters(), num=100)
    assert [moment.dual for moment in moments] == pytest.approx([float(expected[m.row]) for m in moments], abs=1e-3)
    assert sorted((m.dual for m in moments), reverse=True) == [m.dual for m in moments]
    assert not any(is_same_moment(*map(library.index.place, (row, moment.row))) for moment in moments)


def test_an_upload_is_like_what_the_same_file_is_like(
    library: Library, port: int, indexed: EmbedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{indexed.videos}/trips/sea/short.mp4"
    expected = library.near(library.model.embed_videos([path]).vectors[0], Filters(folder="trips"), num=3)
    content, kind = Path(path).read_bytes(), {"Content-Type": UPLOAD_TYPE}
    given = json.loads(get(port, "/api/like?num=3&folder=trips", "POST", content, **kind)[2])["moments"]
    assert [moment["row"] for moment in given] == [moment.row for moment in expected]
    assert [moment["dual"] for moment in given] == pytest.approx([moment.dual for moment in expected], abs=1e-4)

    def refusal(content: bytes, **headers: str) -> tuple[int, str]:
        status, _, answer = get(port, "/api/like", "POST", content, **headers)
        return status, json.loads(answer)["error"]

    assert refusal(b"<svg onload=alert(1)>", **kind) == (
        400,
        "the upload cannot be read (unreadable): it is neither a picture nor a video of a kind that is read",
    )
    assert refusal(content[: len(content) // 2], **kind)[1].startswith("the upload cannot be read (truncated)")
    assert refusal(content, **{"Content-Type": "text/plain"})[0] == 415
    monkeypatch.setattr("jobs.serving.app.MAX_UPLOAD_BYTES", 2**20)
    assert refusal(bytes(2**20 + 1), **kind) == (413, "an upload has at most 1 MiB: cut out what matters")


def test_filters_leave_what_lies_in_the_folder_and_lasts_so_long(library: Library, port: int) -> None:
    query = library.model.embed_texts(["ring"]).vectors
    every, passing = (library.first(query, 100, filters) for filters in (Filters(), Filters(folder="trips")))
    is_below = [library.index.place(row)[0].endswith("trips/sea/short.mp4") for row in every[0].tolist()]
    assert passing[0].tolist() == every[0][is_below].tolist()
    assert passing[1].tolist() == pytest.approx(every[1][is_below].tolist(), abs=1e-4)
    everything = answer(port, "/api/search?q=ring&num=100")["moments"]
    in_folder = answer(port, "/api/search?q=ring&num=100&folder=trips")["moments"]
    assert {moment["name"] for moment in in_folder} == {"trips/sea/short.mp4"}
    long = answer(port, "/api/search?q=ring&num=100&min_seconds=8.5&max_seconds=9.5")["moments"]
    assert {m["name"] for m in long} == {"long.mp4"}
    assert answer(port, "/api/search?q=ring&folder=trip")["moments"] == []
    facts = answer(port, "/api/index")
    assert facts["folders"] == sorted(["<script>document.title='taken'<", "trips", "trips/sea"])
    assert (facts["windows"], facts["files"]) == (len(library.index), 4)
    near = answer(port, f"/api/around/{everything[0]['row']}")["moments"]
    starts = [moment["start_seconds"] for moment in near]
    assert starts == sorted(starts)
    assert {moment["name"] for moment in near} == {everything[0]["name"]}


def test_days_of_change_choose_files_and_the_terminal_filters_as_the_page(
    indexed: EmbedConfig, library: Library, port: int
) -> None:
    day = datetime.date(2026, 2, 3)
    changed = np.array([start_of(day) - 1, start_of(day), start_of(day) + 86_399, start_of(day) + 86_400])
    files = dataclasses.replace(library.files, changed=changed)
    for filters, expected in (
        (Filters(since=day), [1, 2, 3]),
        (Filters(until=day), [0, 1, 2]),
        (Filters(since=day, until=day), [1, 2]),
    ):
        assert sorted({*files.of_row[files.passing(filters)].tolist()}) == expected
    undated = dataclasses.replace(library.files, changed=np.full(4, np.nan))
    with pytest.raises(ValueError, match="since and until need files with a date of change"):
        undated.passing(Filters(since=day))
    tomorrow = datetime.date.today() + datetime.timedelta(days=1)
    assert answer(port, f"/api/search?q=ring&since={tomorrow}")["moments"] == []
    assert search(SearchConfig(index=indexed.out, text="ring", filters=Filters(since=tomorrow))) == []
    there = search(SearchConfig(index=indexed.out, text="ring", num_results=100, filters=Filters(folder="trips")))
    assert {Path(match.uri).name for match in there} == {"short.mp4"}
    config = parsing.read(SearchConfig, [indexed.out, "ring", "--since", str(day)], program="search.py", description="")
    assert config.filters == Filters(since=day)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/search", 400, "q is empty: say what is looked for"),
        ("/api/search?q=%20", 400, "q is empty"),
        (f"/api/search?q={'a' * 10_000}", 400, "the question has 10,000 characters, at most 1,000 are read"),
        (f"/api/search?q={quote('火' * 10_000)}", 400, "the question has 10,000 characters"),
        ("/api/search?q=a&num=0", 400, "num: Input should be greater than or equal to 1, got '0'"),
        ("/api/search?q=a&min_seconds=long", 400, "min_seconds: .*, got 'long'"),
        (
            "/api/search?q=a&min_seconds=3&max_seconds=2",
            400,
            "min_seconds must not exceed max_seconds, got 3.0 and 2.0",
        ),
        ("/api/search?q=a&since=2026-02-30", 400, "since: .*day value is outside expected range, got '2026-02-30'"),
        ("/api/search?q=a&since=2026-02-03&until=2026-02-01", 400, "since must not be after until"),
        ("/api/search?q=a&fodler=b", 400, "fodler: Extra inputs are not permitted"),
        ("/api/search?like=99", 404, "the index has 18 windows, and no row 99"),
        ("/strips/99", 404, "no row 99"),
        ("/files/9", 404, "the index has 4 files, and none with the number 9"),
    ],
)
def test_what_cannot_be_answered_is_said_in_words(port: int, path: str, status: int, words: str) -> None:
    given, _, content = get(port, path)
    assert given == status
    assert re.search(words, json.loads(content)["error"])


@pytest.mark.parametrize("text", ["\0", "\u202e", "🦀" * 900, "%ff", "'; drop table", "{{7*7}}", "a\nb"])
def test_any_text_is_a_question(port: int, text: str) -> None:
    assert answer(port, f"/api/search?q={quote(text)}&num=1")["moments"]


def test_an_unexpected_error_is_reported_too(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*arguments: object, **options: object) -> None:
        raise RuntimeError("a path of the disk")

    monkeypatch.setattr(library, "by_text", break_down)
    with served(library) as port:
        status, _, content = get(port, "/api/search?q=ring")
    assert status == 500
    assert json.loads(content)["error"] == "this failed unexpectedly (RuntimeError); the log has its traceback"


@pytest.mark.parametrize("path", ["/files/../index.json", "/files/%2e%2e%2findex.json", "/files/-1", "/index.json"])
def test_no_path_of_a_request_reaches_the_disk(port: int, path: str) -> None:
    assert get(port, path)[0] == 404


def test_a_file_is_served_whole_and_by_ranges(port: int, library: Library) -> None:
    number = library.files.names.index("long.mp4")
    content = Path(library.files.uris[number]).read_bytes()
    status, headers, whole = get(port, f"/files/{number}")
    assert (status, whole, headers["Content-Type"], headers["Accept-Ranges"]) == (200, content, "video/mp4", "bytes")
    status, headers, part = get(port, f"/files/{number}", Range="bytes=100-299")
    assert (status, part) == (206, content[100:300])
    assert headers["Content-Range"] == f"bytes 100-299/{len(content)}"
    assert get(port, f"/files/{number}", Range="bytes=50-")[2] == content[50:]
    assert get(port, f"/files/{number}", Range=f"bytes={len(content)}-")[0] == 416
    assert get(port, f"/files/{number}", "HEAD")[1]["Content-Length"] == str(len(content))
    assert get(port, f"/files/{number}", "POST")[0] == 405


def test_a_file_in_a_bucket_is_served_by_ranges_too(library: Library, bucket: str) -> None:
    content = Path(library.files.uris[library.files.names.index("long.mp4")]).read_bytes()
    storage.write_bytes_atomic(f"{bucket}/long.mp4", content)
    remote = Library.open(library.folder)
    uris = [f"{bucket}/long.mp4", f"{bucket}/gone.mp4"]
    remote.files = dataclasses.replace(remote.files, uris=uris, names=uris)
    with served(remote) as port:
        assert get(port, "/files/0")[::2] == (200, content)
        status, headers, part = get(port, "/files/0", Range="bytes=100-299")
        assert (status, part) == (206, content[100:300])
        assert headers["Content-Range"] == f"bytes 100-299/{len(content)}"
        assert get(port, "/files/0", Range="bytes=50-")[2] == content[50:]
        assert get(port, "/files/0", Range=f"bytes={len(content)}-")[0] == 416
        assert b"gone.mp4 is gone since it was indexed" in get(port, "/files/1")[2]


def test_strips_are_those_of_the_index_until_it_is_written_anew(indexed: EmbedConfig, tmp_path: Path) -> None:
    copy = str(tmp_path / "index")
    shutil.copytree(indexed.out, copy)
    (part,) = parts_in(copy)
    rows = storage.read_table(part)
    library = Library.open(copy)
    assert [library.strip(row) for row in range(len(rows))] == rows["strip"].to_pylist()
    library = Library.open(copy)
    storage.write_table(part, rows.slice(1))
    with served(library) as port:
        for row in (0, len(rows) - 1):
            status, _, content = get(port, f"/strips/{row}")
            assert status == 409
            assert "the index was written anew since it was opened" in json.loads(content)["error"]


def test_other_hosts_are_refused_and_nothing_is_read_or_loaded_by_another_site(port: int) -> None:
    assert get(port, "/healthz", Host=f"localhost:{port}")[0] == 200
    for host in ("rebound.example", f"rebound.example:{port}", "127.0.0.1.example", "0.0.0.0"):
        status, headers, content = get(port, "/api/search?q=ring", Host=host)
        assert (status, content) == (400, b"Invalid host header")
    for path in ("/", "/api/search?q=ring", "/files/0", "/nowhere"):
        headers = get(port, path)[1]
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Access-Control-Allow-Origin"] is None


def test_a_taken_port_and_a_folder_without_an_index_are_refused(indexed: EmbedConfig, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} is taken by another process; name another with --port"):
            serve(SearchConfig(index=indexed.out, port=port))
    with pytest.raises(ValueError, match=r"holds no index.json; name the model with --run"):
        index_of(indexed.videos, None)
    other = made_run(tmp_path)
    with pytest.raises(ValueError, match=r"was made with the model .*; name it with --run"):
        Library.open(indexed.out, other)


def test_a_folder_of_videos_is_embedded_below_it_once_for_each_model(
    indexed: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, embedded = tmp_path / "videos", []
    shutil.copytree(indexed.videos, videos)

    def without_ray(config: EmbedConfig) -> dict[str, int]:
        embedded.append(len(embed_here(config)))
        return {"videos": 4, "embedded": embedded[-1], "rejected": 0}

    monkeypatch.setattr("jobs.inference.index.embed", without_ray)
    out = index_of(str(videos), indexed.run)
    assert index_of(str(videos), indexed.run) == out == index_of(out, None)
    assert embedded == [4, 0]
    assert sorted(Library.open(out).files.names) == sorted(["long.mp4", MARKUP, "trips/sea/short.mp4", "still.png"])
    assert index_of(str(videos), made_run(tmp_path)) != out


def test_a_browser_searches_plays_at_the_second_and_asks_no_other_host(
    indexed: EmbedConfig, library: Library, tmp_path: Path
) -> None:
    with served(library) as port, chromium() as browser:
        from playwright.sync_api import expect

        page = browser.new_page()
        console, asked = [], []
        page.on("console", lambda message: console.append(message.text))
        page.on("pageerror", lambda error: console.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/")
        page.keyboard.type("a red <b>ring</b> rises")  # the box has the focus
        page.keyboard.press("Enter")
        page.wait_for_selector("#results article")
        moments = library.by_text("a red <b>ring</b> rises", Filters(), num=24)
        assert page.locator(".name").all_text_contents() == [moment.name for moment in moments]
        assert MARKUP in page.locator(".name").all_text_contents()
        assert "<b>ring</b>" in page.locator("#status").text_content()
        assert page.locator("#results script, #status b, datalist script").count() == 0
        assert page.title() == "Search moments"

        place, moment = next((p, m) for p, m in enumerate(moments) if m.name == "long.mp4" and m.start_seconds)
        page.keyboard.press("ArrowDown")
        for _ in range(place):
            page.keyboard.press("j")
        page.keyboard.press("Enter")
        expect(page.locator("video")).to_have_js_property("readyState", 4)
        played = page.evaluate("document.querySelector('video').currentTime")
        assert moment.start_seconds <= played <= moment.end_seconds
        assert page.locator("#around img").count() > 1
        page.keyboard.press("Escape")
        page.keyboard.press("m")
        expect(page).to_have_url(re.compile(r"\?like=\d+$"))
        expect(page.locator("#status")).to_contain_text("like that one")
        page.go_back()
        expect(page.locator("#status")).to_contain_text("for “a red <b>ring</b> rises”")
        page.set_input_files("#upload", f"{indexed.videos}/still.png")
        expect(page.locator("#status")).to_contain_text("like still.png, best first")
        page.reload()
        expect(page.locator("#status")).to_contain_text("for “a red <b>ring</b> rises”")
        assert console == []
        assert {address.split("/")[2] for address in asked} == {f"127.0.0.1:{port}"}

        place = next(place for place, moment in enumerate(moments) if moment.name.startswith("trips/"))
        path, hidden = Path(library.files.uris[moments[place].file]), tmp_path / "hidden.mp4"
        shutil.move(path, hidden)
        page.locator(".strip").nth(place).click()
        gone = "trips/sea/short.mp4 is gone since it was indexed; run snps3 embed again"
        expect(page.locator("#problem")).to_have_text(gone)
        shutil.move(hidden, path)
        page.keyboard.press("Escape")
        page.locator("#query").fill("a" * 10_000)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("the question has 10000 characters, at most 1000")
