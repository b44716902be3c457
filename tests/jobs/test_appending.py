"""A corpus in parts to which videos are added: these alone are looked at, and what changed is said."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from jobs.benchmarks.support.search_run import in_turn
from jobs.corpus.preparation import PrepareConfig, describe, prepare
from pipeline.corpus.manifest import checksum, open_manifest, read_manifest
from pipeline.decode.codec import encode_video
from pipeline.offline import stages

LOOKED_AT: list[str] = []


@pytest.fixture(autouse=True)
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are looked at, in this process."""

    def recorded(blocks, function, subcluster=None):
        LOOKED_AT.extend(Path(uri).stem for block in blocks for uri in block["uri"].to_pylist())
        return in_turn(blocks, function, subcluster)

    monkeypatch.setattr(stages, "stream_blocks", recorded)
    monkeypatch.setattr("cluster.connection.connected_ray", contextlib.nullcontext)
    LOOKED_AT.clear()
    return LOOKED_AT


def write_video(folder: Path, name: str, seed: int) -> None:
    frames = np.random.default_rng(seed).integers(0, 255, (8, 32, 32, 3), np.uint8)
    (folder / "videos").mkdir(exist_ok=True)
    (folder / "videos" / f"{name}.mp4").write_bytes(encode_video(frames, fps=8))


def prepared(folder: Path, captions: dict[str, str], out: str = "out"):
    lines = [json.dumps({"clip_name": name, "caption": text, "split": "train"}) for name, text in captions.items()]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    settings = {"corpus": "toy", "root": str(folder / "videos"), "annotations": (str(folder / "captions.jsonl"),)}
    return prepare(PrepareConfig(**settings, out=str(folder / out), in_parts=True, max_rejected_share=1.0))


def test_added_videos_get_parts_of_their_own_and_changed_ones_are_looked_at_again(tmp_path, looked_at) -> None:
    captions = {name: f"this is {name}" for name in ("a", "b")}
    for seed, name in enumerate(captions):
        write_video(tmp_path, name, seed)
    first = prepared(tmp_path, captions)
    before = open_manifest(first.manifest_path).index
    assert (first.change, looked_at) == ("", ["a", "b"])

    looked_at.clear()
    write_video(tmp_path, "c", 2)
    second = prepared(tmp_path, captions | {"c": "this is c"})
    after = open_manifest(second.manifest_path).index
    assert looked_at == ["c"]
    assert after.parts[:-1] == before.parts
    counts = "1 clips added, 0 gone, 0 changed: train 2 → 3"
    assert second.change == f"{counts}; version 2 was 1; hash {after.hash} was {before.hash}"
    assert f"changed   {second.change}" in describe(second)
    anew = prepared(tmp_path, captions | {"c": "this is c"}, out="anew")
    assert anew.manifest_hash == second.manifest_hash
    assert read_manifest(anew.manifest_path).table.equals(read_manifest(second.manifest_path).table)

    looked_at.clear()
    write_video(tmp_path, "a", 7)
    third = prepared(tmp_path, {"a": "this is a", "c": "it is c"})
    rows = {row["captions"][0]: row for row in read_manifest(third.manifest_path).table.to_pylist()}
    data = (tmp_path / "videos" / "a.mp4").read_bytes()
    assert looked_at == ["a"]
    assert rows.keys() == {"this is a", "it is c"}
    assert rows["this is a"]["checksum"] == checksum(data)
    assert third.change.startswith("0 clips added, 1 gone, 2 changed: train 3 → 2; version 3 was 2; hash ")
    for version, done in enumerate((first, second, third), start=1):
        assert open_manifest(f"{third.manifest_path}@{version}").hash == done.manifest_hash
