"""Files of the web through a server on this machine that fails, lies and leads astray as it is told."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from jobs.corpus.downloading import DownloadConfig, describe, download
from jobs.corpus.preparation import PrepareConfig, plan
from pipeline import storage
from pipeline.corpus.ledger import TooManyRejectedError, read_ledger
from pipeline.corpus.sources import open_source
from pipeline.corpus.url_lists import read_urls
from pipeline.corpus.web import WebLimits, copy_url, is_public, name_of_url
from pipeline.records import DecodeError, Reason

HOSTS = ("127.0.0.1", "localhost")


class Web:
    """What was asked, and how many at a time of each host."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.at_once: Counter[str] = Counter()
        self.most_at_once: dict[str, int] = defaultdict(int)
        self.lock = threading.Lock()
        self.seconds = 0.0
        self.port = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        with self.lock:
            self.asked[path] += 1
            number = self.asked[path]
        body, status, headers = content(path), 200, {}
        match path.rpartition("/")[2]:
            case "gone.mp4":
                status = 404
            case "busy.mp4" if number < 3:
                status, headers = 503, {"Retry-After": "0"}
            case "down.mp4":
                status = 500
            case "page.mp4":
                headers = {"Content-Type": "text/html; charset=utf-8"}
            case "short.mp4" if number < 2:
                headers = {"Content-Length": str(len(body) + 7)}
            case "moved.mp4":
                status, headers = 302, {"Location": "/a/1.mp4"}
            case "astray.mp4":
                status, headers = 302, {"Location": "file:///etc/hostname"}
            case "ftp.mp4":
                status, headers = 302, {"Location": "ftp://127.0.0.1/x"}
            case "endless.mp4":
                body, headers = b"x" * 4_000_000, {"Content-Length": ""}
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "Content-Type": "video/mp4"} | headers).items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(OSError):  # who asked has given up
            if path.endswith("drip.mp4"):
                for place in range(100):
                    handler.wfile.write(body[place : place + 1])
                    time.sleep(0.01)
            handler.wfile.write(body)


def content(path: str) -> bytes:
    return hashlib.sha256(path.encode()).digest() * 100


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr("pipeline.storage.FIRST_PAUSE_SECONDS", 0.001)
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers["Host"].partition(":")[0]
            with web.lock:
                web.at_once[host] += 1
                web.most_at_once[host] = max(web.most_at_once[host], web.at_once[host])
            time.sleep(web.seconds)
            with web.lock:  # before the answer, after which the next request may come
                web.at_once[host] -= 1
            web.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield web
    server.shutdown()
    server.server_close()


ANYWHERE = WebLimits(allow_private=True, tries=3)


def fetched(url: str, limits: WebLimits = ANYWHERE) -> bytes:
    file = io.BytesIO()
    num_bytes, sha256 = copy_url(url, file, limits, sleep=lambda _: None)
    assert (num_bytes, sha256) == (len(file.getvalue()), hashlib.sha256(file.getvalue()).hexdigest())
    return file.getvalue()


def table(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(path: str, out: Path | str, **changes) -> DownloadConfig:
    return DownloadConfig(**{"table": path, "out": str(out), "limits": ANYWHERE} | changes)


@pytest.mark.parametrize("name", ["1", "busy", "short"])
def test_a_file_comes_whole_after_passing_failures(web: Web, name: str) -> None:
    assert fetched(f"http://127.0.0.1:{web.port}/a/{name}.mp4") == content(f"/a/{name}.mp4")
    assert web.asked[f"/a/{name}.mp4"] == {"1": 1, "busy": 3, "short": 2}[name]


def test_a_redirect_of_the_same_scheme_is_followed(web: Web) -> None:
    assert fetched(f"http://127.0.0.1:{web.port}/moved.mp4") == content("/a/1.mp4")


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("gone", Reason.MISSING, "HTTP 404"),
        ("down", Reason.UNAVAILABLE, "no answer to 3 requests, at last HTTP 500"),
        ("page", Reason.REFUSED, "a page, not a file"),
        ("astray", Reason.REFUSED, "Redirection to url 'file:///etc/hostname' is not allowed"),
        ("ftp", Reason.REFUSED, "leads from http to ftp"),
        ("endless", Reason.REFUSED, r"more than 0\.001 GiB: raise --limits\.max-gib"),
    ],
)
def test_what_does_not_come_has_its_reason(web: Web, name: str, reason: Reason, words: str) -> None:
    limits = WebLimits(allow_private=True, tries=3, max_gib=0.001)
    with pytest.raises(DecodeError, match=words) as caught:
        fetched(f"http://127.0.0.1:{web.port}/{name}.mp4", limits)
    assert caught.value.reason == reason


