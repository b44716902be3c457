from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.benchmarks.dedup import FPS, copied, dedup, frames_of, scored
from jobs.benchmarks.dedup_scale import dedup_scale
from jobs.command_line.entry import exit_status
from jobs.corpus.deduplication import DeduplicateConfig, deduplicate, describe
from jobs.deduplicate import main
from pipeline import storage
from pipeline.corpus import manifest
from pipeline.corpus.ledger import read_ledger
from pipeline.corpus.manifest import make_manifest, read_manifest, write_manifest
from pipeline.decode.codec import encode_video, open_video
from pipeline.dedup.duplicates import SimilarityConfig
from pipeline.records import Reason


def write_corpus(folder: str, files: dict[str, tuple[str, bytes]], corpus: str = "toy") -> str:
    """The manifest of files, each with its split."""
    rows = []
    for name, (split, data) in files.items():
        storage.write_bytes_atomic(storage.join(folder, name), data)
        with open_video(data) as video:
            info = video.info
        rows.append(
            {
                "clip_id": manifest.clip_id(corpus, name),
                "uri": storage.join(folder, name),
                "captions": [f"this is {split}"],
                "kind": "video",
                "split": split,
                "width": info.width,
                "height": info.height,
                "fps": info.fps,
                "duration_seconds": info.duration_seconds,
                "num_frames": info.num_frames,
                "bytes": len(data),
                "checksum": manifest.checksum(data),
            }
        )
    path = storage.join(folder, "manifest.parquet")
    write_manifest(make_manifest(corpus, folder, rows), path)
    return path


@pytest.fixture(scope="module")
def files() -> dict[str, tuple[str, bytes]]:
    """Six clips, one of them twice, a copy of another one, and a copy of a test clip in training."""
    data = [encode_video(frames_of(0, 10 * index + 5), fps=FPS) for index in range(6)]
    rng = np.random.default_rng(0)
    made = {f"v{index}.mp4": ("test" if index == 5 else "train", one) for index, one in enumerate(data)}
    made["v0-again.mp4"] = ("train", data[0])
    made["v1-copy.mp4"] = ("train", copied(data[1], rng))
    made["v5-copy.mp4"] = ("train", copied(data[5], rng))
    return made


def read_pairs(path: str) -> list[dict]:
    return pq.read_table(io.BytesIO(storage.read_bytes(path))).to_pylist()


def names_of(rows: list[dict]) -> set[tuple[str, str, str]]:
    return {(Path(row["uri"]).name, Path(row["other_uri"]).name, row["kind"]) for row in rows}


def check_found(path: str, out: str) -> None:
    done = deduplicate(DeduplicateConfig(manifest=path, out=out, write_filtered=True))
    assert done.num_pairs == {"exact": 1, "near": 1, "leak": 1}
    pairs = names_of(read_pairs(done.pairs_path))
    assert {frozenset(pair[:2]) for pair in pairs if pair[2] == "exact"} == {frozenset({"v0.mp4", "v0-again.mp4"})}
    assert ("v5-copy.mp4", "v5.mp4", "leak") in pairs
    gone = {Path(one.uri).name: one for one in read_ledger(storage.join(out, "rejected.parquet"))}
    assert {name.removesuffix(".mp4").split("-")[0] for name in gone} == {"v0", "v1", "v5"}
    assert gone["v5-copy.mp4"].reason == Reason.LEAKED
    assert str(manifest.clip_id("toy", "v5.mp4")) in gone["v5-copy.mp4"].detail
    assert sorted(one.reason for one in gone.values()) == [Reason.DUPLICATE, Reason.DUPLICATE, Reason.LEAKED]
    before, after = read_manifest(path).table, read_manifest(storage.join(out, "manifest.parquet")).table
    left = [row for row in before.to_pylist() if row["clip_id"] not in {one.clip_id for one in gone.values()}]
    assert after.to_pylist() == left
    assert "pairs      exact 1, near 1, leak 1 in 3 groups" in describe(done)


@pytest.mark.ray
def test_copies_are_reported_removed_and_named_in_the_ledger(tmp_path, files, local_ray):
    path = write_corpus(str(tmp_path / "videos"), files)
    check_found(path, str(tmp_path / "out"))


@pytest.mark.ray
def test_a_corpus_in_a_bucket_is_searched_there(bucket, files, local_ray):
    path = write_corpus(f"{bucket}/videos", files)
    check_found(path, f"{bucket}/out")
    assert storage.exists(f"{bucket}/videos/manifest-fingerprints")


