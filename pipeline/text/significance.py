"""S3: count the words of a corpus by part of speech, rank the significant ones, and group inflections into families.

captions ──tagger──► WordCounts: (word, NOUN | VERB | ADJ) ──vocabulary──► SignificantWords: rank and family per id

`pipeline/offline/word_counts.py` counts a whole corpus on all CPUs of a cluster.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, Real

from pipeline import storage
from pipeline.text.config import UNRANKED
from pipeline.text.tagging import Tagger, all_lemmas, lexicon_tagger
from pipeline.text.tokenizer import PREFIX, whole_words

logger = logging.getLogger(__name__)

CAPTIONS_AT_ONCE = 2**16
"""Captions per batch."""
CONTENT_POS = ("NOUN", "VERB", "ADJ")
"""The parts of speech that are counted, in the order of the columns of `pos_counts`."""


@dataclass(frozen=True, kw_only=True)
class SignificanceConfig:
    """How the significant words of a corpus are counted and ranked."""

    lower_case: bool = True
    """Count "Dog" as "dog". Without it words at the start of a sentence are lost, as in the published lists; a cased
    vocabulary wants it off."""
    abandoned: tuple[str, ...] = ("background", "backgrounds", "be", "is", "was", "were", "are")
    """Words that never become significant, in whatever case."""
    min_pos_share: float = 0.25
    """A part of speech that makes up less than this share of a word's occurrences is taken for a mistake."""
    ranking: Literal["count", "tf_idf"] = "count"
    """`count`: the most frequent first, as published. `tf_idf`: the highest TF-IDF first (`tf_idf`)."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_pos_share <= 1:
            raise ValueError(f"significance.min_pos_share must lie in [0, 1], got {self.min_pos_share}")


@dataclass(frozen=True, kw_only=True)
class WordCounts:
    """How often the words of a corpus occur as noun, verb or adjective."""

    by_pos: Mapping[str, Mapping[str, int]]
    """{"NOUN": {"dog": 3, …}, "VERB": …, "ADJ": …}: occurrences."""
    num_captions_with: Mapping[str, int]
    """{"dog": 2, …}: captions in which the word is at least once a noun, verb or adjective."""
    num_captions: int
    """Captions counted, including duplicates."""

    def to_json(self) -> str:
        """Return the counts in the published format, part of speech → word → count, plus counts of captions."""
        captions = {"captions": self.num_captions_with, "num_captions": self.num_captions}
        return json.dumps({**self.by_pos, **captions}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> WordCounts:
        """Parse the counts written by `to_json`."""
        read = json.loads(text)
        by_pos = {pos: read[pos] for pos in CONTENT_POS}
        return cls(by_pos=by_pos, num_captions_with=read["captions"], num_captions=read["num_captions"])


@dataclass(frozen=True, kw_only=True, eq=False)
class SignificantWords:
    """Rank and word family of the `V` ids of a vocabulary."""

    words: tuple[str, ...]
    """The vocabulary entry of each id."""
    total_counts: Int64[np.ndarray, " V"]
    """Occurrences as noun, verb or adjective."""
    pos_counts: Int64[np.ndarray, "V 3"]
    """Occurrences per part of speech (`CONTENT_POS`), without probable tagging errors (`min_pos_share`)."""
    ranks: Int64[np.ndarray, " V"]
    """0 for the most significant word; ties share the better rank; `UNRANKED` if never counted."""
    family_starts: Int64[np.ndarray, " V_plus_1"]
    """The family of id i is `family_members[family_starts[i]:family_starts[i + 1]]`."""
    family_members: Int64[np.ndarray, " M"]
    """Ids of words that share a lemma, including the word itself; empty for words without a family."""

    @property
    def vocabulary_size(self) -> int:
        """Return the number of ids."""
        return len(self.ranks)

    @property
    def pos_shares(self) -> Float64[np.ndarray, "V 3"]:
        """Return the share of each part of speech in the occurrences of each word; 0 for words never counted."""
        return self.pos_counts / np.maximum(self.pos_counts.sum(axis=1, keepdims=True), 1)

    @cached_property
    def is_continuation(self) -> Bool[np.ndarray, " V"]:
        """Return for each piece whether it continues the word of the piece before."""
        return np.array([word.startswith(PREFIX) for word in self.words], dtype=bool)

    @cached_property
    def _ids_by_rank(self) -> np.ndarray:
        return np.argsort(self.ranks, kind="stable")

    def significant_ids(self, top_k: int) -> Int64[np.ndarray, " S"]:
        """Return the ids whose rank is at most `top_k`, best first. With ties there may be more than `top_k + 1`."""
        last_rank = min(top_k, UNRANKED - 1)
        return self._ids_by_rank[: np.searchsorted(self.ranks, last_rank, side="right", sorter=self._ids_by_rank)]

    def family(self, word_id: int) -> Int64[np.ndarray, " members"]:
        """Return the ids of the word's inflections, including itself; only itself if it has no family."""
        members = self.family_members[self.family_starts[word_id] : self.family_starts[word_id + 1]]
        return members if len(members) else np.array([word_id])

    def random_word(self, rng: np.random.Generator, top_k: int) -> int:
        """Draw a significant word uniformly, then a member of its family uniformly."""
        significant = self.significant_ids(top_k)
        if not len(significant):
            raise ValueError(f"no word has a rank of at most {top_k}: count the words of the corpus before MSSM")
        family = self.family(int(significant[rng.integers(len(significant))]))
        return int(family[rng.integers(len(family))])

    def refuse_other_vocabulary(self, pieces: Sequence[str]) -> None:
        """Raise ValueError unless this table was made for the vocabulary `pieces`.

        Non-ASCII pieces are not compared: in some copies of BERT's vocabulary a wrong encoding has corrupted them.
        """
        remedy = "count the words for it (jobs/mine_words.py --vocabulary), or set text.vocabulary to the table's"
        if len(pieces) != len(self.words):
            raise ValueError(
                f"the table of significant words has {len(self.words)} ids, the vocabulary {len(pieces)}: {remedy}"
            )
        for index in np.flatnonzero(self.total_counts).tolist():
            word, piece = self.words[index], pieces[index]
            if word != piece and word.isascii():
                raise ValueError(
                    f"id {index} is {word!r} in the table of significant words, {piece!r} in the vocabulary: {remedy}"
                )

    def to_json(self) -> str:
        """Return the table in the published format, one list per column, with the additional column `family_ids`."""
        shares, is_ranked = self.pos_shares, self.ranks < UNRANKED
        columns: dict[str, Any] = {
            "id": list(range(self.vocabulary_size)),
            "name": list(self.words),
            "total_count": self.total_counts.tolist(),
            **{f"{pos.lower()}_count": self.pos_counts[:, i].tolist() for i, pos in enumerate(CONTENT_POS)},
            "rank": np.where(is_ranked, self.ranks, is_ranked.sum()).tolist(),
            **{f"{pos.lower()}_percentage": shares[:, i].tolist() for i, pos in enumerate(CONTENT_POS)},
            "family_ids": [part.tolist() for part in np.split(self.family_members, self.family_starts[1:-1])],
        }
        return json.dumps(columns, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, families: str | None = None) -> SignificantWords:
        """Parse a table of `to_json`, or a published one, whose families are in a second file (`families_json`)."""
        columns = json.loads(text)
        pos_columns = [f"{pos.lower()}_count" for pos in CONTENT_POS]
        missing = [name for name in ("name", "total_count", "rank", *pos_columns) if name not in columns]
        if missing:
            raise ValueError(f"not a table of significant words: the columns {', '.join(missing)} are missing")
        totals = np.array(columns["total_count"], dtype=np.int64)
        family_ids = columns.get("family_ids", [()] * len(totals))
        if families:
            id_of = {word: index for index, word in reversed(list(enumerate(columns["name"])))}
            family_ids = [[id_of[word] for word in family] for family in json.loads(families)]
        starts, members = _flat(family_ids)
        return cls(
            words=tuple(columns["name"]),
            total_counts=totals,
            pos_counts=np.array([columns[name] for name in pos_columns], dtype=np.int64).T.copy(),
            ranks=np.where(totals > 0, np.array(columns["rank"], dtype=np.int64), UNRANKED),
            family_starts=starts,
            family_members=members,
        )

    def families_json(self) -> str:
        """Return the families in the format of the published code's second file: a list of words per id."""
        families = np.split(self.family_members, self.family_starts[1:-1])
        return json.dumps([[self.words[member] for member in family] for family in families], ensure_ascii=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, to a local path or a bucket."""
        storage.write_bytes_atomic(str(path), self.to_json().encode())

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], families_path: str | os.PathLike[str] | None = None
    ) -> SignificantWords:
        """Read the table in a JSON file, local or in a bucket, and optionally the published file of word families."""
        families = storage.read_bytes(str(families_path)).decode() if families_path else None
        return cls.from_json(storage.read_bytes(str(path)).decode(), families)


def count_words(
    captions: Iterable[str] | Mapping[str, int], tagger: Tagger | None = None, *, lower_case: bool = True
) -> WordCounts:
    """Count the words of `captions`; a mapping gives the number of occurrences of each caption.

    Captions are processed in batches, and equal ones in a batch are tagged once.
    """
    if tagger is None:
        logger.warning("no tagger given: parts of speech come from the built-in dictionary and a few rules of context")
        tagger = lexicon_tagger
    by_pos = {pos: Counter[str]() for pos in CONTENT_POS}
    num_captions_with, num_captions = Counter[str](), 0
    for batch in [captions] if isinstance(captions, Mapping) else _counted(captions):
        times_of = Counter[str]()
        for caption, times in batch.items():
            times_of[caption.lower() if lower_case else caption] += times
        for tagged, times in zip(tagger(times_of), times_of.values(), strict=True):
            content = [(word, pos) for word, pos in tagged if pos in by_pos]
            for word, pos in content:
                by_pos[pos][word] += times
            for word in {word for word, _ in content}:
                num_captions_with[word] += times
        num_captions += times_of.total()
    return WordCounts(by_pos=by_pos, num_captions_with=num_captions_with, num_captions=num_captions)


def _counted(captions: Iterable[str]) -> Iterator[Counter[str]]:
    """Yield the counts of the captions in each batch; without any caption, yield one empty batch."""
    captions = iter(captions)
    yield Counter(itertools.islice(captions, CAPTIONS_AT_ONCE))
    while batch := Counter(itertools.islice(captions, CAPTIONS_AT_ONCE)):
        yield batch


def rank_words(
    counts: WordCounts, vocabulary: Sequence[str], config: SignificanceConfig | None = None
) -> SignificantWords:
    """Rank the words of a vocabulary that have at least two letters, from their counts, the most significant first."""
    config = config or SignificanceConfig()
    abandoned = {word.lower() for word in config.abandoned}
    words = [word if len(word) > 1 and word.lower() not in abandoned else "" for word in whole_words(vocabulary)]
    raw_counts = np.array([[counts.by_pos[pos].get(word, 0) for pos in CONTENT_POS] for word in words], dtype=np.int64)
    totals = raw_counts.sum(axis=1)
    shares = raw_counts / np.maximum(totals, 1)[:, None]
    pos_counts = np.where(shares >= config.min_pos_share, raw_counts, 0)
    scores = totals if config.ranking == "count" else tf_idf(counts, words)
    starts, members = _flat(word_families(whole_words(vocabulary), pos_counts))
    return SignificantWords(
        words=tuple(vocabulary),
        total_counts=totals,
        pos_counts=pos_counts,
        ranks=np.where(totals > 0, competition_ranks(scores), UNRANKED),
        family_starts=starts,
        family_members=members,
    )


def tf_idf(counts: WordCounts, words: Sequence[str]) -> Float64[np.ndarray, " words"]:
    """Return n(w) · ln(N / N(w)) of each word, with captions as documents.

    n(w): occurrences of w as noun, verb or adjective in the N captions; N(w): captions that contain w as one of these.
    This equals the sum over all captions of n(w in it) · idf(w). A word in every caption scores 0; words in fewer than
    N / e captions, once in each, keep the order of their counts.
    """
    totals = np.array([sum(counts.by_pos[pos].get(word, 0) for pos in CONTENT_POS) for word in words])
    captions = np.array([counts.num_captions_with.get(word, 0) for word in words])
    return totals * np.log(max(counts.num_captions, 1) / np.maximum(captions, 1))


def mine_significant_words(
    captions: Iterable[str],
    vocabulary: Sequence[str],
    config: SignificanceConfig | None = None,
    tagger: Tagger | None = None,
) -> SignificantWords:
    """Count the words of `captions` (`count_words`) and rank those of a vocabulary (`rank_words`)."""
    config = config or SignificanceConfig()
    return rank_words(count_words(captions, tagger, lower_case=config.lower_case), vocabulary, config)


def competition_ranks(scores: Real[np.ndarray, " V"]) -> Int64[np.ndarray, " V"]:
    """Return the rank of each score, 0 for the largest; ties share the better rank, and the next ones are skipped."""
    return len(scores) - np.searchsorted(np.sort(scores), scores, side="right")


def word_families(vocabulary: Sequence[str], pos_counts: Int64[np.ndarray, "V 3"]) -> list[list[int]]:
    """Return for each id the ids that share a lemma with it, including itself; empty if there is no other.

    For a counted word, only the lemmas of the parts of speech it was counted as are used: "saw" the verb belongs to
    "see", "saw" the noun to "saws".
    """
    lemmas_of = [_lemmas(word, row) for word, row in zip(vocabulary, pos_counts.tolist(), strict=True)]
    ids_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for word_id, lemmas in enumerate(lemmas_of):
        for lemma in lemmas:
            ids_of[lemma].append(word_id)
    families = [sorted({member for lemma in lemmas for member in ids_of[lemma]}) for lemmas in lemmas_of]
    return [family if len(family) > 1 else [] for family in families]


def _lemmas(word: str, counts: Sequence[int]) -> list[tuple[str, str]]:
    if len(word) < 2 or not word.isalpha():
        return []
    counted = [pos for pos, count in zip(CONTENT_POS, counts, strict=True) if count]
    known = sorted(all_lemmas(word).items())
    return [(pos, lemma) for pos, lemmas in known if pos in (counted or CONTENT_POS) for lemma in lemmas]


def _flat(families: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *(len(family) for family in families)], dtype=np.int64)
    return starts, np.array([member for family in families for member in family], dtype=np.int64)
