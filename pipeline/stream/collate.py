"""Collate decoded clips and their captions to a `Batch`: tokens, masks, labels and LVWM words, row by row.

ClipRows ──encode once──► token_ids ──┬──► masked_token_ids, labels     (MLM or MSSM)
                                      └──► word_positions               (LVWM)
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from pipeline.records import IGNORED_LABEL, Batch, ClipRows
from pipeline.stream.lengths import group_by_length
from pipeline.stream.randomness import Purpose, clip_rng
from pipeline.text.config import MaskingConfig
from pipeline.text.masking import choose_words, mask_words
from pipeline.text.significance import SignificantWords
from pipeline.text.tokenizer import Tokenizer


def collate(
    rows: ClipRows,
    *,
    tokenizer: Tokenizer,
    table: SignificantWords,
    masking: MaskingConfig,
    num_words: int,
    lvwm_top_k: int | None = None,
    seed: int,
    max_tokens: int = 30,
    pad_to: int | None = None,
    max_length_groups: int = 1,
) -> Batch:
    """Return the batch of `rows`. The random choices of a row depend only on (seed, epoch, clip_id) and its caption.

    Captions longer than `max_tokens` are cut to a random window. The token dimension is the length of the longest
    caption (at least `num_words`), or `pad_to`; ValueError if that is too short. Rows of weight 0 are [CLS] [SEP]
    without labels. `num_words` words of rank at most `lvwm_top_k` are chosen for LVWM. If `max_length_groups` exceeds
    1, captions are grouped by length to save padding.
    """
    _refuse_other_vocabulary(table, tokenizer)
    token_rows = _encoded(rows, tokenizer, max_tokens, seed)
    num_tokens = [len(ids) for ids in token_rows]
    length = _token_length(num_tokens, num_words, pad_to)
    token_ids = np.full((len(token_rows), length), tokenizer.special.pad, dtype=np.int64)
    masked_ids, labels = token_ids.copy(), np.full_like(token_ids, IGNORED_LABEL)
    positions = np.empty((len(token_rows), num_words), dtype=np.int64)
    for row, (ids, clip_id) in enumerate(zip(token_rows, rows.clip_ids.tolist(), strict=True)):
        rng = functools.partial(clip_rng, seed, rows.epoch, clip_id)
        end = len(ids)
        token_ids[row, :end] = ids
        masked_ids[row, :end], labels[row, :end] = mask_words(
            ids, special=tokenizer.special, table=table, config=masking, rng=rng(Purpose.MASKS)
        )
        positions[row] = choose_words(
            ids, num_words=num_words, special=tokenizer.special, table=table, top_k=lvwm_top_k, rng=rng(Purpose.WORDS)
        )
    return Batch(
        clip_ids=as_tensor(rows.clip_ids),
        weight=as_tensor(rows.weight),
        frames=as_tensor(rows.frames),
        frame_pad_mask=as_tensor(rows.frame_pad_mask),
        token_ids=torch.from_numpy(token_ids),
        masked_token_ids=torch.from_numpy(masked_ids),
        token_mask=torch.from_numpy(token_ids != tokenizer.special.pad),
        labels=torch.from_numpy(labels),
        word_positions=torch.from_numpy(positions),
        max_masked=int((labels != IGNORED_LABEL).sum(1).max(initial=0)),
        length_groups=group_by_length(num_tokens, max_length_groups) if max_length_groups > 1 else (),
    )


def _refuse_other_vocabulary(table: SignificantWords, tokenizer: Tokenizer) -> None:
    if len(table.ranks) != tokenizer.vocabulary_size:
        raise ValueError(
            f"the table of significant words has {len(table.ranks)} ids, the vocabulary {tokenizer.vocabulary_size}; "
            "both must come from the same run"
        )


def _encoded(rows: ClipRows, tokenizer: Tokenizer, max_tokens: int, seed: int) -> list[np.ndarray]:
    captions = [caption if weight > 0 else "" for caption, weight in zip(rows.captions, rows.weight, strict=True)]
    clip_ids = rows.clip_ids.tolist()
    return tokenizer.encode(captions, max_tokens, lambda row: clip_rng(seed, rows.epoch, clip_ids[row], Purpose.WINDOW))


def _token_length(lengths: list[int], num_words: int, pad_to: int | None) -> int:
    longest = max([*lengths, num_words])
    if pad_to is None:
        return longest
    if pad_to < longest:
        raise ValueError(
            f"pad_to {pad_to} is shorter than the longest caption with {longest} tokens; raise it or max_tokens"
        )
    return pad_to


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor, without a copy if it is writable. Arrays from the object store are read-only, which
    torch does not support, so they are copied; if all frames share memory, only one is."""
    if array.ndim > 1 and array.strides[1] == 0 and array.shape[1] > 1:
        return as_tensor(array[:, :1]).expand(array.shape)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
