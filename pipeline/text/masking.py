"""Choose the words of a caption that are masked (MLM, and the paper's MSSM) or matched with the video (LVWM)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from pipeline.records import IGNORED_LABEL
from pipeline.text.config import UNRANKED, MaskingConfig, Strategy
from pipeline.text.significance import SignificantWords
from pipeline.text.tokenizer import SpecialIds


def last_rank(top_k: int | None) -> int:
    """Return the last rank, from 0, that counts as significant; None stands for every counted word."""
    return UNRANKED - 1 if top_k is None else top_k


def num_chosen(num_pieces: int, ratio: float) -> int:
    """Return how many of `num_pieces` word pieces MSSM chooses: ⌊ratio · n⌋, plus 1 if the fraction is at least 0.3.

    In double precision, as in the published code: 22 pieces at 0.15 give 3.3, whose fraction is just below 0.3.
    """
    exact = ratio * num_pieces
    return int(exact) + (exact - int(exact) >= 0.3)


def mask_words(
    ids: Int64[np.ndarray, " length"],
    *,
    special: SpecialIds,
    table: SignificantWords,
    config: MaskingConfig,
    rng: np.random.Generator,
) -> tuple[Int64[np.ndarray, " length"], Int64[np.ndarray, " length"]]:
    """Mask one caption. Return the masked ids, and labels: the original id of chosen pieces, else `IGNORED_LABEL`."""
    pieces = np.flatnonzero((ids != special.cls) & (ids != special.sep) & (ids != special.pad))
    if config.strategy is Strategy.MSSM:
        chosen = _significant_first(pieces, ids, table, config, rng)
    else:
        chosen = _each_with_probability(pieces, config, rng)
    if config.whole_words:
        chosen = _whole_words(chosen, pieces, ids, table)
    masked_ids, labels = ids.copy(), np.full(len(ids), IGNORED_LABEL)
    labels[chosen] = ids[chosen]
    for position, draw in zip(chosen.tolist(), rng.random(len(chosen)).tolist(), strict=True):
        if draw < config.mask_share:
            masked_ids[position] = special.mask
        elif draw < config.mask_share + config.random_share:
            masked_ids[position] = (
                table.random_word(rng, last_rank(config.top_k))
                if config.strategy is Strategy.MSSM
                else random_piece(rng, table.vocabulary_size, special)
            )
    return masked_ids, labels


def _significant_first(
    pieces: np.ndarray, ids: np.ndarray, table: SignificantWords, config: MaskingConfig, rng: np.random.Generator
) -> np.ndarray:
    is_significant = table.ranks[ids[pieces]] <= last_rank(config.top_k)
    significant, others = pieces[is_significant], pieces[~is_significant]
    count = max(num_chosen(len(pieces), config.ratio), min(config.min_masked, len(pieces)))
    num_significant = min(count, len(significant))
    if config.significant_share < 1:
        drawn = int(rng.binomial(count, config.significant_share))
        num_significant = max(min(drawn, len(significant)), count - len(others))
    if num_significant == count:
        return rng.permutation(significant)[:count]
    if num_significant < len(significant):
        significant = rng.permutation(significant)[:num_significant]
    return np.concatenate([significant, rng.permutation(others)[: count - num_significant]])


def _each_with_probability(pieces: np.ndarray, config: MaskingConfig, rng: np.random.Generator) -> np.ndarray:
    draws = rng.random(len(pieces))
    count = max(int((draws < config.ratio).sum()), min(config.min_masked, len(pieces)))
    # the smallest draws are those below the ratio; if they are too few, the next ones fill up to the minimum
    return pieces[np.argsort(draws)[:count]]


def _whole_words(chosen: np.ndarray, pieces: np.ndarray, ids: np.ndarray, table: SignificantWords) -> np.ndarray:
    """Return all positions of the words that contain `chosen`; a window may begin with the rest of a word."""
    word = np.cumsum(~table.is_continuation[ids[pieces]])
    return pieces[np.isin(word, word[np.isin(pieces, chosen)])]


def random_piece(rng: np.random.Generator, vocabulary_size: int, special: SpecialIds) -> int:
    """Draw an id uniformly from all but the special ones."""
    drawn = int(rng.integers(vocabulary_size - len(special)))
    for special_id in sorted(special):
        drawn += drawn >= special_id
    return drawn


def choose_words(
    ids: Int64[np.ndarray, " length"],
    *,
    num_words: int,
    special: SpecialIds,
    table: SignificantWords,
    top_k: int | None,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " num_words"]:
    """Return exactly `num_words` positions of the unmasked caption for LVWM to match with the video.

    They are of significant words (rank at most `top_k`); if there are none, of other words; else the first positions.
    Too many: a random subset. Too few: all of them, plus random repetitions.
    """
    eligible = np.flatnonzero(table.ranks[ids] <= last_rank(top_k))
    if not len(eligible):
        is_word = (ids != special.cls) & (ids != special.sep) & (ids != special.pad) & (ids != special.mask)
        eligible = np.flatnonzero(is_word)
    if not len(eligible):
        return np.arange(num_words)
    if len(eligible) >= num_words:
        return rng.permutation(eligible)[:num_words]
    repeated = eligible[rng.integers(len(eligible), size=num_words - len(eligible))]
    return np.concatenate([eligible, repeated])
