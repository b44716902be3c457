from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.benchmarks.dedup import FPS, frames_of
from jobs.command_line.entry import exit_status
from jobs.corpus.deduplication import PAIRS
from jobs.corpus_report import main
from jobs.reports.corpus import (
    CorpusData,
    ShownClip,
    ShownPair,
    caption_lengths,
    clip_seconds,
    corpus_page,
    word_counts,
)
from pipeline.corpus import ledger
from pipeline.corpus.manifest import Manifest, make_manifest, write_manifest
from pipeline.decode.codec import encode_video
from pipeline.records import Reason, Rejected, Stage
from pipeline.text.significance import mine_significant_words

CAPTIONS = (["A red square moves.", "a square"], ["two <script>alert(1)</script> dogs"], ["a dog in the park"])


def row(index: int, **changes) -> dict:
    known = {
        "clip_id": index,
        "uri": f"nowhere/{index}.mp4",
        "start_seconds": None,
        "end_seconds": None,
        "captions": CAPTIONS[index],
        "kind": "video",
        "split": "train",
        "width": 160,
        "height": 120,
        "fps": 12.0,
        "duration_seconds": 4.0,
        "num_frames": 48,
        "bytes": 1000,
        "checksum": str(index),
    }
    return known | changes


def corpus() -> Manifest:
    times = {"start_seconds": 1.0, "end_seconds": 2.5, "uri": "nowhere/0.mp4"}
    image = {"kind": "image", "fps": None, "duration_seconds": None, "split": "test", "width": 90}
    return make_manifest("toy", "nowhere", [row(0), row(1, **times), row(2, **image)])


def test_lengths_and_words_are_those_of_clips_and_captions():
    table = corpus().table
    assert clip_seconds(table).tolist() == [4.0, 1.5]
    assert sorted(caption_lengths(table)) == [2, 4, 5, 6]  # words of a mark's inside count, marks do not
    assert word_counts(table)["a"] == 3
    assert word_counts(table)["dog"] == 1


def test_a_page_without_more_than_a_manifest_says_what_is_missing():
    page = corpus_page(CorpusData(corpus=corpus()))
    for missing in (
        "no clip could be read",
        "no table of significant words",
        "no ledger was given",
        "nobody has looked",
    ):
        assert missing in page
    assert "160 × 120" in page
    assert page.count("<svg") == 7
    assert "median 2.75 seconds" in page


def all_nouns(captions: Iterable[str]) -> list[list[tuple[str, str]]]:
    return [[(word, "NOUN") for word in caption.split()] for caption in captions]


def test_a_full_page_shows_clips_words_reasons_and_copies_and_fetches_nothing():
    frames = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), np.uint8)
    clips = [ShownClip(caption=captions[0], frames=np.roll(frames, index)) for index, captions in enumerate(CAPTIONS)]
    captions = [caption for captions in CAPTIONS for caption in captions]
    data = CorpusData(
        corpus=corpus(),
        shown={"train": clips[:2], "test": clips[2:]},
        ledger={Reason.MISSING: 3, Reason.DUPLICATE: 1},
        num_pairs={"near": 2},
        pairs=[ShownPair(kind="near", similarity=0.987, clips=(clips[0], clips[1]))],
        words=mine_significant_words(captions, ["dog", "park", "square", "a"], tagger=all_nouns),
    )
    page = corpus_page(data)
    assert page.count("data:image/jpeg") == page.count('class="strip film-clip-') == 5
    assert "4 samples are not in the manifest" in page
    assert "similarity 0.987" in page
    assert re.search(r"<dt>square</dt>.*<dd>2</dd>", page)
    assert "Left out" not in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert not re.findall(r"url\((?!data:|#)", page)


def test_an_empty_ledger_and_no_copies_are_said_to_be_so():
    page = corpus_page(CorpusData(corpus=corpus(), ledger={}, num_pairs={}))
    assert "the ledger of rejected samples is empty" in page
    assert "None were found." in page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for index in range(3):
        data = encode_video(frames_of(0, index), fps=FPS)
        (tmp_path / f"{index}.mp4").write_bytes(data)
        num_frames = len(frames_of(0, index))
        rows.append(
            row(index, uri=str(tmp_path / f"{index}.mp4"), num_frames=num_frames, duration_seconds=num_frames / FPS)
        )
    write_manifest(make_manifest("toy", str(tmp_path), rows), str(tmp_path / "manifest.parquet"))
    lost = Rejected(clip_id=9, uri="9.mp4", stage=Stage.PREPARE, reason=Reason.TRUNCATED, detail="short")
    ledger.write_ledger([lost], str(tmp_path / "rejected.parquet"))
    found = dict.fromkeys(PAIRS.names) | {"clip_id": 1, "other_clip_id": 0, "kind": "near", "similarity": 0.9}
    pq.write_table(pa.Table.from_pylist([found], schema=PAIRS), tmp_path / "pairs.parquet")
    return tmp_path


def test_the_command_line_reads_what_jobs_wrote(folder):
    arguments = ["--manifest", str(folder / "manifest.parquet"), "--out", str(folder / "page.html")]
    arguments += ["--ledgers", str(folder / "rejected.parquet"), "--pairs", str(folder / "pairs.parquet")]
    assert exit_status(lambda: main(arguments)) == 0
    page = (folder / "page.html").read_text()
    assert page.count("data:image/jpeg") == 5
    assert "truncated" in page
    assert "similarity 0.900" in page
    (folder / "2.mp4").unlink()
    assert exit_status(lambda: main(arguments)) == 0
    assert (folder / "page.html").read_text().count("data:image/jpeg") == 4


def test_wrong_paths_are_refused_with_what_to_do(folder, capsys):
    arguments = ["--manifest", str(folder / "none.parquet"), "--out", str(folder / "page.html")]
    assert exit_status(lambda: main(arguments)) == 2
    assert "none.parquet does not exist" in capsys.readouterr().err
