"""The built-in tagger on captions as people write them."""

from __future__ import annotations

import pytest

from pipeline.tagging import lexicon_tagger, split_words

SENTENCES = [
    "a/DET red/ADJ circle/NOUN slides/VERB to/PART the/DET left/NOUN",
    "the/DET blue/ADJ square/NOUN slowly/ADV rises/VERB ,/PUNCT then/ADV it/PRON falls/VERB down/ADP",
    "two/NUM large/ADJ stars/NOUN meet/VERB on/ADP a/DET striped/ADJ floor/NOUN",
    "a/DET man/NOUN riding/VERB a/DET wave/NOUN on/ADP top/NOUN of/ADP a/DET surfboard/NOUN",
    "a/DET black/ADJ and/CCONJ white/ADJ dog/NOUN is/AUX standing/VERB in/ADP the/DET grass/NOUN",
    "there/PRON is/AUX a/DET little/ADJ ring/NOUN that/PRON spins/VERB",
    "children/NOUN play/VERB with/ADP a/DET wooden/ADJ train/NOUN",
    "a/DET woman/NOUN opens/VERB the/DET door/NOUN quickly/ADV ./PUNCT",
    "a/DET stop/NOUN sign/NOUN at/ADP the/DET corner/NOUN of/ADP a/DET street/NOUN",
    "the/DET triangle/NOUN which/PRON is/AUX green/ADJ vanishes/VERB",
    "3/NUM zebras/NOUN graze/VERB near/ADP the/DET building/NOUN",
    "a/DET glorbish/ADJ flob/NOUN is/AUX wugging/VERB florply/ADV",
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_each_word_gets_its_part_of_speech(sentence: str) -> None:
    pairs = [token.rsplit("/", 1) for token in sentence.split()]
    assert lexicon_tagger([word for word, _ in pairs]) == [pos for _, pos in pairs]


def test_no_words_have_no_tags() -> None:
    assert lexicon_tagger(split_words("")) == []


def test_words_are_cut_as_in_the_vocabulary() -> None:
    assert split_words("A man's T-shirt!") == ["A", "man", "'", "s", "T", "-", "shirt", "!"]
