"""Counting, ranking and families of significant words; parity with the published table."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from golden import golden
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import significance
from pipeline.text.config import UNRANKED
from pipeline.text.significance import (
    CONTENT_POS,
    SignificanceConfig,
    SignificantWords,
    WordCounts,
    competition_ranks,
    count_words,
    mine_significant_words,
    rank_words,
    tf_idf,
)
from pipeline.text.tagging import lexicon_tagger
from pipeline.text.tokenizer import Tokenizer, train_wordpiece

CAPTIONS = [
    "A red circle slides to the left.",
    "The red square spins and the circle slides away.",
    "Two small circles are spinning on a wall.",
]


def published_path(name: str) -> Path:
    folder = os.environ.get("SNPS3_TEST_DATA")
    if not folder:
        pytest.skip("SNPS3_TEST_DATA is not set: the folder with the published tables")
    return Path(folder) / name


@pytest.fixture(scope="module")
def published() -> SignificantWords:
    return SignificantWords.load(
        published_path("significant_words_webvid.json"), published_path("word_families_webvid.json")
    )


def counted(num_captions: int = 100, **by_pos: dict[str, int]) -> WordCounts:
    """Counts in which no caption holds a word twice."""
    counts = {pos: by_pos.get(pos.lower(), {}) for pos in CONTENT_POS}
    with_word = sum((Counter(words) for words in counts.values()), Counter[str]())
    return WordCounts(by_pos=counts, num_captions_with=with_word, num_captions=num_captions)


def ids_of(table: SignificantWords, *words: str) -> list[int]:
    return [table.words.index(word) for word in words]


def test_words_are_counted_the_same_however_many_captions_are_counted_together(monkeypatch):
    captions = [*CAPTIONS, *CAPTIONS[:3], CAPTIONS[0].upper()]
    together = count_words(captions)
    for at_once in (1, 2, len(captions)):
        monkeypatch.setattr(significance, "CAPTIONS_AT_ONCE", at_once)
        assert count_words(captions) == together == count_words(iter(captions))
    assert count_words([]).num_captions == 0


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_equal_counts_share_the_better_rank(counts: list[int]) -> None:
    descending = sorted(counts, reverse=True)
    assert competition_ranks(np.array(counts)).tolist() == [descending.index(count) for count in counts]


def test_words_are_counted_in_lower_case_and_equal_captions_each_time() -> None:
    tagged: list[str] = []

    def tagger(captions: Iterable[str]) -> Iterator[list[tuple[str, str]]]:
        for caption in captions:
            tagged.append(caption)
            yield list(zip(caption.split(), ["ADJ", "NOUN", "X", "NOUN"], strict=False))

    counts = count_words(["Red dog", "red dog", "red dog", "big dog and dog"], tagger)
    assert counts.by_pos == {"NOUN": Counter(dog=5), "VERB": Counter(), "ADJ": Counter(red=3, big=1)}
    assert (counts.num_captions_with, counts.num_captions) == (Counter(dog=4, red=3, big=1), 4)
    assert tagged == ["red dog", "big dog and dog"]
    assert counts == count_words({"Red dog": 1, "red dog": 2, "big dog and dog": 1}, tagger)
    kept = count_words(["Red dog", "red dog"], tagger, lower_case=False)
    assert kept.by_pos["ADJ"] == Counter(Red=1, red=1)


def test_the_built_in_tagger_is_named_once_and_a_given_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        count_words(CAPTIONS, lambda captions: [[("x", "X")] for _ in captions])
        assert not caplog.messages
        count_words(CAPTIONS)
    assert len(caplog.messages) == 1
    assert "built-in dictionary" in caplog.messages[0]


def test_ranks_follow_the_sum_of_the_parts_of_speech_and_skip_what_cannot_be_significant() -> None:
    counts = counted(noun={"shot": 6, "dog": 8, "be": 50, "x": 50, "walks": 1}, verb={"shot": 4, "walks": 9})
    table = rank_words(counts, ["[MASK]", "##dog", "x", "dog", "shot", "be", "walks", "the"])
    assert table.ranks.tolist() == [UNRANKED, UNRANKED, UNRANKED, 2, 0, UNRANKED, 0, UNRANKED]
    assert table.total_counts.tolist() == [0, 0, 0, 8, 10, 0, 10, 0]
    assert table.significant_ids(1).tolist() == [4, 6]
    assert table.significant_ids(10**6).tolist() == [4, 6, 3]


def test_a_rare_part_of_speech_is_taken_for_a_mistake_and_the_rest_shares_the_whole() -> None:
    counts = counted(noun={"walk": 1, "shot": 3}, verb={"walk": 9, "shot": 6}, adj={"shot": 1})
    table = rank_words(counts, ["walk", "shot"])
    assert table.pos_counts.tolist() == [[0, 9, 0], [3, 6, 0]]
    np.testing.assert_allclose(table.pos_shares, [[0, 1, 0], [1 / 3, 2 / 3, 0]])
    assert table.total_counts.tolist() == [10, 10]
    everything = rank_words(counts, ["walk", "shot"], SignificanceConfig(min_pos_share=0.0))
    assert everything.pos_counts.tolist() == [[1, 9, 0], [3, 6, 1]]


def test_a_family_holds_the_inflections_in_the_vocabulary_and_the_word_itself() -> None:
    vocabulary = ["run", "ran", "running", "beautiful", "saw", "see", "saws", "the"]
    table = rank_words(counted(noun={"saw": 5}, verb={"run": 1}), vocabulary)
    family = {word: [vocabulary[i] for i in table.family(index)] for index, word in enumerate(vocabulary)}
    assert family["run"] == ["run", "ran", "running"]
    assert family["beautiful"] == ["beautiful"]
    assert family["saw"] == ["saw", "saws"]
    as_verb = rank_words(counted(verb={"saw": 5}), vocabulary)
    assert vocabulary.index("see") in as_verb.family(vocabulary.index("saw"))


def test_mining_finds_things_actions_and_looks_and_no_function_words() -> None:
    tokenizer = train_wordpiece(CAPTIONS * 3, 120)
    table = mine_significant_words(CAPTIONS, tokenizer.pieces)
    significant = [table.words[i] for i in table.significant_ids(3000)]
    expected = {"circle", "slides", "red", "small", "wall", "left", "square", "spins", "circles", "spinning"}
    assert set(significant) == expected & set(tokenizer.pieces)
    assert significant[0] in ("circle", "slides", "red")
    circle, circles = ids_of(table, "circle", "circles")
    assert table.family(circle).tolist() == sorted([circle, circles])


def test_a_caption_is_the_document_of_tf_idf() -> None:
    captions = ["dog dog cat"] + ["dog cat"] * 2 + ["bird"] * 4 + ["dog"] * 5
    counts = count_words(captions, lambda texts: [[(word, "NOUN") for word in text.split()] for text in texts])
    words = ["dog", "cat", "bird", "the"]
    expected = {
        word: sum(caption.split().count(word) for caption in captions)
        * math.log(len(captions) / sum(word in caption.split() for caption in captions))
        for word in ("dog", "cat", "bird")
    }
    np.testing.assert_allclose(tf_idf(counts, words), [*expected.values(), 0.0])
    table = rank_words(counts, words, SignificanceConfig(ranking="tf_idf"))
    assert table.ranks.tolist() == [2, 1, 0, UNRANKED]
    assert rank_words(counts, words).ranks.tolist() == [0, 2, 1, UNRANKED]
    again = SignificantWords.from_json(table.to_json())
    np.testing.assert_array_equal(again.ranks, table.ranks)


def test_words_are_given_up_in_any_case() -> None:
    counts = counted(noun={"Dog": 3, "dog": 2, "cat": 1})
    table = rank_words(counts, ["Dog", "dog", "cat"], SignificanceConfig(abandoned=("DOG",)))
    assert table.ranks.tolist() == [UNRANKED, UNRANKED, 0]


def test_other_vocabularies_count_their_whole_words_alone() -> None:
    counts = counted(noun={"dog": 9, "cat": 4, "café": 2, "hot": 1})
    vocabularies = {
        "word pieces": ["[CLS]", "dog", "##cat", "cat", "café", "hot"],
        "byte level": ["<s>", "Ġdog", "cat", "Ġcat", "ĠcafÃ©", "Ġhot"],
        "SentencePiece": ["<s>", "▁dog", "cat", "▁cat", "▁café", "▁hot"],
        "CLIP": ["<|endoftext|>", "dog</w>", "cat", "cat</w>", "café</w>", "hot</w>"],
    }
    for pieces in vocabularies.values():
        assert rank_words(counts, pieces).ranks.tolist() == [UNRANKED, 0, UNRANKED, 1, 2, 3]
    assert rank_words(counts, vocabularies["byte level"]).words[1] == "Ġdog"


def test_the_counts_and_families_come_back_from_their_files() -> None:
    counts = count_words(CAPTIONS, lexicon_tagger)
    assert WordCounts.from_json(counts.to_json()) == counts
    table = rank_words(counts, train_wordpiece(CAPTIONS * 3, 120).pieces)
    families = json.loads(table.families_json())
    assert len(families) == table.vocabulary_size
    assert families[table.words.index("circle")] == ["circle", "circles"]
    assert families[0] == []


def test_a_table_of_another_vocabulary_is_refused(published: SignificantWords) -> None:
    pieces = Tokenizer.load(published_path("bert-base-uncased-vocab.txt")).pieces
    published.refuse_other_vocabulary(pieces)
    with pytest.raises(ValueError, match="has 30522 ids, the vocabulary 30521: count the words"):
        published.refuse_other_vocabulary(pieces[:-1])
    with pytest.raises(ValueError, match=r"id 2915 is 'shot' in the table .*, 'dog' in the vocabulary"):
        published.refuse_other_vocabulary([*pieces[:2915], "dog", *pieces[2916:]])


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    table = mine_significant_words(CAPTIONS, train_wordpiece(CAPTIONS * 3, 120).pieces)
    table.save(tmp_path / "deep" / "words.json")
    again = SignificantWords.load(tmp_path / "deep" / "words.json")
    assert again.words == table.words
    for name in ("total_counts", "pos_counts", "ranks", "family_starts", "family_members"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["words.json"]


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="the columns total_count, rank"):
        SignificantWords.from_json(json.dumps({"name": [], "noun_count": [], "verb_count": [], "adj_count": []}))
    with pytest.raises(ValueError, match=r"min_pos_share must lie in \[0, 1\], got 2.0"):
        SignificanceConfig(min_pos_share=2.0)


def test_the_published_table_has_its_known_facts(published: SignificantWords) -> None:
    assert published.total_counts.sum() == 17_227_269
    assert len(published.significant_ids(3000)) == 3002
    assert published.ranks[[2915, 3899]].tolist() == [3, 190]
    top = published.significant_ids(8)
    assert [published.words[i] for i in top] == [
        "view", "woman", "motion", "shot", "man", "slow", "young", "girl", "beautiful",
    ]  # fmt: skip
    counted = published.total_counts > 0
    assert counted.sum() == 19_084
    np.testing.assert_array_equal(competition_ranks(published.total_counts)[counted], published.ranks[counted])
    assert published.family(2448).tolist() == ids_of(published, "run", "ran", "running", "runs")
    significant = published.significant_ids(3000)
    has_pos = published.pos_counts[significant] > 0
    assert Counter(map(tuple, has_pos.astype(int).tolist())) == {
        (1, 0, 0): 1851, (0, 0, 1): 470, (0, 1, 0): 403, (1, 1, 0): 183, (1, 0, 1): 71, (0, 1, 1): 23, (1, 1, 1): 1,
    }  # fmt: skip


def test_golden_significant_words_and_families_are_those_of_the_published_table(published: SignificantWords) -> None:
    recorded = golden("mssm")
    top_k = recorded.settings["top_k"]
    significant = recorded["in/significant_ids"]
    np.testing.assert_array_equal(np.sort(published.significant_ids(top_k)), np.sort(significant))
    np.testing.assert_array_equal(published.ranks[significant], recorded["in/rank_of_significant_ids"])
    sizes = published.family_starts[significant + 1] - published.family_starts[significant]
    np.testing.assert_array_equal(sizes, recorded["in/family/lengths_for_significant_ids"])
    members = np.concatenate([published.family(i) for i, size in zip(significant.tolist(), sizes, strict=True) if size])
    np.testing.assert_array_equal(np.sort(members), np.sort(recorded["in/family/members_flat"]))


def test_golden_token_ids(published: SignificantWords) -> None:
    recorded = golden("mssm")
    tokenizer = Tokenizer.load(published_path("bert-base-uncased-vocab.txt"))
    assert tokenizer.vocabulary_size == published.vocabulary_size
    max_tokens = recorded.settings["max_length"]
    encoded = tokenizer.encode(recorded["in/captions"].tolist(), max_tokens)
    for ids, expected, length in zip(encoded, recorded["out/token_ids"], recorded["out/content_length"], strict=True):
        assert len(ids) == length + 2
        np.testing.assert_array_equal(ids, expected[: len(ids)])


def test_the_built_in_tagger_finds_the_words_that_a_trained_one_finds() -> None:
    lines = published_path("coco_captions_25k.jsonl").read_text(encoding="utf-8").splitlines()
    counts = count_words(json.loads(line)["caption"] for line in lines[::4]).by_pos
    totals = sum((Counter(words) for words in counts.values()), Counter[str]())
    theirs = json.loads(published_path("significant_words_coco_spacy.json").read_text(encoding="utf-8"))["lower"]
    theirs = [entry for entry in theirs if len(entry["word"]) > 1]
    ranked = [word for word, _ in totals.most_common() if len(word) > 1]
    # The other list counts all captions, ours each fourth, so the ends of longer lists differ by chance.
    for num_words, least in ((100, 0.94), (300, 0.9)):
        common = set(ranked[:num_words]) & {entry["word"] for entry in theirs[:num_words]}
        assert len(common) / num_words >= least
    agreed = sum(
        min(times, entry["count"] * counts[pos].get(entry["word"], 0) / max(totals[entry["word"]], 1))
        for entry in theirs
        for pos, times in entry["pos"].items()
    )
    assert agreed / sum(entry["count"] for entry in theirs) > 0.93