def test_a_host_that_gives_a_byte_now_and_then_is_left(web: Web) -> None:
    with pytest.raises(DecodeError, match=r"not here within 0\.1 s: raise --limits\.seconds") as caught:
        fetched(f"http://127.0.0.1:{web.port}/drip.mp4", WebLimits(allow_private=True, seconds=0.1))
    assert caught.value.reason == Reason.TIMEOUT


def test_a_password_in_a_url_is_in_no_message() -> None:
    with pytest.raises(DecodeError) as caught:
        fetched("http://someone:very-secret@example.org/a.mp4", WebLimits(tries=1))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "2130706433", "[::ffff:127.0.0.1]"])
def test_a_private_address_is_refused_before_a_request(web: Web, host: str) -> None:
    with pytest.raises(DecodeError, match=r"no public address: --limits\.allow-private takes it") as caught:
        fetched(f"http://{host}:{web.port}/a/1.mp4", WebLimits())
    assert caught.value.reason == Reason.REFUSED
    assert not web.asked


def test_a_redirect_to_a_private_address_is_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = itertools.chain([True], itertools.repeat(False))
    monkeypatch.setattr("pipeline.corpus.web.is_public", lambda _: next(verdicts))
    with pytest.raises(DecodeError, match="no public address"):
        fetched(f"http://127.0.0.1:{web.port}/moved.mp4", WebLimits())
    assert web.asked == {"/moved.mp4": 1}


def test_addresses_are_public_or_not() -> None:
    private = "10.1.2.3 172.16.0.1 169.254.169.254 100.64.0.1 224.0.0.1 fe80::1%eth0 fd00::1 ::ffff:10.0.0.1"
    assert not any(map(is_public, [*private.split(), "2002:0a00:0001::1"]))
    assert all(map(is_public, ["8.8.8.8", "2606:4700::1111"]))


def test_rows_get_the_paths_of_their_files_and_prepare_reads_them(web: Web, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{web.port}"
    rows = [{"video": f"{url}/a/{number}.mp4", "text": f"number {number}", "split": "test"} for number in range(8)]
    rows += [rows[0] | {"text": "again"}, {"video": f"{url}/gone.mp4", "text": "gone"}, {"video": None, "text": "none"}]
    done = download(config(table(tmp_path / "urls.jsonl", rows), tmp_path / "out"))
    assert (done.num_rows, done.num_files, done.num_asked) == (9, 8, 9)
    assert done.num_rejected == {"missing": 1, "wrong_row": 1}
    lost = {row.reason: row for row in read_ledger(done.ledger_path)}
    assert lost[Reason.MISSING].uri == f"{url}/gone.mp4"
    assert "urls.jsonl:11: video is no URL: None" in lost[Reason.WRONG_ROW].detail
    for line in map(json.loads, Path(done.clips_path).read_text().splitlines()):
        data = (tmp_path / "out" / line["clip_name"]).read_bytes()
        assert data == content(line["video"].removeprefix(url))
        assert hashlib.sha256(data).hexdigest() == line["sha256"]
    planned = plan(
        PrepareConfig(corpus="web", root=str(tmp_path / "out"), out=str(tmp_path / "c"), annotations=(done.clips_path,))
    )
    assert sorted(text for clip in planned.clips for text in clip.captions) == sorted(row["text"] for row in rows[:9])
    assert not planned.missing
    assert {clip.split for clip in planned.clips} == {"test"}


def test_a_pass_goes_on_where_it_stopped(web: Web, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{web.port}"
    path = table(tmp_path / "urls.jsonl", [{"url": f"{url}/a/{number}.mp4", "n": number} for number in range(20)])
    whole = download(config(path, tmp_path / "out"))
    again = download(config(path, tmp_path / "out"))
    assert (whole.num_asked, again.num_asked) == (20, 0)
    assert max(web.asked.values()) == 1
    lines = [json.loads(line) for line in Path(whole.clips_path).read_text().splitlines()]
    (tmp_path / "out" / lines[3]["clip_name"]).unlink()
    (tmp_path / "out" / lines[5]["clip_name"]).write_bytes(b"cut short")
    assert download(config(path, tmp_path / "out")).num_asked == 2
    assert all(len((tmp_path / "out" / line["clip_name"]).read_bytes()) == 3200 for line in lines)
    assert "20" in describe(again)


def test_what_a_limit_refused_is_asked_for_under_another(web: Web, tmp_path: Path) -> None:
    path = table(tmp_path / "urls.jsonl", [{"url": f"http://127.0.0.1:{web.port}/endless.mp4", "n": 0}])
    small = WebLimits(allow_private=True, max_gib=0.001)
    with pytest.raises(TooManyRejectedError, match="1 of 1 samples were rejected"):
        download(config(path, tmp_path / "out", limits=small))
    assert download(config(path, tmp_path / "out", limits=small, max_rejected_share=1.0)).num_asked == 0
    assert download(config(path, tmp_path / "out")).num_rows == 1


def test_no_host_gets_more_requests_at_once_than_allowed(web: Web, tmp_path: Path) -> None:
    web.seconds = 0.01
    rows = [{"url": f"http://{host}:{web.port}/a/{number}.mp4"} for host in HOSTS for number in range(12)]
    download(config(table(tmp_path / "urls.jsonl", rows), tmp_path / "out", num_per_host=2, num_at_once=8))
    assert set(web.most_at_once) == set(HOSTS)
    assert max(web.most_at_once.values()) == 2


def test_one_address_has_one_name_below_the_root() -> None:
    name = name_of_url("https://cdn.Example.com/a/b/My%20clip.MOV?X-Amz-Signature=1&X-Amz-Date=2&v=3")
    assert name == name_of_url("https://cdn.example.com/a/b/My%20clip.MOV?v=3&X-Amz-Signature=9")
    assert name.startswith("cdn_example_com/")
    assert name.endswith(".mov")
    paths = ("a.mp4", "b/a.mp4", "a.mp4?v=1", "a", "../../etc/passwd", "")
    names = {name_of_url(f"https://h/{path}") for path in paths}
    assert len(names) == 6
    assert all(".." not in each and each.count("/") == 2 and each.endswith(".mp4") for each in names)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clip,caption\na.mp4,a dog\n", r"no column is of URLs alone: say --column NAME, of 'clip', 'caption'"),
        ("url,thumb\nhttp://h/a,http://h/b\n", r"url and thumb are of URLs alone: say --column NAME"),
    ],
)
def test_a_table_whose_urls_are_not_certain_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_urls(str(tmp_path / "t.csv"))
    with pytest.raises(ValueError, match="no column 'x', it has"):
        read_urls(str(tmp_path / "t.csv"), "x")


