"""Two of the same job at once on one folder: the second is refused while the first lives, and nothing of it is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import corpus

from jobs.corpus import deduplication, packing, preparation, word_mining
from jobs.corpus.deduplication import DeduplicateConfig, deduplicate
from jobs.corpus.packing import PackConfig, pack
from jobs.corpus.preparation import PrepareConfig, prepare
from jobs.corpus.word_mining import MineConfig, mine_words
from jobs.launch import lease
from pipeline.corpus.manifest import write_manifest

FIRST_START = """
import sys, time
from jobs.tracking import mlflow_runs
import mlflow.store.tracking.sqlalchemy_store
print("ready", flush=True)
sys.stdin.readline()
print(mlflow_runs.open_run(sys.argv[1], experiment="x", name=sys.argv[2], identity_hash="h", params={"a": 1}).run_id)
"""


def while_the_first_works(
    monkeypatch: pytest.MonkeyPatch, module: Any, step: str, job: Callable[[], object], folder: Path
) -> list[str]:
    """Start `job` again when the first has come to `step` of its module; return what the second was refused with."""
    refusals: list[str] = []
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.1)

    def once_more(*_: Any, **__: Any) -> Any:
        assert (folder / lease.LEASE).exists()
        try:
            job()
        except ValueError as error:
            refusals.append(str(error))
        raise InterruptedError("the first ends here")

    monkeypatch.setattr(module, step, once_more)
    with pytest.raises(InterruptedError):
        job()
    return refusals


def test_a_second_prepare_is_refused_while_the_first_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"no video")
    (tmp_path / "captions.jsonl").write_text('{"clip_name": "a.mp4", "caption": "a dog runs"}\n')
    config = PrepareConfig(
        corpus="toy", root=str(videos), annotations=(str(tmp_path / "captions.jsonl"),), out=str(out)
    )
    (refusal,) = while_the_first_works(monkeypatch, preparation, "_probe", lambda: prepare(config), out)
    assert f"{out} has a live" in refusal
    assert "another folder" in refusal
    assert not (out / lease.LEASE).exists()


def test_a_second_pack_is_refused_while_the_first_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(corpus(), str(tmp_path / "manifest.parquet"))
    config, out = PackConfig(manifest=str(tmp_path / "manifest.parquet"), out=str(tmp_path / "out")), tmp_path / "out"
    (refusal,) = while_the_first_works(monkeypatch, packing, "packed_portions", lambda: pack(config), out)
    assert f"{out} has a live" in refusal
    assert not (out / lease.LEASE).exists()


def test_a_second_search_for_copies_is_refused_while_the_first_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(corpus(), str(tmp_path / "manifest.parquet"))
    out = tmp_path / "out"
    config = DeduplicateConfig(manifest=str(tmp_path / "manifest.parquet"), out=str(out))
    (refusal,) = while_the_first_works(monkeypatch, deduplication, "connected_ray", lambda: deduplicate(config), out)
    assert f"{out} has a live" in refusal


def test_a_second_count_of_words_is_refused_while_the_first_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "captions.jsonl").write_text('{"clip_name": "a.mp4", "caption": "a dog runs"}\n')
    (tmp_path / "vocabulary.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndog\n")
    out = tmp_path / "out"
    config = MineConfig(
        captions=(str(tmp_path / "captions.jsonl"),), vocabulary=str(tmp_path / "vocabulary.txt"), out=str(out)
    )
    (refusal,) = while_the_first_works(monkeypatch, word_mining, "read_captions", lambda: mine_words(config), out)
    assert f"{out} has a live" in refusal


def test_a_lease_below_the_root_is_no_part_of_the_corpus(tmp_path: Path) -> None:
    files = ("a.mp4", f"out/{lease.LEASE}", "out/manifest.parquet")
    ours = [name for name in files if preparation._is_output(name, str(tmp_path), f"{tmp_path}/out")]
    assert ours == [*files[1:]]


@pytest.mark.slow
def test_first_starts_at_once_make_one_database(tmp_path: Path) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    starts = [
        subprocess.Popen([sys.executable, "-c", FIRST_START, str(tmp_path), f"run-{number}"], text=True, **pipes)
        for number in range(3)
    ]
    for start in starts:
        assert start.stdout
        assert start.stdout.readline() == "ready\n"
    time.sleep(0.1)
    said = []
    for start in starts:
        assert start.stdin
        start.stdin.write("go\n")
        start.stdin.flush()
    for start in starts:
        said.append(start.communicate(timeout=120))
    assert [start.returncode for start in starts] == [0, 0, 0], [error[-500:] for _, error in said]
    assert len({output for output, _ in said}) == 3
