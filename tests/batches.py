"""Small random batches and networks for the tests of the network, its objectives, its ranks and its train loop."""

from __future__ import annotations

import torch

from pipeline.records import IGNORED_LABEL, Batch
from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

PAD, CLS, SEP, MASK, FIRST_WORD, VOCABULARY = 0, 1, 2, 3, 4, 40
NUM_WORDS, MAX_TOKENS = 3, 12
NUM_FRAMES, SIZE_PX = 2, 8


def random_batch(num_rows: int, *, seed: int = 0, empty: tuple[int, ...] = ()) -> Batch:
    """Captions of 1 to 10 words with one to three masked, wide, high and square clips; rows in `empty` have weight 0.

    The pixels of an empty row are noise, which nothing may look at.
    """
    rng = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=rng)

    ids = torch.full((num_rows, MAX_TOKENS), PAD)
    labels = torch.full((num_rows, MAX_TOKENS), IGNORED_LABEL)
    positions = torch.arange(NUM_WORDS).repeat(num_rows, 1)
    pad_mask = torch.zeros(num_rows, NUM_FRAMES, SIZE_PX, SIZE_PX, dtype=torch.bool)
    for row in range(num_rows):
        num_words = 0 if row in empty else int(draw(1, MAX_TOKENS - 1, ()))
        ids[row, 0], ids[row, num_words + 1] = CLS, SEP
        ids[row, 1 : num_words + 1] = draw(FIRST_WORD, VOCABULARY, (num_words,))
        if num_words:
            masked = draw(1, num_words + 1, (3,))
            labels[row, masked] = ids[row, masked]
            positions[row] = draw(1, num_words + 1, (NUM_WORDS,))
        pad_mask[row, :, :, (SIZE_PX, SIZE_PX, 4)[row % 3] :] = True
        pad_mask[row, :, (SIZE_PX, 4, SIZE_PX)[row % 3] :] = True
    frames = draw(0, 256, (num_rows, NUM_FRAMES, SIZE_PX, SIZE_PX, 3)).to(torch.uint8)
    weight = torch.tensor([float(row not in empty) for row in range(num_rows)])
    return part(
        Batch(
            clip_ids=draw(0, 2**62, (num_rows,)),
            weight=weight,
            frames=frames,
            frame_pad_mask=pad_mask,
            token_ids=ids,
            masked_token_ids=torch.where(labels == IGNORED_LABEL, ids, MASK),
            token_mask=ids != PAD,
            labels=labels,
            word_positions=positions,
        ),
        range(num_rows),
    )


def part(batch: Batch, rows: list[int] | range) -> Batch:
    """Some rows of a batch, cut to their own longest caption as `collate` would."""
    columns = {name: column[list(rows)] for name, column in vars(batch).items() if isinstance(column, torch.Tensor)}
    longest = max(int(columns["token_mask"].sum(1).max()), NUM_WORDS)
    cut = {name: columns[name][:, :longest] for name in ("token_ids", "masked_token_ids", "token_mask", "labels")}
    return Batch(**columns | cut)


def tiny_network(
    objective: ObjectiveConfig | None = None,
    *,
    seed: int = 0,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    grid_side: int = 1,
    num_temporal_layers: int = 0,
) -> Pretraining:
    """A network of a few thousand random weights in training mode, in one process.

    The weights are wider than the default, so that attention is not flat and every part has a gradient worth comparing.
    """
    config = ModelConfig(
        visual=VisualConfig(channels=(4, 6)),
        hidden=16,
        num_layers=2,
        num_heads=2,
        feed_forward=32,
        grid_side=grid_side,
        num_temporal_layers=num_temporal_layers,
        max_positions=MAX_TOKENS + 4,
        dropout=dropout,
        initial_std=0.25,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SNPS3(config, vocabulary_size=VOCABULARY, pad_id=PAD, separator_id=SEP)
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        return Pretraining(model, objective or ObjectiveConfig(), mask_id=MASK).to(dtype)
