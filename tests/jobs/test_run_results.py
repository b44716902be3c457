"""What a finished run shows of its test: pictures beside the captions that are theirs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.world import World
from jobs.reports.run_results import masked_captions
from jobs.tasks.captions import CaptionTask
from jobs.tasks.task import Evaluation
from pipeline.records import Batch
from tests.batches import PAD, VOCABULARY, random_batch, tiny_network

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
TOKENIZER: Any = SimpleNamespace(pieces=[str(piece) for piece in range(VOCABULARY)], special=SimpleNamespace(pad=PAD))


class Clips:
    """A split whose caption of each clip is its id."""

    def __init__(self, clip_ids: list[int]) -> None:
        self.clip_ids = clip_ids

    def rows(self) -> pa.Table:
        return pa.table({"clip_id": self.clip_ids, "captions": [[str(clip_id)] for clip_id in self.clip_ids]})

    def groups(self, clip_ids: np.ndarray) -> np.ndarray:
        return np.arange(len(clip_ids)) // 2


def tokens(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[1, 4 + index % (VOCABULARY - 4), 2] for index in range(len(texts))])
    return ids, ids > 0


def marked_batch(num_rows: int, empty: tuple[int, ...], first: int = 0) -> Batch:
    """Clips of which every pixel says how many usable ones came before."""
    batch = random_batch(num_rows, seed=first, empty=empty)
    number = first + batch.weight.cumsum(0).long() - 1
    batch.frames[:] = number.clamp(min=0).to(torch.uint8)[:, None, None, None, None]
    return batch


def evaluation_of(batches: list[Batch], name: str = "test") -> Evaluation:
    source: Any = Clips([clip_id for batch in batches for clip_id in batch.clip_ids.tolist()])
    text: Any = SimpleNamespace(tokens=tokens)
    network: Any = tiny_network(dtype=torch.float32).eval()
    return Evaluation(name=name, batches=iter(batches), source=source, network=network, text=text, world=ALONE)


@pytest.mark.parametrize("empty", [(0,), (1, 2), ()])
def test_each_caption_stands_beside_its_own_clip(tmp_path: Path, empty: tuple[int, ...]) -> None:
    batch = marked_batch(4, empty)
    task, evaluation = CaptionTask(objective=tiny_network().config), evaluation_of([batch])
    task.save_scores(evaluation, str(tmp_path))
    saved = task.read_scores("test", evaluation.source, str(tmp_path))
    assert saved
    assert saved.examples
    shown = masked_captions(saved.examples, TOKENIZER)
    usable = [row for row in range(4) if row not in empty]
    assert [int(caption.frames.flat[0]) for caption in shown] == list(range(len(usable)))
    for caption, row in zip(shown, usable, strict=True):
        assert caption.words == [str(token) for token in batch.token_ids[row][batch.token_mask[row]].tolist()][1:-1]
