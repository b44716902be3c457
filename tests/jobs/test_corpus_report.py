from __future__ import annotations

import re
from collections import Counter
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
from jobs.reports import corpus as corpus_room
from jobs.reports.corpus import (
    CorpusData,
    ShownClip,
    ShownPair,
    corpus_page,
    distinct_files,
    figures_of,
    totals,
)
from pipeline.corpus import ledger
from pipeline.corpus.manifest import Manifest, make_manifest, open_manifest, write_in_parts, write_manifest
from pipeline.decode.codec import encode_video
from pipeline.records import Reason, Rejected, Stage
from pipeline.text.significance import mine_significant_words
from pipeline.text.tagging import split_words

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


def data_of(corpus: Manifest, **shown) -> CorpusData:
    return CorpusData(corpus=corpus, figures=figures_of(corpus), **shown)


def test_files_are_counted_once_however_many_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    files = np.random.default_rng(0).integers(0, 40, 100)
    num_bytes = files * 1000 + 7
    for at_once in (1, 3, 100, 1000):
        monkeypatch.setattr(corpus_room, "FILES_AT_ONCE", at_once)
        assert distinct_files(files, num_bytes) == (len(set(files)), sum(set(num_bytes.tolist())))
    assert distinct_files(files[:0], num_bytes[:0]) == (0, 0)


def test_figures_are_those_of_rows_looked_at_alone(tmp_path: Path) -> None:
    captions = ["", " A  red-blue square's, ", "ÄPFEL\u00a0und 2 Äpfel …", "_x_ a\tb\nc"]
    rows = [row(index, **{"captions": captions[index % 4 :], "width": 90 + index % 3}) for index in range(3)]
    rows += [row(2, clip_id=3, start_seconds=1.0, end_seconds=2.5, uri="nowhere/0.mp4", captions=captions)]
    corpus = make_manifest("toy", "/", rows)
    write_in_parts(corpus, str(tmp_path / "manifest"))
    lengths = [[word for word in split_words(text) if word[0].isalnum()] for one in rows for text in one["captions"]]
    for listing in (corpus, open_manifest(str(tmp_path / "manifest"))):
        figures = figures_of(listing)
        assert figures.words == Counter(word.lower() for words in lengths for word in words)
        assert figures.words_per_caption.tolist() == list(map(len, lengths))
        assert figures.seconds.tolist() == [4.0, 4.0, 4.0, 1.5]
        assert figures.sizes == Counter((one["width"], one["height"]) for one in rows)
        assert totals(figures) == {
            "videos": "4",
            "images": "0",
            "hours of video": "0.00",
            "files": "3",
            "GB": "0.000",
            "captions": "13",
            "different words": str(len(figures.words)),
        }


def test_lengths_and_words_are_those_of_clips_and_captions():
    figures = figures_of(corpus())
    assert figures.seconds.tolist() == [4.0, 1.5]
    assert sorted(figures.words_per_caption) == [2, 4, 5, 6]  # words of a mark's inside count, marks do not
    assert figures.words["a"] == 3
    assert figures.words["dog"] == 1


def test_a_page_without_more_than_a_manifest_says_what_is_missing():
    page = corpus_page(data_of(corpus()))
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
    data = data_of(
        corpus(),
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
    page = corpus_page(data_of(corpus(), ledger={}, num_pairs={}))
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
