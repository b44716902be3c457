"""Tokenise captions to lower-case BERT word pieces, and cut long captions to windows."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int64
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from pipeline import storage

logger = logging.getLogger(__name__)

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PREFIX = "##"
BYTE_SPACE, SPACE, WORD_END = "Ġ", "▁", "</w>"
"""Word marks of other vocabularies than WordPiece: two prefixes and a suffix."""
MAX_LETTERS = 1000
"""Largest number of letters in a trained vocabulary, each in two forms; rarer ones become [UNK]."""


class SpecialIds(NamedTuple):
    """Ids of the five special tokens, in the order of `SPECIAL_TOKENS`."""

    pad: int
    unknown: int
    cls: int
    sep: int
    mask: int


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A WordPiece vocabulary with its rules for splitting a caption."""

    model: tokenizers.Tokenizer
    """The library's tokenizer, without padding and truncation; special tokens written in a caption are plain text."""
    pieces: tuple[str, ...]
    """The piece of each id."""
    special: SpecialIds

    @classmethod
    def from_pieces(cls, pieces: Sequence[str]) -> Tokenizer:
        """Make a tokenizer for a vocabulary list, whose line numbers are the ids."""
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        if len(vocabulary) != len(pieces):
            repeated, _ = Counter(pieces).most_common(1)[0]
            raise ValueError(f"a vocabulary must not repeat a piece, but {repeated!r} occurs twice")
        _refuse_missing_specials(vocabulary)
        model = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
        model.normalizer = normalizers.BertNormalizer(lowercase=True)
        model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        model.post_processor = processors.BertProcessing((SEP, vocabulary[SEP]), (CLS, vocabulary[CLS]))
        model.decoder = decoders.WordPiece(prefix=PREFIX)
        model.add_special_tokens(list(SPECIAL_TOKENS))
        return cls._wrap(model)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read what `to_json` wrote, or any word-piece `tokenizer.json` with BERT's five special tokens."""
        return cls._wrap(tokenizers.Tokenizer.from_str(text))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read the tokenizer in a folder or bucket (`tokenizer.json` or `vocab.txt`) or in one such file."""
        file_path, text = _read_vocabulary(os.fspath(path))
        return cls.from_json(text) if file_path.endswith(".json") else cls.from_pieces(_lines(text, file_path))

    @classmethod
    def _wrap(cls, model: tokenizers.Tokenizer) -> Tokenizer:
        if not isinstance(model.model, models.WordPiece):
            raise ValueError(f"a word-piece vocabulary is needed, got {type(model.model).__name__}; use one of BERT")
        vocabulary = model.get_vocab(with_added_tokens=True)
        _refuse_missing_specials(vocabulary)
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError(f"the ids of a vocabulary must be 0 to {len(vocabulary) - 1} without holes")
        model.no_padding()
        model.no_truncation()
        model.encode_special_tokens = True
        special = SpecialIds(*(vocabulary[token] for token in SPECIAL_TOKENS))
        return cls(model, tuple(sorted(vocabulary, key=vocabulary.__getitem__)), special)

    def __reduce__(self) -> tuple[Callable[[str], Tokenizer], tuple[str]]:
        """Pickle as JSON, since the library's pickling loses `encode_special_tokens`."""
        return _from_json, (self.to_json(),)

    @property
    def vocabulary_size(self) -> int:
        """Return the number of ids."""
        return len(self.pieces)

    def to_json(self) -> str:
        """Return what `from_json` and Hugging Face's libraries read."""
        return self.model.to_str(pretty=False)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `tokenizer.json` into `folder` and return its path."""
        path = Path(folder) / "tokenizer.json"
        storage.write_bytes_atomic(str(path), self.to_json().encode())
        return path

    def encode(
        self,
        captions: Sequence[str],
        max_tokens: int = 30,
        window_rng: Callable[[int], np.random.Generator] | None = None,
    ) -> list[Int64[np.ndarray, " length"]]:
        """Return the ids of each caption, [CLS] … [SEP], at most `max_tokens` long and not padded.

        A longer caption is cut to its beginning, or to a random window drawn with `window_rng(index of the caption)`.
        Derive masked and raw views of a caption from one result of this call, so that they have the same window.
        """
        if max_tokens < 3:
            raise ValueError(f"max_tokens must leave room for [CLS], a word and [SEP], so at least 3, got {max_tokens}")
        rows = []
        # one call for all captions, since the library releases the GIL during it
        encoded = self.model.encode_batch_fast(list(captions), add_special_tokens=False)
        for index, pieces in enumerate(caption.ids for caption in encoded):
            if len(pieces) > max_tokens - 2:
                pieces = random_truncate(pieces, max_tokens - 2, window_rng(index) if window_rng else None)
            rows.append(np.array([self.special.cls, *pieces, self.special.sep], dtype=np.int64))
        return rows


def _from_json(text: str) -> Tokenizer:
    # a module-level function is pickled by name, a method together with its decorators
    return Tokenizer.from_json(text)


def random_truncate(pieces: list[int], num_kept: int, rng: np.random.Generator | None) -> list[int]:
    """Return `num_kept` contiguous pieces from a random start, or the first ones without an rng; all if fewer."""
    if len(pieces) <= num_kept:
        return pieces
    start = 0 if rng is None else int(rng.integers(len(pieces) - num_kept + 1))
    return pieces[start : start + num_kept]


def read_pieces(path: str) -> list[str]:
    """Read the piece of each id of any vocabulary: `tokenizer.json`, `vocab.txt`, or a folder or bucket with either.

    Unlike `Tokenizer.load` it accepts any kind of pieces and special tokens. Ids without a piece are empty.
    """
    file_path, text = _read_vocabulary(path)
    if not file_path.endswith(".json"):
        return _lines(text, file_path)
    try:
        id_of = tokenizers.Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{file_path} is no tokenizer.json of a fast tokenizer: {error}") from error
    piece_of = {index: piece for piece, index in id_of.items()}
    return [piece_of.get(index, "") for index in range(max(piece_of, default=-1) + 1)]


def whole_words(pieces: Sequence[str]) -> list[str]:
    """Return the word that each piece of a vocabulary spells; empty for a part of a word.

    Byte-level pieces ("Ġdog") and SentencePiece's ("▁dog") mark the start of a word, CLIP's ("dog</w>") the end;
    WordPiece marks continuations ("##s"). The vocabulary's mark is the one that at least a tenth of the pieces have.
    """

    def is_mark(mark: str) -> bool:
        return 10 * sum(mark in piece for piece in pieces) >= len(pieces) > 0

    if is_mark(BYTE_SPACE):
        decoder = decoders.ByteLevel()
        return [decoder.decode([piece])[1:] if piece.startswith(BYTE_SPACE) else "" for piece in pieces]
    if is_mark(SPACE):
        return [piece[1:] if piece.startswith(SPACE) else "" for piece in pieces]
    if is_mark(WORD_END):
        return [piece.removesuffix(WORD_END) if piece.endswith(WORD_END) else "" for piece in pieces]
    return ["" if piece.startswith(PREFIX) else piece for piece in pieces]


def train_wordpiece(captions: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Train a vocabulary of at most `vocabulary_size` pieces on `captions`, which are read twice. Deterministic.

    Every letter kept is in the vocabulary both as the start of a word and inside one, so no word of these is unknown.
    """
    letters = _letters(captions)
    # The trainer numbers letters in the order of a hash map, which varies between processes and later breaks ties. As
    # special tokens they get fixed ids; only the pieces of the trained object are kept.
    fixed = [*SPECIAL_TOKENS, *letters, *(PREFIX + letter for letter in letters if letter.isalnum())]
    if vocabulary_size < len(fixed):
        raise ValueError(
            f"vocabulary_size {vocabulary_size} is too small: {len(letters)} letters and signs, letters once more with "
            f"{PREFIX!r}, and {len(SPECIAL_TOKENS)} special tokens need {len(fixed)}"
        )
    model = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, show_progress=False, special_tokens=fixed, continuing_subword_prefix=PREFIX
    )
    model.train_from_iterator(captions, trainer)
    vocabulary = model.get_vocab()
    return Tokenizer.from_pieces(sorted(vocabulary, key=vocabulary.__getitem__))


