"""The watcher against a metadata service of our own, which answers as the two clouds do."""

from __future__ import annotations

import datetime
import http.server
import json
import threading
from collections.abc import Callable, Iterator

import pytest

from cluster.spot_notice import GCP_SECONDS, NoticeConfig, aws_seconds_left, seconds_left, watch

NOW = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)
END = "2026-11-23T12:01:50Z"
ADDRESS = "127.0.0.1:6379"
NOTICE = json.dumps({"action": "terminate", "time": END})

Serve = Callable[[dict[str, str]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A function that serves texts by path, and refuses whoever does not ask as the clouds want it; its address."""
    servers = []

    def start(texts: dict[str, str]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, status: int, text: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def do_PUT(self) -> None:
                has_ttl = "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
                self.answer(200, "session") if has_ttl else self.answer(400)

            def do_GET(self) -> None:
                is_google = self.headers.get("Metadata-Flavor") == "Google"
                if not is_google and self.headers.get("X-aws-ec2-metadata-token") != "session":
                    self.answer(401)
                elif self.path in texts:
                    self.answer(200, texts[self.path])
                else:
                    self.answer(404)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


AWS_PATH = "/latest/meta-data/spot/instance-action"
GCP_PATH = "/computeMetadata/v1/instance/preempted"


@pytest.mark.parametrize(
    ("cloud", "texts", "expected"),
    [
        ("aws", {}, None),
        ("aws", {AWS_PATH: NOTICE}, 110.0),
        ("gcp", {GCP_PATH: "FALSE"}, None),
        ("gcp", {GCP_PATH: "TRUE"}, GCP_SECONDS),
    ],
)
def test_a_notice_is_read_as_the_cloud_gives_it(serve: Serve, cloud, texts: dict[str, str], expected) -> None:
    config = NoticeConfig(cloud=cloud, address=ADDRESS, metadata_url=serve(texts))
    assert seconds_left(config, NOW) == expected


def test_a_time_that_has_passed_leaves_nothing() -> None:
    assert aws_seconds_left(NOTICE, NOW + datetime.timedelta(minutes=5)) == 0


def test_the_watcher_acts_once_at_the_first_notice(serve: Serve) -> None:
    texts = {GCP_PATH: "FALSE"}
    config = NoticeConfig(cloud="gcp", address=ADDRESS, metadata_url=serve(texts))
    acted, pauses = [], []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            texts[GCP_PATH] = "TRUE"

    watch(config, acted.append, pause)
    assert acted == [GCP_SECONDS]
    assert pauses == [config.every_seconds] * 3


def test_a_service_that_is_away_is_asked_again(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    config = NoticeConfig(cloud="aws", address=ADDRESS, metadata_url="http://127.0.0.1:9")
    asked = []

    class EnoughError(Exception):
        pass

    def pause(_: float) -> None:
        asked.append(1)
        if len(asked) == 3:
            raise EnoughError

    with pytest.raises(EnoughError):
        watch(config, pytest.fail, pause)
    assert capsys.readouterr().out.count("cannot be read") == 1


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="every_seconds must be above 0, got 0"):
        NoticeConfig(cloud="aws", address=ADDRESS, every_seconds=0)
