"""What a finished run shows of its test: pictures beside the captions that are theirs."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.world import World
from jobs.reports.run_report import ReportData, render_report
from jobs.reports.run_results import masked_captions
from jobs.tasks.captions import CaptionTask
from jobs.tasks.examples import thumbnails
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

    @property
    def num_clips(self) -> int:
        return len(self.clip_ids)

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


def once(batches: list[Batch], most_alive: int = 2) -> Iterator[Batch]:
    """Yield copies of batches; whoever keeps their pixels is found out."""
    pixels: list[weakref.ref] = []
    for batch in batches:
        copied = dataclasses.replace(batch, frames=batch.frames.clone())
        pixels.append(weakref.ref(copied.frames.untyped_storage()))
        yield copied
        del copied
        assert sum(frames() is not None for frames in pixels) <= most_alive


@pytest.mark.parametrize("name", ["validation", "test", "temporal"])
def test_no_evaluation_keeps_the_pixels_of_its_split(tmp_path: Path, name: str) -> None:
    batches = [marked_batch(4, (), first) for first in range(0, 32, 4)]
    evaluation = evaluation_of(batches, name)
    task = CaptionTask(objective=tiny_network().config)
    if name == "validation":
        task.measure(dataclasses.replace(evaluation, batches=once(batches)))
    else:
        task.save_scores(dataclasses.replace(evaluation, batches=once(batches)), str(tmp_path))
    with pytest.raises(AssertionError):
        list(once(batches))


@pytest.mark.parametrize("name", ["test", "temporal"])
def test_the_pictures_that_a_report_shows_are_saved_and_no_others(tmp_path: Path, name: str) -> None:
    batches = [marked_batch(8, (), first) for first in range(0, 128, 8)]
    task, evaluation = CaptionTask(objective=tiny_network().config), evaluation_of(batches, name)
    task.save_scores(evaluation, str(tmp_path))
    saved = task.read_scores(name, evaluation.source, str(tmp_path))
    assert saved
    assert saved.examples
    assert 4 <= len(saved.examples.clips) <= 8 + 5 * 6
    assert all(int(frames.flat[0]) == column for column, frames in saved.examples.clips.items())
    facts = dict.fromkeys(("name", "date", "hardware", "commit", "config_hash", "manifest_hash"), "x")
    page = render_report(ReportData(**facts, **{name: saved.examples}))  # type: ignore[arg-type]
    assert page.count("--film:") <= len(saved.examples.clips)


def test_pictures_of_a_report_are_small_and_few() -> None:
    frames = torch.arange(16, dtype=torch.uint8)[None, :, None, None, None].expand(1, 16, 192, 288, 3)
    (small,) = thumbnails(frames)
    assert small.shape == (6, 96, 144, 3)
    assert small[:, 0, 0, 0].tolist() == [0, 3, 6, 9, 12, 15]
    (same,) = thumbnails(frames[:, :4, :8, :8])
    np.testing.assert_array_equal(same, frames[0, :4, :8, :8].numpy())


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
