"""Signatures, tokens and passwords leave no process: not by the terminal, a log, a ledger, a journal or MLflow."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.tracking import mlflow_runs, voice
from jobs.tracking.journal import Journal, read_journals
from pipeline.corpus.ledger import write_ledger
from pipeline.records import Reason, Rejected, Stage

SECRET = "LE7HtUS1L7LZNdjCWqMrjLnAe50s"
TEXTS = (
    f"http://h:7690/a.mp4?AWSAccessKeyId=test&Signature={SECRET}%3D&Expires=1795875363 must be a path",
    f"GET https://b.s3.amazonaws.com/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Security-Token={SECRET}&X-Amz-Date=1",
    f"https://b.s3.amazonaws.com/k?x-amz-signature={SECRET}",
    f"https://storage.googleapis.com/b/k?X-Goog-Signature={SECRET}",
    f"https://a.blob.core.windows.net/c/b?sp=r&sig={SECRET}&se=2027",
    f"no answer from https://user:{SECRET}@tracking.example/health",
    f"headers {{'Authorization': 'Bearer {SECRET}'}}",
    f"env AWS_SECRET_ACCESS_KEY={SECRET} python x.py",
    f'{{"MLFLOW_TRACKING_PASSWORD": "{SECRET}"}}',
    f"RAY_AUTH_TOKEN='{SECRET}'",
)
PLAIN = (
    "max_tokens=77: a clip at s3://bucket/a.mp4#bytes=0-10&name=x.mp4, PATH.lmdb#key=Signature, token 5 of 9",
    "http://127.0.0.1:8265/api/version?a=b and user@host.example, 3 accessed keys: all",
)


@pytest.mark.parametrize("text", TEXTS)
def test_no_secret_is_shown_or_logged(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    voice.Terminal(stream).say(text)
    voice.show(text)
    voice.say(text)
    record = logging.LogRecord("ray", logging.ERROR, "", 0, "%s", (text,), None)
    logged = voice.log_formatter().format(record)
    shown = capsys.readouterr()
    for written in (stream.getvalue(), shown.out, shown.err, logged):
        assert written.strip()
        assert SECRET not in written


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    voice.show(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_a_key_of_the_environment_is_known_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    voice.show(f"the store said: {SECRET} is no key of mine")
    assert SECRET not in capsys.readouterr().out


def test_ledger_and_journal_hold_no_secret(tmp_path: Path) -> None:
    lost = [
        Rejected(clip_id=number, uri=text, stage=Stage.TRAIN, reason=Reason.MISSING, detail=text)
        for number, text in enumerate(TEXTS)
    ]
    write_ledger(lost, str(tmp_path / "ledger.parquet"))
    table = pq.read_table(tmp_path / "ledger.parquet")
    assert len(table) == len(TEXTS)
    assert SECRET not in str(table.to_pydict())
    journal = Journal(str(tmp_path), "rank-0")
    for text in TEXTS:
        journal.note("lost", cause=text, rank=0)
    journal.flush()
    lines = read_journals(str(tmp_path))
    assert len(lines) == len(TEXTS)
    assert SECRET not in str(lines)


def test_mlflow_gets_no_secret(tmp_path: Path) -> None:
    params = {f"field.{number}": text for number, text in enumerate(TEXTS)} | {"optim.lr": 0.1}
    tracker = mlflow_runs.open_run(str(tmp_path), experiment="x", name="n", identity_hash="h", params=params)
    tracker.log_dataset("corpus", "hash", TEXTS[0])
    run = tracker.client.get_run(tracker.run_id)
    assert run.data.params["optim.lr"] == "0.1"
    assert run.data.params.keys() == params.keys()
    assert SECRET not in str(run.to_dictionary())