@pytest.mark.ray
def test_a_search_again_decodes_nothing_and_finds_the_same(tmp_path, files, local_ray):
    path = write_corpus(str(tmp_path / "videos"), files)
    first = deduplicate(DeduplicateConfig(manifest=path, out=str(tmp_path / "out")))
    pairs = Path(first.pairs_path).read_bytes()
    for name in files:
        (tmp_path / "videos" / name).unlink()
    again = deduplicate(DeduplicateConfig(manifest=path, out=str(tmp_path / "out")))
    assert (again.num_unreadable, Path(again.pairs_path).read_bytes()) == (0, pairs)
    assert not (tmp_path / "out" / "manifest.parquet").exists()


@pytest.mark.ray
def test_training_clips_that_another_corpus_shows_are_removed(tmp_path, files, local_ray):
    ours = {name: ("train", data) for name, (_, data) in files.items() if name in ("v2.mp4", "v3.mp4")}
    theirs = {"q.mp4": ("test", copied(files["v3.mp4"][1], np.random.default_rng(1)))}
    path = write_corpus(str(tmp_path / "ours"), ours)
    other = write_corpus(str(tmp_path / "theirs"), theirs, corpus="benchmark")
    done = deduplicate(
        DeduplicateConfig(manifest=path, out=str(tmp_path / "out"), against=(other,), write_filtered=True)
    )
    assert done.num_removed == {"leaked": 1}
    (row,) = read_pairs(done.pairs_path)
    assert (Path(row["uri"]).name, row["other_corpus"], row["other_split"]) == ("v3.mp4", "benchmark", "test")
    (gone,) = read_ledger(str(tmp_path / "out" / "rejected.parquet"))
    assert "benchmark/test" in gone.detail


@pytest.mark.ray
def test_a_clip_that_cannot_be_read_is_rejected_with_its_reason(tmp_path, files, local_ray):
    path = write_corpus(str(tmp_path / "videos"), {name: files[name] for name in ("v2.mp4", "v3.mp4")})
    (tmp_path / "videos" / "v2.mp4").unlink()
    done = deduplicate(DeduplicateConfig(manifest=path, out=str(tmp_path / "out"), write_filtered=True))
    assert (done.num_unreadable, done.num_removed) == (1, {"missing": 1})
    assert len(read_manifest(str(tmp_path / "out" / "manifest.parquet"))) == 1
    said = json.loads((tmp_path / "out" / "deduplicate.json").read_text())
    assert said["found"]["num_removed"] == {"missing": 1}


def test_searches_that_would_remove_or_overwrite_everything_are_refused(tmp_path, files, capsys):
    path = write_corpus(str(tmp_path), {"v2.mp4": files["v2.mp4"]})
    assert exit_status(lambda: main(["--manifest", path, "--out", str(tmp_path / "out"), "--against", path])) == 2
    assert "all of them would leak: name another manifest" in capsys.readouterr().err
    assert exit_status(lambda: main(["--manifest", path, "--out", str(tmp_path), "--write-filtered"])) == 2
    assert "name another folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"similarity.min_overlap must lie in \(0, 1\], got 0.0"):
        SimilarityConfig(min_overlap=0.0)


def test_a_score_counts_pairs_once_and_every_clip_in_a_wrong_one():
    pairs = [("1.mp4", "1-copy.mp4"), ("2-copy.mp4", "2.mp4"), ("3.mp4", "4.mp4"), ("4.mp4", "1-copy.mp4")]
    assert scored(pairs, num_clips=10, num_copies=4) == {
        "recall": 0.5,
        "false_positive_rate": 0.3,
        "num_found": 2,
        "num_flagged": 3,
    }


@pytest.mark.ray
def test_the_benchmark_finds_the_copies_that_it_plants(tmp_path, local_ray):
    result = dedup(num_clips=20, num_copies=4, folder=str(tmp_path / "corpus"))
    assert (result["recall"], result["false_positive_rate"]) == (1.0, 0.0)
    assert result["num_compared"] > 4  # of clips that share a texture


def test_the_benchmark_of_sizes_finds_the_copies_that_are_drawn(tmp_path):
    result = dedup_scale(sizes=(300, 400), folder=str(tmp_path), alike_sizes=(40,))
    assert (result["recall"], result["false_positive_rate"]) == (1.0, 0.0)
    assert result["by_size"]["300"]["num_found"] == 3
    assert result["alike_per_clip"]["40"] > 0
    assert 0 < result["private_mib"] < 400