def test_urls_are_read_from_lists_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://h/a.mp4\n\nhttps://h/b,c.mp4\n".replace(",", "%2C"))
    storage.write_table(str(tmp_path / "t.parquet"), pa.table({"contentUrl": ["https://h/a.mp4"], "name": ["a dog"]}))
    assert [row["1"] for row in read_urls(str(tmp_path / "list.txt"))[0]] == ["https://h/a.mp4", "https://h/b%2Cc.mp4"]
    assert read_urls(str(tmp_path / "t.parquet"))[2] == "contentUrl"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """A folder in the place of the hub's data sets."""

    class Hub(DirFileSystem):
        protocol = "hf"

        def __init__(self, **_: object) -> None:
            super().__init__(path=str(tmp_path / "hub"), fs=fsspec.filesystem("file"))

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path.removeprefix("hf://")

    fsspec.register_implementation("hf", Hub, clobber=True)
    yield tmp_path / "hub"
    fsspec.register_implementation("hf", "huggingface_hub.HfFileSystem", clobber=True)


def test_a_data_set_of_the_hub_is_a_root_and_its_files_are_downloaded(hub: Path, tmp_path: Path) -> None:
    folder = hub / "datasets" / "someone" / "clips"
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "a.mp4").write_bytes(b"film")
    (folder / "metadata.csv").write_text("file_name,caption\nvideos/a.mp4,a dog\n")
    root = "hf://datasets/someone/clips"
    planned = plan(PrepareConfig(corpus="hub", root=root, out=str(tmp_path / "out")))
    assert [(clip.relative_path, clip.captions) for clip in planned.clips] == [("videos/a.mp4", ("a dog",))]
    assert not planned.missing
    assert storage.read_bytes(open_source(root).places["videos/a.mp4"]) == b"film"
    path = table(tmp_path / "urls.jsonl", [{"url": f"{root}/videos/{name}.mp4"} for name in ("a", "gone")])
    done = download(config(path, tmp_path / "copied", max_rejected_share=0.5))
    assert (done.num_rows, done.num_rejected) == (1, {"missing": 1})
    assert fetched(f"{root}/videos/a.mp4") == b"film"


def test_the_hub_refuses_and_the_remedy_is_said(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class RefusedError(OSError):
        response = type("Response", (), {"status_code": 403})()

    def refuse(*_: object, **__: object) -> None:
        raise RefusedError("gated")

    monkeypatch.setattr(DirFileSystem, "cat_file", refuse)
    with pytest.raises(PermissionError, match="set HF_TOKEN, and accept the terms of a gated data set"):
        storage.read_bytes("hf://datasets/someone/gated/a.mp4")
