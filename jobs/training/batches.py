"""This rank's batches: from the tables that Ray Data delivers to tensors on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cluster.run import Runtime
from jobs.tasks.network import Network
from jobs.tasks.task import Evaluation
from jobs.training.job import Job
from jobs.training.step import Clock
from pipeline.records import Batch, Rejected, Stage
from pipeline.stream.augmentation import draw_augmentation
from pipeline.stream.loader import clip_rows, in_plan_order, rejected_rows, segments
from pipeline.stream.recycling import RecycledArrays
from pipeline.stream.transforms import augment
from pipeline.text.config import MaskingConfig

EVALUATION_MASKING = MaskingConfig(top_k=None, min_masked=1)
"""Masking of evaluation captions: the same for all runs, whatever they train with, so that runs are comparable."""

Item = TypeVar("Item")


class RankBatches:
    """The batches of one rank, and counts of the clips that it has read since its worker group started."""

    def __init__(self, job: Job, runtime: Runtime, clock: Clock, alive: Callable[[], None] = lambda: None) -> None:
        self.job, self.runtime, self.world, self.clock, self.alive = job, runtime, runtime.world, clock, alive
        self.rejected: list[Rejected] = []
        self.num_seen = self.num_retries = 0
        self.allocate = pinned_array if self.world.device.type == "cuda" else RecycledArrays()

    def training(self, start_step: int) -> Iterator[Batch]:
        """Yield the batches of the run from `start_step` to its end, over all segments of the data."""
        for name, start, _ in self.segments(start_step):
            yield from self.read("train", self._tables(name, "train"), max(start, start_step))

    def evaluation(self, name: str) -> Iterator[Batch]:
        """Yield the batches of one pass over an evaluation split."""
        return self.read(name, self._tables(name, name), 0)

    def segments(self, start_step: int) -> list[tuple[str, int, int]]:
        """Return (name, start, stop) of each training dataset that has steps at or after `start_step`."""
        num_steps, max_ranks = self.job.optim.num_steps, self.job.placement.most_workers
        return [part for part in segments(self.job.sources["train"], num_steps, max_ranks) if part[2] > start_step]

    def dataset(self, name: str, network: Network, batches: Iterable[Batch] | None = None) -> Evaluation:
        """Return the evaluation of a split. Pass `batches` if they have been read already."""
        return Evaluation(
            name=name,
            batches=self.evaluation(name) if batches is None else batches,
            source=self.job.sources[name],
            network=network,
            text=self.job.text,
            world=self.world,
            alive=self.alive,
        )

    def _tables(self, dataset: str, name: str) -> Iterator[pa.Table]:
        return self.runtime.tables(dataset, self.job.sources[name].share(self.world.size))

    def read(self, name: str, tables: Iterator[pa.Table], start_step: int) -> Iterator[Batch]:
        """Yield this rank's batches of the dataset `name` from `start_step` on, one per step, on its device.

        A thread prepares the next batch and copies it to the device meanwhile. Clips are counted when their batch is
        yielded, not when it is prefetched.
        """
        source, stage = self.job.sources[name], Stage.TRAIN if name == "train" else Stage.EVALUATE
        shares = in_plan_order(
            tables,
            start_step=start_step,
            rank=self.world.rank,
            num_ranks=self.world.size,
            share=source.share(self.world.size),
        )
        transfer = Transfer(self.world.device)
        batches = (
            (
                tally(table, stage),
                transfer.send(lambda table=table, step=step: self.make_batch(name, table, step)),
            )
            for step, table in enumerate(shares, start_step)
        )
        for (rejected, num_seen, num_retries), sent in prefetch(batches):
            self.alive()
            self.rejected += rejected
            self.num_seen += num_seen
            self.num_retries += num_retries
            yield transfer.receive(*sent)

    def make_batch(self, name: str, table: pa.Table, step: int) -> Batch:
        """Return the batch of this rank's share of a step, on its device."""
        job, source, device, is_training = self.job, self.job.sources[name], self.world.device, name == "train"
        with self.clock("plan"):
            epoch = source.planned(step).epoch
        rows = clip_rows(table, source=source, epoch=epoch, allocate=self.allocate)
        batch = job.task.batch(rows, job.text) if is_training else job.text.batch(rows, EVALUATION_MASKING)
        if device.type != "cpu":
            batch = dataclasses.replace(batch, max_tokens=max(job.text.text.max_tokens, batch.token_ids.shape[1]))
        drawn = draw_augmentation(rows, job.data.augmentation, seed=job.seed, is_training=is_training)
        return augment(batch.to(device), drawn)


def tally(table: pa.Table, stage: Stage) -> tuple[list[Rejected], int, int]:
    """Return the rejected clips of a rank's share, its number of clips, and its number of storage retries."""
    num_seen, num_retries = (table["clip_id"].to_numpy() >= 0).sum(), table["num_retries"].to_numpy().sum()
    return rejected_rows(table, stage), int(num_seen), int(num_retries)


class Transfer:
    """Copies batches to a device. On a GPU, a side stream copies and augments them while the compute stream runs the
    steps."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, make: Callable[[], Batch]) -> tuple[Batch, torch.Event | torch.cuda.Event | None]:
        """Return the batch of `make`, and the event after which it is on the device. Runs in the prefetch thread."""
        with torch.cuda.stream(self.stream):  # also selects the device, which is per thread
            return make(), self.stream.record_event() if self.stream else None

    def receive(self, batch: Batch, event: torch.Event | torch.cuda.Event | None) -> Batch:
        """Return `batch` after making the compute stream, not the host, wait for it."""
        if event:
            steps = torch.cuda.current_stream(batch.frames.device)
            steps.wait_event(event)
            for tensor in batch.tensors():  # or the allocator reuses its memory before the steps have read it
                tensor.record_stream(steps)
        return batch


def pinned_array(shape: tuple[int, ...], dtype: type[np.uint8]) -> NDArray[np.uint8]:
    """Return an array in pinned memory, from which a GPU copies asynchronously, and which torch recycles."""
    del dtype
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yield `items`, and compute the next one in a thread meanwhile. Its exceptions are raised here."""
    pool, end = ThreadPoolExecutor(1, "prefetch"), object()
    try:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield item  # pyright: ignore[reportReturnType]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
