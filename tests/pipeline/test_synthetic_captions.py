"""Captions say what the scene shows, in few enough words, most of them function words."""

import os
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pipeline.synthetic.captions import MAX_WORDS, Caption, Style, caption_of
from pipeline.synthetic.scenes import COLOURS, Scene
from pipeline.synthetic.splits import Richness, still_scenes, temporal_groups, train_scenes
from pipeline.synthetic.statements import agrees, agrees_with_frame, meaning_of
from pipeline.synthetic.words import SURFACES, VERBS_BY_ACTION, WORDS_BY_SHAPE, WORDS_BY_SIZE, WORDS_BY_TEXTURE

RICH = Richness(num_colours=10, num_shapes=8)


@cache
def scenes() -> list[Scene]:
    groups = temporal_groups(0, RICH, 40)
    return train_scenes(0, RICH, 600) + still_scenes(0, RICH, 100) + [scene for group in groups for scene in group]


@cache
def captions(*, names_everything: bool) -> list[tuple[Scene, Caption]]:
    rng = np.random.default_rng(0)
    return [
        (scene, caption_of(scene, Style.draw(rng, names_everything=names_everything)))
        for scene in scenes()
        for _ in range(3)
    ]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+|,", text)


def read_back(words: list[str], table: dict[str, tuple[str, ...]]) -> Counter[str]:
    """How often each key of the table is named, by any of its synonyms."""
    return Counter({key: sum(map(words.count, synonyms)) for key, synonyms in table.items()})


@pytest.mark.parametrize("names_everything", [True, False])
def test_the_words_of_a_caption_say_what_its_statement_claims(names_everything: bool):
    for _, caption in captions(names_everything=names_everything):
        words, statement = words_of(caption.text), caption.statement
        named = [word for word in words if word in COLOURS]
        assert Counter(named) == Counter(mention.colour for mention in statement.mentions), caption
        assert +read_back(words, WORDS_BY_SHAPE) == Counter(mention.shape for mention in statement.mentions), caption
        assert +read_back(words, WORDS_BY_SIZE) == Counter(m.size for m in statement.mentions if m.size), caption
        assert +read_back(words, WORDS_BY_TEXTURE) == Counter([statement.texture] if statement.texture else []), caption
        for claim in statement.claims:
            assert any(
                f"{form} {verb.tail}".strip() in caption.text or (form in words and verb.tail in caption.text)
                for verb in VERBS_BY_ACTION[claim.action]
                for form in verb[:3]
            ), caption
            assert not claim.direction or f"to the {claim.direction}" in caption.text


def test_a_caption_of_a_test_clip_agrees_with_no_other_meaning():
    named = captions(names_everything=True)
    meanings = {meaning_of(scene) for scene in scenes()}
    for scene, caption in named[::40]:
        assert [meaning for meaning in meanings if agrees(caption.statement, meaning)] == [meaning_of(scene)]


def test_a_caption_that_names_less_still_agrees_with_its_scene():
    for scene, caption in captions(names_everything=False):
        assert agrees(caption.statement, meaning_of(scene))
        assert agrees_with_frame(caption.statement, meaning_of(scene))
        main = scene.things[scene.events[0].actors[0] if scene.events else 0]
        assert (main.colour, main.shape) in {(mention.colour, mention.shape) for mention in caption.statement.mentions}


def test_most_captions_name_size_background_second_thing_and_an_adverb():
    drawn = [caption for _, caption in captions(names_everything=False)]
    assert np.mean([bool(caption.statement.mentions[0].size) for caption in drawn]) > 0.6
    assert np.mean([bool(caption.statement.texture) for caption in drawn]) > 0.6
    assert np.mean([caption.statement.is_complete for caption in drawn]) > 0.8
    assert len({caption.text for caption in drawn}) > 0.95 * len(drawn)


@pytest.mark.parametrize("names_everything", [True, False])
def test_captions_are_short_and_content_words_are_a_minority(names_everything: bool):
    tables = (WORDS_BY_SHAPE, WORDS_BY_SIZE, WORDS_BY_TEXTURE)
    content = {word for table in tables for synonyms in table.values() for word in synonyms}
    content |= {*COLOURS, *SURFACES, "left", "right", "places", "clip", "picture", "front", "see"}
    content |= {form for verbs in VERBS_BY_ACTION.values() for verb in verbs for form in verb[:3]}
    lengths, shares = [], []
    for _, caption in captions(names_everything=names_everything):
        words = words_of(caption.text)
        assert not re.search(r"[^a-z ,]|  | ,|^,|,$", caption.text), caption.text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption.text), caption.text
        lengths.append(len(words))
        shares.append(np.mean([word in content for word in words if word != ","]))
    assert max(lengths) <= MAX_WORDS
    assert np.mean(shares) < 0.5


def test_an_altered_scene_in_the_same_style_alters_only_that_word():
    scene = scenes()[0]
    style = Style.draw(np.random.default_rng(2), names_everything=True)
    thing = scene.things[0]
    other = Scene(
        things=(type(thing)(**{**vars(thing), "colour": "brown"}), *scene.things[1:]),
        events=scene.events,
        background=scene.background,
    )
    assert caption_of(other, style).text == caption_of(scene, style).text.replace(thing.colour, "brown")


def test_captions_fit_28_word_pieces_of_the_published_vocabulary():
    folder = os.environ.get("SNPS3_TEST_DATA")
    if folder is None:
        pytest.skip("SNPS3_TEST_DATA is unset: the published vocabulary is not at hand")
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(Path(folder) / "bert-base-uncased-vocab.txt"))
    for _, caption in captions(names_everything=True):
        pieces = tokenizer.encode(caption.text).tokens
        assert len(pieces) <= 28
        assert "[UNK]" not in pieces
