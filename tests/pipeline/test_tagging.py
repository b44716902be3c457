"""The built-in tagger and spaCy on captions as people write them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging

import pytest

from pipeline.text import tagging
from pipeline.text.tagging import (
    best_tagger,
    lexicon_tagger,
    lexicon_tags,
    make_tagger,
    spacy_tagger,
    split_words,
    tagger_version,
)

MODEL = "en_core_web_sm"

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
    assert lexicon_tags([word for word, _ in pairs]) == [pos for _, pos in pairs]


def test_no_words_have_no_tags() -> None:
    assert list(lexicon_tagger([""])) == [[]]


def test_words_are_cut_as_in_the_vocabulary() -> None:
    assert split_words("A man's T-shirt!") == ["A", "man", "'", "s", "T", "-", "shirt", "!"]


@pytest.fixture
def spacy_model() -> str:
    if not importlib.metadata.entry_points(group="spacy_models"):
        pytest.skip(f"spaCy's model {MODEL} is not installed")
    return MODEL


@pytest.fixture
def no_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "spacy" else find(name))
    tagging._spacy_pipeline.cache_clear()


def test_spacy_cuts_and_tags_captions_in_order(spacy_model: str) -> None:
    captions = ["The man's dog is running", "", "Two red cars"]
    assert list(spacy_tagger(spacy_model)(captions)) == [
        [("The", "DET"), ("man", "NOUN"), ("'s", "PART"), ("dog", "NOUN"), ("is", "AUX"), ("running", "VERB")],
        [],
        [("Two", "NUM"), ("red", "ADJ"), ("cars", "NOUN")],
    ]
    assert best_tagger(spacy_model) == "spacy"
    assert tagger_version("spacy", spacy_model).startswith("spaCy 3.")


def test_without_spacy_the_dictionary_is_taken_and_said_to_be(no_spacy: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        name = best_tagger(MODEL)
    assert name == "lexicon"
    assert "spaCy with the model en_core_web_sm is not installed" in caplog.text
    assert make_tagger(name, MODEL) is lexicon_tagger
    with pytest.raises(ValueError, match=r"spaCy is not installed: .* or take --tagger lexicon"):
        tagger_version("spacy", MODEL)


def test_a_model_that_is_not_there_is_refused(spacy_model: str) -> None:
    with pytest.raises(ValueError, match="there is no spaCy model 'en_core_web_xl': install both"):
        spacy_tagger("en_core_web_xl")
