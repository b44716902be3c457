"""Words of a corpus counted by Ray Data: the same counts as in one process, from a manifest and from JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.corpus.manifest import SCHEMA, make_manifest, write_in_parts, write_manifest
from pipeline.offline.stages import split_into_blocks
from pipeline.offline.word_counts import count_captions, read_captions
from pipeline.text.significance import count_words
from pipeline.text.tagging import lexicon_tagger

CAPTIONS = [f"A {colour} {thing} runs to the {thing}s" for colour in ("red", "Red", "blue") for thing in ("dog", "cat")]


def write_lines(path: Path, lines: list[dict]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def manifest_rows() -> list[dict]:
    rows = []
    for index, split in enumerate(("train", "train", "test")):
        row = {field.name: None for field in SCHEMA} | {"clip_id": index, "uri": f"/v/{index}.mp4", "kind": "video"}
        row |= {"captions": [CAPTIONS[index], CAPTIONS[index + 1]], "split": split, "checksum": ""}
        rows.append(row | dict.fromkeys(("width", "height", "num_frames", "bytes"), 1))
    return rows


def texts_of(source: str, split: str | None) -> list[str]:
    return [caption for captions in read_captions(source, split) for caption in captions.to_pylist()]


@pytest.mark.ray
@pytest.mark.parametrize("lower_case", [True, False])
def test_blocks_on_workers_give_the_counts_of_one_process(
    local_ray: None, lower_case: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [*CAPTIONS, *CAPTIONS[:3], *(f"a thing number {index} shines" for index in range(600))]
    expected = count_words(captions, lexicon_tagger, lower_case=lower_case)
    chunks = [pa.array(captions[:5]), pa.array(captions[5:])]
    counts = count_captions(chunks, tagger="lexicon", spacy_model="", lower_case=lower_case)
    assert counts.by_pos == expected.by_pos
    assert counts.num_captions_with == expected.num_captions_with
    assert counts.num_captions == len(captions)
    assert len(split_into_blocks(pa.table({"values": sorted(set(captions))}), 256, 8192)) == 3


def test_captions_of_a_manifest_are_those_of_the_split(tmp_path: Path) -> None:
    path = str(tmp_path / "manifest.parquet")
    write_manifest(make_manifest("toy", "/v", manifest_rows()), path)
    write_in_parts(make_manifest("toy", "/v", manifest_rows()), str(tmp_path / "parts"))
    for source in (path, str(tmp_path / "parts")):
        assert texts_of(source, "train") == [CAPTIONS[0], CAPTIONS[1], CAPTIONS[1], CAPTIONS[2]]
        assert len(texts_of(source, None)) == 6
        assert texts_of(source, "test") == [CAPTIONS[2], CAPTIONS[3]]
    with pytest.raises(ValueError, match="the split 'val' of corpus 'toy' is empty"):
        texts_of(path, "val")


def test_a_line_belongs_to_the_split_that_it_names_or_to_any(tmp_path: Path) -> None:
    lines = [{"caption": "one"}, {"caption": "two", "split": "test"}, {"caption": "three", "split": "train"}]
    path = write_lines(tmp_path / "captions.jsonl", lines)
    assert texts_of(path, "train") == ["one", "three"]
    assert texts_of(path, None) == ["one", "two", "three"]


def test_a_bucket_is_read_as_a_folder_is(bucket: str) -> None:
    lines = "".join(json.dumps({"caption": caption}) + "\n" for caption in CAPTIONS)
    storage.write_bytes_atomic(f"{bucket}/captions.jsonl", lines.encode())
    write_manifest(make_manifest("toy", "/v", manifest_rows()), f"{bucket}/corpus/manifest.parquet")
    assert texts_of(f"{bucket}/captions.jsonl", None) == CAPTIONS
    assert len(texts_of(f"{bucket}/corpus/manifest.parquet", "train")) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"caption": "a"}\n{"caption"', r"captions\.jsonl:2: no JSON"),
        ('{"caption": null}\n', r"captions\.jsonl:1: needs an object with caption, a text, got"),
        ('["caption"]\n', r"captions\.jsonl:1: needs an object with caption"),
        ('{"caption": "a", "split": "test"}\n', r"captions\.jsonl holds no caption of the split 'train'"),
    ],
)
def test_lines_that_are_no_captions_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "captions.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        texts_of(str(tmp_path / "captions.jsonl"), "train")
