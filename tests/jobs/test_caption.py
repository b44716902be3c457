"""Captions through an endpoint that fails now and then: each clip once, none lost, no key in sight."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from endpoint import INPUT_TOKENS, OUTPUT_TOKENS, StubEndpoint, frames_showing, serving

from jobs.benchmarks.support.fixtures import manifest_row
from jobs.corpus.captioning import CaptionConfig, caption, describe
from pipeline import storage
from pipeline.corpus.ledger import TooManyRejectedError, read_ledger
from pipeline.corpus.manifest import make_manifest, read_manifest, write_manifest
from pipeline.curation.endpoint import EndpointConfig, RateLimiter
from pipeline.decode.codec import encode_video
from pipeline.records import Reason

NUM_CLIPS, NUM_FEW = 60, 6


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Clips that show their numbers. The first has a caption."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number in range(NUM_CLIPS):
        path = folder / f"{number}.mp4"
        path.write_bytes(encode_video(frames_showing(number, 4), fps=4))
        rows.append(manifest_row("toy", path, "") | {"captions": ["as annotated"] if number == 0 else []})
    write_manifest(make_manifest("toy", str(folder), rows), str(folder / "manifest.parquet"))
    return str(folder / "manifest.parquet")


@pytest.fixture(scope="module")
def few(manifest: str) -> str:
    """Six of the clips."""
    clips = read_manifest(manifest)
    rows = [row for row in clips.table.to_pylist() if int(Path(row["uri"]).stem) < NUM_FEW]
    path = manifest.replace("manifest.parquet", "few.parquet")
    write_manifest(make_manifest("toy", clips.root, rows), path)
    return path


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubEndpoint:
    stub = StubEndpoint()
    monkeypatch.setenv("OPENAI_API_KEY", stub.key)
    monkeypatch.setattr("pipeline.storage.FIRST_PAUSE_SECONDS", 0.01)
    return stub


def config(manifest: str, out: Path, url: str, source: str | None = None, **endpoint) -> CaptionConfig:
    prices = {"dollars_per_million_input_tokens": 0.5, "dollars_per_million_output_tokens": 2.0}
    asked = EndpointConfig(**{"url": url, "model": "stub", "timeout_seconds": 0.5} | prices | endpoint)
    return CaptionConfig(
        manifest=manifest, out=str(out), endpoint=asked, source=source, num_frames=2, frame_size_px=128
    )


def numbers_in(path: str) -> dict[str, list[str]]:
    return {Path(row["uri"]).stem: row["captions"] for row in read_manifest(path).table.to_pylist()}


def test_errors_and_silence_lose_no_clip_and_the_cost_is_stated(
    manifest: str, stub: StubEndpoint, tmp_path: Path
) -> None:
    stub.fail_every, stub.hang_every = 20, 50
    with serving(stub) as url:
        done = caption(config(manifest, tmp_path / "out", url))
        assert caption(config(manifest, tmp_path / "out", url)).num_asked == 0
    captions = numbers_in(done.prepared.manifest_path)
    assert captions.pop("0") == ["as annotated", "clip 0 in 2 frames"]
    assert captions == {str(number): [f"clip {number} in 2 frames"] for number in range(1, NUM_CLIPS)}
    assert done.num_requests > NUM_CLIPS
    assert (done.input_tokens, done.output_tokens) == (NUM_CLIPS * INPUT_TOKENS, NUM_CLIPS * OUTPUT_TOKENS)
    assert done.dollars_per_thousand == pytest.approx(1000 * (INPUT_TOKENS * 0.5 + OUTPUT_TOKENS * 2) / 1e6)
    assert "$0.47 per thousand captions, $0.03 in all" in describe(done)
    assert read_ledger(done.prepared.ledger_path) == []


def test_sources_live_side_by_side_and_nothing_is_written_over(few: str, stub: StubEndpoint, tmp_path: Path) -> None:
    with serving(stub) as url:
        first = caption(config(few, tmp_path / "a", url, source="one")).prepared
        second = caption(config(first.manifest_path, tmp_path / "b", url, source="two", prompt="?")).prepared
        rows = {Path(row["uri"]).stem: row for row in read_manifest(second.manifest_path).table.to_pylist()}
        assert rows["0"]["caption_sources"] == [None, "one", "two"]
        assert rows["5"]["caption_sources"] == ["one", "two"]
        num_requests = stub.num_requests
        for other, words in (
            (config(second.manifest_path, tmp_path / "c", url, source="one"), "has captions of 'one' already"),
            (
                config(few, tmp_path / "a", url, source="one", prompt="Why?"),
                "of another prompt: take another --out",
            ),
            (config(first.manifest_path, tmp_path / "a", url, source="three"), "so that both remain"),
        ):
            with pytest.raises(ValueError, match=words):
                caption(other)
    assert stub.num_requests == num_requests
    assert read_manifest(few).table["caption_sources"].null_count == NUM_FEW


def test_a_kill_in_the_middle_loses_no_clip_and_asks_for_none_that_was_kept(
    manifest: str, stub: StubEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.launch.lease.EXPIRES_SECONDS", 1.0)
    out = tmp_path / "out"
    with serving(stub) as url:
        asked = ["--endpoint.url", url, "--endpoint.model", "stub", "--num-frames", "2", "--frame-size-px", "128"]
        command = [sys.executable, "-m", "jobs.caption", "--manifest", manifest, "--out", str(out), *asked]
        command += ["--num-at-once", "2", "--endpoint.requests-per-minute", "600"]
        process = subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while sum(stub.answered.values()) < NUM_CLIPS // 2:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        printed = process.communicate()[0].decode()
        kept = sum(len(storage.read_table(str(path))) for path in (out / "answers").glob("*.parquet"))
        assert 0 < kept < NUM_CLIPS
        before = Counter(stub.answered)
        done = caption(config(manifest, out, url))
    assert done.num_asked == NUM_CLIPS - kept
    assert numbers_in(done.prepared.manifest_path).keys() == set(map(str, range(NUM_CLIPS)))
    assert all(len(set(texts)) == len(texts) for texts in numbers_in(done.prepared.manifest_path).values())
    again = sum(stub.answered[text] - 1 for text in stub.answered)
    assert again == sum(before.values()) - kept <= 8 + 2 * 2
    assert stub.key not in printed


def test_a_key_is_in_no_message_and_a_wrong_one_stops_at_once(
    few: str, stub: StubEndpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub.status = 401
    with serving(stub) as url, caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match="every clip") as refused:
        caption(config(few, tmp_path / "out", url))
    assert "OPENAI_API_KEY is set" in str(refused.value)
    assert "Incorrect API key provided: REDACTED" in str(refused.value)
    assert stub.key not in caplog.text + str(refused.value) + repr(refused.value.__cause__)
    assert stub.num_requests <= 2 * 8 + 1


def test_clips_without_an_answer_are_in_the_ledger(few: str, stub: StubEndpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serving(stub) as url:
        stub.status = 400
        with pytest.raises(TooManyRejectedError, match=rf"{NUM_FEW} of {NUM_FEW} samples .*no_caption {NUM_FEW}"):
            caption(config(few, out, url))
        stub.status = 503
        with pytest.raises(TooManyRejectedError, match="unavailable"):
            caption(config(few, tmp_path / "other", url, tries=2))
        assert {row.reason for row in read_ledger(str(tmp_path / "other" / "rejected.parquet"))} == {Reason.UNAVAILABLE}
        stub.status = None
        assert caption(config(few, tmp_path / "other", url)).num_asked == NUM_FEW
    text = (tmp_path / "other" / "caption.json").read_text()
    assert not re.search(stub.key, text)


def test_requests_start_at_equal_intervals() -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = RateLimiter(120.0, clock=lambda: now[0], sleep=sleep)
    for _ in range(4):
        pace.wait()
    assert slept == [0.5, 0.5, 0.5]
    now[0] = 60.0
    pace.wait()
    assert len(slept) == 3


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        EndpointConfig(url="localhost:8000", model="m")
    with pytest.raises(ValueError, match=r"endpoint\.requests_per_minute must be above 0, got 0.0"):
        EndpointConfig(url="http://h/v1", model="m", requests_per_minute=0.0)
