"""Captions to ids: what a vocabulary keeps, where long captions are cut, and that nothing depends on the process."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as AnyTokenizer
from tokenizers import models, pre_tokenizers, trainers

from pipeline.text.tokenizer import (
    MASK,
    SPECIAL_TOKENS,
    Tokenizer,
    random_truncate,
    read_pieces,
    train_wordpiece,
    whole_words,
)

CAPTIONS = [
    "A red circle slides slowly to the left.",
    "Two blue squares meet, then they pass each other.",
    "The large green triangle grows while a small star spins.",
    "A Striped circle bounces; the star vanishes!",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_wordpiece(CAPTIONS, 160)


def test_a_trained_vocabulary_starts_with_the_special_tokens_and_spells_every_word(tokenizer: Tokenizer) -> None:
    assert tokenizer.pieces[:5] == SPECIAL_TOKENS
    assert tokenizer.special.pad == 0
    assert tokenizer.vocabulary_size <= 160
    ids = np.concatenate(tokenizer.encode([*CAPTIONS, "glued strips"]))
    assert tokenizer.special.unknown not in ids


def test_frequent_words_become_one_piece() -> None:
    tokenizer = train_wordpiece(["circle circle square"] * 3, 60)
    assert tokenizer.encode(["Circle"])[0].tolist()[1:-1] == [tokenizer.pieces.index("circle")]


def test_two_processes_with_other_hash_seeds_learn_the_same_vocabulary(tokenizer: Tokenizer) -> None:
    program = (
        "import json, sys; from pipeline.text.tokenizer import train_wordpiece;"
        "print(json.dumps(train_wordpiece(json.loads(sys.stdin.read()), 160).pieces))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(CAPTIONS),
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert [tuple(json.loads(output)) for output in outputs] == [tokenizer.pieces] * 2


def test_a_special_token_written_in_a_caption_is_text(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode([f"a {MASK} circle [SEP] [CLS]"])
    assert tokenizer.special.mask not in ids
    assert ids.tolist().count(tokenizer.special.sep) == 1
    assert ids.tolist().count(tokenizer.special.cls) == 1


def test_the_same_ids_come_after_pickling_saving_and_loading(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "vocab.txt").write_text("\n".join(tokenizer.pieces) + "\n", encoding="utf-8")
    copies = [
        pickle.loads(pickle.dumps(tokenizer)),
        Tokenizer.load(tmp_path),
        Tokenizer.load(tmp_path / "tokenizer.json"),
        Tokenizer.load(tmp_path / "plain"),
    ]
    captions = [*CAPTIONS, f"a {MASK} circle", "ünïcode 漢字"]
    expected = [ids.tolist() for ids in tokenizer.encode(captions)]
    for copy in copies:
        assert copy.pieces == tokenizer.pieces
        assert copy.special == tokenizer.special
        assert [ids.tolist() for ids in copy.encode(captions)] == expected


def test_hugging_face_reads_what_is_saved_and_finds_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.save(tmp_path)))
    assert [other.encode(caption) for caption in CAPTIONS] == [ids.tolist() for ids in tokenizer.encode(CAPTIONS)]


def test_a_vocabulary_with_repeated_lines_keeps_its_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, "x", "x", "circle"]), encoding="utf-8")
    assert Tokenizer.load(path).encode(["x circle"])[0].tolist()[1:-1] == [5, 7]


def test_without_generator_a_long_caption_keeps_its_beginning(tokenizer: Tokenizer) -> None:
    full, cut = tokenizer.encode(CAPTIONS[:1], max_tokens=99)[0], tokenizer.encode(CAPTIONS[:1], max_tokens=6)[0]
    assert cut.tolist() == [*full.tolist()[:5], tokenizer.special.sep]


def test_each_window_of_a_long_caption_is_drawn(tokenizer: Tokenizer) -> None:
    full = tokenizer.encode(["star circle star square red"], max_tokens=99)[0].tolist()[1:-1]
    possible = {tuple(full[start : start + 4]) for start in range(len(full) - 3)}
    drawn = tokenizer.encode(["star circle star square red"] * 200, 6, np.random.default_rng)
    assert {tuple(ids.tolist()[1:-1]) for ids in drawn} == possible


@given(length=st.integers(0, 60), kept=st.integers(1, 40), seed=st.integers(0, 5))
def test_a_window_is_a_run_of_neighbours(length: int, kept: int, seed: int) -> None:
    window = random_truncate(list(range(length)), kept, np.random.default_rng(seed))
    assert len(window) == min(length, kept)
    assert not window or window == list(range(window[0], window[0] + len(window)))


def test_an_empty_caption_is_two_tokens_and_text_comes_back(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([""])[0].tolist() == [tokenizer.special.cls, tokenizer.special.sep]
    text = tokenizer.model.decode(tokenizer.encode([CAPTIONS[1]])[0].tolist())
    assert text == "two blue squares meet, then they pass each other."


def test_wrong_input_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocabulary_size 20 is too small"):
        train_wordpiece(CAPTIONS, 20)
    with pytest.raises(ValueError, match="without a single word"):
        train_wordpiece(["", " "], 100)
    with pytest.raises(ValueError, match=r"lacks \[MASK\]"):
        Tokenizer.from_pieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "x"])
    with pytest.raises(ValueError, match="'x' occurs twice"):
        Tokenizer.from_pieces([*SPECIAL_TOKENS, "x", "x"])
    with pytest.raises(FileNotFoundError, match=r"holds neither tokenizer\.json nor vocab\.txt"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="at least 3, got 2"):
        tokenizer.encode(["x"], max_tokens=2)


def test_the_pieces_of_any_vocabulary_are_read_and_its_whole_words_known(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "bert")
    assert read_pieces(str(tmp_path / "bert")) == list(tokenizer.pieces)
    model = AnyTokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel()
    model.train_from_iterator([*CAPTIONS, "un café"] * 9, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model.save(str(tmp_path / "tokenizer.json"))
    pieces = read_pieces(str(tmp_path))
    assert [model.id_to_token(index) for index in range(model.get_vocab_size())] == pieces
    assert {"circle", "squares", "triangle", "café"} <= set(whole_words(pieces))
    known = {pieces[index]: word for index, word in enumerate(whole_words(pieces)) if word}
    assert all(model.encode(f"see {word}").tokens[-1] == piece for piece, word in known.items() if len(word) > 3)


def test_what_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds neither tokenizer\.json nor vocab\.txt"):
        read_pieces(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no tokenizer\.json of a fast tokenizer"):
        read_pieces(str(tmp_path))
