"""A batch: what each clip gets depends on itself alone, views agree, padding is padding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import table_of_ranks

from pipeline.records import IGNORED_LABEL, Batch, ClipRows
from pipeline.stream.collate import collate
from pipeline.stream.randomness import Purpose, clip_rng
from pipeline.text.config import MaskingConfig, Strategy
from pipeline.text.masking import choose_words
from pipeline.text.significance import SignificantWords, mine_significant_words
from pipeline.text.tokenizer import Tokenizer, train_wordpiece

CAPTIONS = [
    "a red circle slides slowly to the left of a wall",
    "two blue squares meet",
    "the large green triangle grows while a small star spins and a ring falls down and then rises " * 2,
    "a striped circle bounces and the star vanishes",
    "it is",
    "a star",
    "the triangle which is green turns around and then it shrinks",
]
NUM_WORDS = 3
TOKENIZER: Tokenizer = train_wordpiece(CAPTIONS, 150)
TABLE: SignificantWords = mine_significant_words(CAPTIONS, TOKENIZER.pieces)


def make_rows(indices: list[int], *, epoch: int = 0, empty: tuple[int, ...] = ()) -> ClipRows:
    """Clip `i` has caption `i`, id `1000 + i` and frames of value `i`; rows in `empty` have weight 0."""
    size = len(indices)
    return ClipRows(
        clip_ids=np.array([1000 + i for i in indices], dtype=np.int64),
        weight=np.array([float(row not in empty) for row in range(size)], dtype=np.float32),
        epoch=epoch,
        captions=["" if row in empty else CAPTIONS[i] for row, i in enumerate(indices)],
        frames=np.stack([np.full((2, 4, 4, 3), i, dtype=np.uint8) for i in indices]),
        frame_pad_mask=np.zeros((size, 2, 4, 4), dtype=bool),
        num_frames=np.full(size, 2, dtype=np.int64),
    )


def make_batch(rows: ClipRows, *, masking: MaskingConfig | None = None, seed: int = 0, **options: int | None) -> Batch:
    masking = masking or MaskingConfig()
    return collate(rows, tokenizer=TOKENIZER, table=TABLE, masking=masking, num_words=NUM_WORDS, seed=seed, **options)


def row_of(batch: Batch, row: int) -> list[list[int]]:
    """Everything random about one row, without the padding."""
    length = int(batch.token_mask[row].sum())
    columns = (batch.token_ids, batch.masked_token_ids, batch.labels)
    return [column[row, :length].tolist() for column in columns] + [batch.word_positions[row].tolist()]


@settings(deadline=None)
@given(
    order=st.permutations(range(len(CAPTIONS))),
    size=st.integers(1, len(CAPTIONS)),
    strategy=st.sampled_from(Strategy),
    seed=st.integers(0, 3),
)
def test_a_clip_gets_the_same_masks_in_every_batch(order: list[int], size: int, strategy: Strategy, seed: int) -> None:
    masking = MaskingConfig(strategy=strategy)
    everything = make_batch(make_rows(list(range(len(CAPTIONS)))), masking=masking, seed=seed)
    part = make_batch(make_rows(order[:size]), masking=masking, seed=seed)
    for row, clip in enumerate(order[:size]):
        assert row_of(part, row) == row_of(everything, clip)


def test_another_epoch_and_another_seed_hide_other_words() -> None:
    rows, later = make_rows([0, 2, 3, 6] * 4), make_rows([0, 2, 3, 6] * 4, epoch=1)
    first, second, third = make_batch(rows), make_batch(later), make_batch(rows, seed=1)
    assert not torch.equal(first.labels, second.labels)
    assert not torch.equal(first.labels, third.labels)


def test_both_views_show_the_same_window_of_a_long_caption() -> None:
    windows = set()
    for epoch in range(20):
        batch = make_batch(make_rows([2], epoch=epoch), max_tokens=10)
        assert batch.token_ids.shape == (1, 10)
        restored = torch.where(batch.labels != IGNORED_LABEL, batch.labels, batch.masked_token_ids)
        assert torch.equal(restored, batch.token_ids)
        windows.add(tuple(batch.token_ids[0].tolist()))
    assert len(windows) > 5


def test_tokens_reach_to_the_longest_caption_or_as_far_as_asked() -> None:
    longest = len(TOKENIZER.encode([CAPTIONS[0]])[0])
    assert make_batch(make_rows([0, 1])).token_ids.shape == (2, longest)
    padded = make_batch(make_rows([0, 1]), pad_to=30)
    assert padded.token_ids.shape == (2, 30)
    assert padded.token_mask.sum(dim=1).tolist() == [longest, len(TOKENIZER.encode([CAPTIONS[1]])[0])]
    assert (padded.token_ids[~padded.token_mask] == TOKENIZER.special.pad).all()
    assert (padded.masked_token_ids[~padded.token_mask] == TOKENIZER.special.pad).all()
    assert (padded.labels[~padded.token_mask] == IGNORED_LABEL).all()
    with pytest.raises(ValueError, match="pad_to 5 is shorter"):
        make_batch(make_rows([0, 1]), pad_to=5)


def test_a_row_of_weight_zero_has_no_words_and_changes_nothing_else() -> None:
    batch = make_batch(make_rows([0, 1, 3], empty=(1,)))
    special = TOKENIZER.special
    assert batch.token_ids[1, batch.token_mask[1]].tolist() == [special.cls, special.sep]
    assert (batch.labels[1] == IGNORED_LABEL).all()
    full = make_batch(make_rows([0, 1, 3]))
    assert [row_of(batch, 0), row_of(batch, 2)] == [row_of(full, 0), row_of(full, 2)]
    unread = dataclasses.replace(make_rows([0, 1, 3], empty=(1,)), captions=[CAPTIONS[0], "a caption", CAPTIONS[3]])
    assert torch.equal(make_batch(unread).token_ids, batch.token_ids)


def test_positions_lie_inside_the_batch_even_without_any_word() -> None:
    batch = make_batch(make_rows([0, 1], empty=(0, 1)))
    assert batch.word_positions.tolist() == [[0, 1, 2]] * 2
    assert batch.token_ids.shape[1] == NUM_WORDS


def test_frames_pass_untouched_and_may_be_read_only() -> None:
    rows = make_rows([0, 3])
    for array in (rows.frames, rows.frame_pad_mask, rows.num_frames, rows.clip_ids, rows.weight):
        array.flags.writeable = False
    batch = make_batch(rows)
    np.testing.assert_array_equal(batch.frames.numpy(), rows.frames)
    assert batch.frames.dtype == torch.uint8
    assert batch.clip_ids.tolist() == [1000, 1003]
    batch.frames.fill_(9)
    assert rows.frames.max() == 3


def test_rows_and_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of clips"):
        dataclasses.replace(make_rows([0, 1]), captions=["x"])
    small = table_of_ranks(np.zeros(5, dtype=np.int64))
    with pytest.raises(ValueError, match="has 5 ids, the vocabulary"):
        collate(make_rows([0]), tokenizer=TOKENIZER, table=small, masking=MaskingConfig(), num_words=3, seed=0)


def test_the_words_of_lvwm_follow_their_own_rank_and_not_that_of_masking() -> None:
    rows = make_rows([0, 2, 3, 6])
    every, fewest = make_batch(rows, lvwm_top_k=None), make_batch(rows, lvwm_top_k=0)
    for batch, top_k in ((every, None), (fewest, 0)):
        for row in range(4):
            length = int(batch.token_mask[row].sum())
            ids = batch.token_ids[row, :length].numpy()
            rng = clip_rng(0, 0, int(rows.clip_ids[row]), Purpose.WORDS)
            expected = choose_words(
                ids, num_words=NUM_WORDS, special=TOKENIZER.special, table=TABLE, top_k=top_k, rng=rng
            )
            assert batch.word_positions[row].tolist() == expected.tolist()
    assert not torch.equal(every.word_positions, fewest.word_positions)
    swept = make_batch(rows, masking=MaskingConfig(top_k=0), lvwm_top_k=None)
    assert torch.equal(swept.word_positions, every.word_positions)
    assert not torch.equal(swept.masked_token_ids, every.masked_token_ids)
