"""Scores of a corpus, and new versions of its manifest by thresholds."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_run import made_run

from jobs.benchmarks.support.fixtures import manifest_row
from jobs.corpus.filtering import FilterConfig, describe, filter_clips, rule_of
from jobs.inference.clip_match import ClipMatcher
from jobs.inference.model import load
from pipeline import storage
from pipeline.corpus.ledger import read_ledger
from pipeline.corpus.manifest import make_manifest, read_manifest, write_manifest
from pipeline.decode.codec import encode_video
from pipeline.records import Reason

BARS_PX = (0, 0, 8, 16)


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Four clips of noise that stands or moves, two of them with bars, one of a test split, and a file that is none."""
    monkeypatch.setattr("pipeline.offline.kept.map_blocks", lambda blocks, look, subcluster: map(look, blocks))
    monkeypatch.setattr("cluster.connection.connected_ray", contextlib.nullcontext)
    noise = np.random.default_rng(0).integers(60, 250, (10, 24, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    rows = []
    for number, bar in enumerate(BARS_PX):
        frames = np.stack([noise[:64, way : way + 96] for way in np.arange(8) * 2 * (number % 2)]).copy()
        frames[:, :bar] = frames[:, 64 - bar :] = 0
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(encode_video(frames, fps=8, crf=10))
        split = "test" if number == 3 else "train"
        rows.append(manifest_row("toy", path, "a caption of words" if number else "one", split))
    rows.append(rows[0] | {"clip_id": 9, "uri": str(tmp_path / "gone.mp4")})
    write_manifest(make_manifest("toy", str(tmp_path), rows), str(tmp_path / "manifest.parquet"))
    return str(tmp_path / "manifest.parquet")


def test_scores_alone_leave_the_manifest_as_it_is(manifest: str, tmp_path: Path) -> None:
    before = Path(manifest).read_bytes()
    done = filter_clips(FilterConfig(manifest=manifest, out=str(tmp_path / "out")))
    assert Path(manifest).read_bytes() == before
    assert done.prepared is None
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    rows = {Path(row["uri"]).stem: row for row in storage.read_table(done.scores_path).to_pylist()}
    assert [rows[str(n)]["letterbox"] for n in range(4)] == pytest.approx([0, 0, 0.25, 0.5], abs=0.04)
    assert [rows[str(n)]["static"] > 0.9 for n in range(4)] == [True, False, True, False]
    assert rows["1"]["motion"] > 10 * rows["0"]["motion"]
    assert [rows[str(n)]["caption_words"] for n in range(4)] == [1, 4, 4, 4]
    assert {row["aspect"] for row in rows.values()} == {1.5}
    assert done.num_unreadable == 1
    assert "letterbox" in describe(done)


def test_rules_write_a_new_version_and_say_what_each_takes_out(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    filter_clips(FilterConfig(manifest=manifest, out=out))
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.curation.scores.clip_frames", lambda clip, **_: pytest.fail(f"{clip['uri']} again"))
        patched.setattr("pipeline.offline.shards.TRANSIENT", frozenset())
        patched.setattr("pipeline.offline.kept.TRANSIENT", frozenset())
        keep = ("letterbox<=0.1", "caption_words >= 2")
        done = filter_clips(FilterConfig(manifest=manifest, out=out, keep=keep))
    assert done.prepared
    assert done.taken_out == {"letterbox<=0.1": (1, 1), "caption_words>=2": (1, 1)}
    new, old = read_manifest(done.prepared.manifest_path), read_manifest(manifest)
    assert sorted(Path(uri).stem for uri in new.table["uri"].to_pylist()) == ["1", "3"]
    assert new.hash != old.hash
    lost = {Path(row.uri).stem: row for row in read_ledger(done.prepared.ledger_path)}
    assert {name: row.reason for name, row in lost.items()} == {
        "0": Reason.FILTERED,
        "2": Reason.FILTERED,
        "gone": Reason.MISSING,
    }
    assert lost["0"].detail == "caption_words 1 is not caption_words>=2"
    page = Path(done.page_path).read_text()
    assert page.count("<figure>") == 4 + 4
    assert "letterbox&lt;=0.1" in page


def test_a_clip_matches_its_caption_as_the_model_says_and_is_not_asked_again(manifest: str, tmp_path: Path) -> None:
    run = made_run(tmp_path)
    config = FilterConfig(manifest=manifest, out=str(tmp_path / "out"), keep=("match>=-1",), model=run, language="de")
    done = filter_clips(config, ClipMatcher.load)
    model = load(run)
    texts = {row["uri"]: row["captions"][0] for row in read_manifest(manifest).table.to_pylist()}
    for row in storage.read_table(done.scores_path).to_pylist():
        videos, caption = model.embed_videos([row["uri"]]), model.embed_texts([texts[row["uri"]]])
        cosines = torch.einsum("qd,ctd->qct", caption.vectors, videos.vectors) / model.temperature
        expected = cosines.exp().mean().log() * model.temperature
        assert row["match"] == pytest.approx(expected.item(), abs=1e-5)
        assert row["caption_language"] in (0.0, None)

    class Refusing:
        name = ClipMatcher.load(run, config.limits).name

        def __call__(self, clip: Mapping[str, Any]) -> float:
            raise AssertionError(f"{clip['uri']} again")

    again = filter_clips(config, lambda *_: Refusing())
    assert storage.read_table(again.scores_path) == storage.read_table(done.scores_path)


def test_what_cannot_work_is_refused(manifest: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="match is scored by a model: name a run, --model FOLDER"):
        FilterConfig(manifest=manifest, out="out", keep=("match>=0",))
    with pytest.raises(ValueError, match="language must be one of ar, bn, de"):
        FilterConfig(manifest=manifest, out="out", language="klingon")
    for text in ("motion", "speed>=1", "motion>1", "motion>=fast"):
        with pytest.raises(ValueError, match="rules are SCORE>=NUMBER or SCORE<=NUMBER, with motion"):
            rule_of(text)
    with pytest.raises(ValueError, match="rules are"):
        FilterConfig(manifest=manifest, out="out", keep=("speed>=1",))
    with pytest.raises(ValueError, match="so that both remain"):
        filter_clips(FilterConfig(manifest=manifest, out=str(tmp_path)))
    assert rule_of("motion >= 2e-2").keeps(None)
    assert not rule_of("motion>=2e-2").keeps(0.01)