def _letters(captions: Iterable[str]) -> list[str]:
    normalizer, counts = normalizers.BertNormalizer(lowercase=True), Counter[str]()
    for caption in captions:
        counts.update(normalizer.normalize_str(caption))
    counts = {letter: count for letter, count in counts.items() if not letter.isspace()}
    if not counts:
        raise ValueError("a vocabulary cannot be learned from captions without a single word")
    frequent = sorted(counts, key=lambda letter: (-counts[letter], letter))[:MAX_LETTERS]
    return sorted(frequent)


def _read_vocabulary(path: str) -> tuple[str, str]:
    """Read the vocabulary at `path`, a file or a folder with one; return its path and text."""
    is_folder = storage.is_folder(path)
    candidates = [storage.join(path, name) for name in ("tokenizer.json", "vocab.txt")] if is_folder else [path]
    if file_path := next((candidate for candidate in candidates if storage.exists(candidate)), None):
        return file_path, storage.read_bytes(file_path).decode()
    missing = "holds neither tokenizer.json nor vocab.txt" if is_folder else "does not exist"
    raise FileNotFoundError(f"no vocabulary: {path} {missing}; give a tokenizer.json, a vocab.txt or a folder")


def _refuse_missing_specials(vocabulary: dict[str, int]) -> None:
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(f"the vocabulary lacks {', '.join(missing)}; a BERT vocabulary has all of {SPECIAL_TOKENS}")


def _lines(text: str, file_path: str) -> list[str]:
    """Return the pieces of a vocab.txt; repeated lines get unique placeholder names."""
    # copies of BERT's vocabulary that were decoded wrongly repeat lines; all other lines must keep their ids
    pieces = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    first = {piece: index for index, piece in reversed(list(enumerate(pieces)))}
    if len(first) < len(pieces):
        logger.warning("%s repeats %d lines; their ids will never occur", file_path, len(pieces) - len(first))
    return [piece if first[piece] == index else f"[repeated {index}]" for index, piece in enumerate(pieces)]
