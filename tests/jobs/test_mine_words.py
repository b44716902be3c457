"""The job that makes a table of significant words, from captions to a run that takes it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.benchmarks.mining import mining
from jobs.benchmarks.support.synthetic_manifest import synthetic_tables
from jobs.command_line.entry import exit_status
from jobs.corpus.word_mining import MineConfig, describe, mine_words
from jobs.launch import driver
from jobs.launch.driver import ensure_tokenizer, ensure_word_table
from jobs.launch.preflight import survey
from jobs.mine_words import main
from jobs.run.config import DataConfig, TextConfig
from jobs.run.presets import tiny
from pipeline import storage
from pipeline.corpus.manifest import make_manifest, write_manifest
from pipeline.text.significance import SignificanceConfig, SignificantWords, mine_significant_words
from pipeline.text.tagging import lexicon_tagger
from pipeline.text.tokenizer import Tokenizer, train_wordpiece

CAPTIONS = ["A red circle slides to the left", "the red square spins", "Two circles are spinning"] * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps({"caption": one}) + "\n" for one in CAPTIONS))
    train_wordpiece(CAPTIONS, 120).save(tmp_path / "vocabulary")
    return tmp_path


def config(folder: Path, **changes) -> MineConfig:
    settings = {
        "captions": (str(folder / "captions.jsonl"),),
        "vocabulary": str(folder / "vocabulary"),
        "out": str(folder / "out"),
        "tagger": "lexicon",
    }
    return MineConfig(**settings | changes)


@pytest.mark.ray
def test_the_job_writes_what_is_mined_in_one_process_and_again_does_nothing(folder: Path, local_ray: None) -> None:
    done = mine_words(config(folder))
    expected = mine_significant_words(CAPTIONS, Tokenizer.load(folder / "vocabulary").pieces, tagger=lexicon_tagger)
    assert Path(done.words_path).read_text() == expected.to_json()
    assert json.loads((folder / "out" / "word_families.json").read_text()) == json.loads(expected.families_json())
    assert (done.num_captions, done.top_words[0]) == (9, "red")
    assert "words     " in describe(done)
    changed = {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    assert mine_words(config(folder)) == done
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()} == changed
    Path(done.words_path).unlink()
    mine_words(config(folder))
    assert Path(done.words_path).read_text() == expected.to_json()


@pytest.mark.ray
def test_another_ranking_tags_no_caption_again(folder: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    mine_words(config(folder))
    (folder / "stop.txt").write_text("Red\n\nslides\n")
    monkeypatch.setattr("jobs.corpus.word_mining.count_captions", None)
    changed = config(folder, stop_words=(str(folder / "stop.txt"),), significance=SignificanceConfig(ranking="tf_idf"))
    done = mine_words(changed)
    table = SignificantWords.load(done.words_path)
    ranked = {table.words[index] for index in table.significant_ids(100)}
    assert "circle" in ranked
    assert not ranked & {"red", "slides", "the", "are"}
    with pytest.raises(TypeError, match="not callable"):
        mine_words(config(folder, force=True))


@pytest.mark.ray
def test_the_command_line_writes_into_a_bucket(
    folder: Path, local_ray: None, bucket: str, capsys: pytest.CaptureFixture
) -> None:
    storage.write_bytes_atomic(f"{bucket}/captions.jsonl", (folder / "captions.jsonl").read_bytes())
    storage.write_bytes_atomic(f"{bucket}/bert/tokenizer.json", (folder / "vocabulary" / "tokenizer.json").read_bytes())
    arguments = ["--captions", f"{bucket}/captions.jsonl", "--vocabulary", f"{bucket}/bert", "--out", f"{bucket}/words"]
    assert exit_status(lambda: main([*arguments, "--tagger", "lexicon"])) == 0
    assert f"table     {bucket}/words/significant_words.json" in capsys.readouterr().out
    text = TextConfig(
        vocabulary=str(folder / "vocabulary"),
        significant_words=f"{bucket}/words/significant_words.json",
        word_families=f"{bucket}/words/word_families.json",
    )
    tokenizer = Tokenizer.load(folder / "vocabulary")
    table = ensure_word_table(text, str(folder / "run"), list, tokenizer)
    expected = mine_significant_words(CAPTIONS, tokenizer.pieces, tagger=lexicon_tagger)
    np.testing.assert_array_equal(table.ranks, expected.ranks)
    np.testing.assert_array_equal(table.family_members, expected.family_members)


def unread() -> list[str]:
    """Captions of a run that is given vocabulary and words."""
    return pytest.fail("the captions were read")


def test_a_run_takes_the_table_that_it_is_given_and_keeps_it(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "vocabulary")
    given = mine_significant_words(["a small wall", *CAPTIONS], tokenizer.pieces, tagger=lexicon_tagger)
    given.save(folder / "words.json")
    text = TextConfig(vocabulary=str(folder / "vocabulary"), significant_words=str(folder / "words.json"))
    assert ensure_tokenizer(text, str(folder / "run"), unread).pieces == tokenizer.pieces
    assert ensure_word_table(text, str(folder / "run"), unread, tokenizer).to_json() == given.to_json()
    (folder / "words.json").unlink()
    assert ensure_word_table(text, str(folder / "run"), unread, tokenizer).to_json() == given.to_json()
    other = train_wordpiece(["something else entirely"], 60)
    given.save(folder / "words.json")
    with pytest.raises(ValueError, match="ids, the vocabulary"):
        ensure_word_table(text, str(folder / "other"), unread, other)


def test_a_large_corpus_gives_a_sample_of_its_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = pa.concat_tables(synthetic_tables({"train": 20_000}, "/videos.bin"))
    write_manifest(make_manifest("toy", "/videos.bin", tables), path := str(tmp_path / "manifest.parquet"))
    data = DataConfig(manifest=path)
    whole = list(driver.TrainingCaptions(data))
    assert whole == [texts[0] for texts in tables["captions"].to_pylist()]
    monkeypatch.setattr(driver, "MAX_CAPTIONED", 4096)
    captions = driver.TrainingCaptions(data)
    sample = list(captions)
    assert len(sample) == 4096
    assert list(captions) == sample  # the words are counted after the vocabulary is made
    assert [whole.index(caption) for caption in sample[::1024]] == [0, 5000, 10_000, 15_000]
    monkeypatch.setattr(driver, "MAX_CAPTIONED", 20_000)
    assert list(driver.TrainingCaptions(data)) == whole


def test_a_table_without_its_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"numbered by a vocabulary: set text\.vocabulary"):
        TextConfig(significant_words="words.json")
    with pytest.raises(ValueError, match=r"word_families belong to text\.significant_words"):
        TextConfig(word_families="families.json")


def test_a_run_whose_table_is_not_there_is_refused_before_it_starts(folder: Path) -> None:
    text = TextConfig(vocabulary=str(folder / "vocabulary"), significant_words=str(folder / "nothing.json"))
    placement = dataclasses.replace(tiny().placement, storage=str(folder / "runs"))  # where no run has the name
    config = dataclasses.replace(tiny(), text=text, placement=placement)
    found = [one for one in survey(config).problems if "significant_words" in one]
    assert len(found) == 1
    assert found[0].startswith(f"text.significant_words: {folder}/nothing.json does not exist")


def test_what_cannot_work_is_refused_before_ray_is_asked(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.corpus.word_mining.connected_ray", None)
    arguments = ["--captions", str(folder / "captions.jsonl"), "--out", str(folder / "out"), "--tagger", "lexicon"]
    (folder / "stop.txt").write_text("two words\n")
    with_vocabulary = [*arguments, "--vocabulary", str(folder / "vocabulary")]
    for more, message in (
        ([*arguments, "--vocabulary", str(folder / "out")], "holds neither tokenizer.json nor vocab.txt"),
        ([*arguments, "--vocabulary", str(folder / "nowhere")], "nowhere does not exist"),
        ([*with_vocabulary, "--stop-words", str(folder / "stop.txt")], "one word per line, got 'two words'"),
        ([*with_vocabulary, "--split", "test", "--captions", str(folder / "nothing")], "nothing does not exist"),
    ):
        assert exit_status(lambda more=more: main(more)) == 2
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.ray
def test_a_vocabulary_that_holds_none_of_the_words_is_refused(folder: Path, local_ray: None) -> None:
    (folder / "vocab.txt").write_text("[PAD]\n##dog\nthe\n")
    with pytest.raises(ValueError, match=r"no noun, verb .* of the 9 captions is a whole word of .*vocab\.txt"):
        mine_words(config(folder, vocabulary=str(folder / "vocab.txt")))


@pytest.mark.slow
def test_spacy_finds_the_recorded_words_and_the_dictionary_nearly_all(real_files: Path) -> None:
    if not importlib.metadata.entry_points(group="spacy_models"):
        pytest.skip("no model of spaCy is installed")
    found = mining(str(real_files))
    assert min(found["overlap_top2000"], found["overlap_top2000_lower"]) >= 0.95
    assert min(found["fallback_overlap_top2000"], found["fallback_overlap_top2000_lower"]) >= 0.95


def test_the_benchmark_says_which_folder_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNPS3_TEST_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="name it with --data or SNPS3_TEST_DATA"):
        mining()
