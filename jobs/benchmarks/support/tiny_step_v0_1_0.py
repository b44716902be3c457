"""Steps of v0.1.0's `tiny`, as in a rank of that version: run with its worktree on the path, whose modules have other
names. `jobs/benchmarks/tiny_step.py` measures the same for the present version."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import dataclasses
import itertools
import json
import sys

import pyarrow.parquet as pq
import torch
from pipeline.augmentation import draw_augmentation
from pipeline.loader import ClipSource, clip_rows, rejected_rows
from pipeline.significance import mine_significant_words
from pipeline.transforms import augment
from pipeline.words import train_wordpiece
from timed_steps import WARM_STEPS, timed

from jobs.presets import tiny
from jobs.tasks import CaptionTask, Language
from jobs.training import Clock, make_state, training_steps
from pipeline.records import Stage
from snps3_model.gather import local_gather


def measure(path, num_steps):
    """Return median seconds and mean CPU seconds of a step, and the first loss."""
    share, config = pq.read_table(path), tiny()
    config = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, num_steps=num_steps + WARM_STEPS, warmup_steps=50)
    )
    data = config.data
    source = ClipSource(
        manifest_path="",
        split="train",
        num_frames=data.num_frames,
        frame_size_px=data.frame_size_px,
        decoder="decord",
        seed=0,
        plan=None,
        batch=len(share),
    )
    captions = share["caption"].to_pylist()
    tokenizer = train_wordpiece(captions, 1000)
    table = mine_significant_words(captions, tokenizer.pieces)
    language = Language(tokenizer=tokenizer, table=table, config=config)
    torch.manual_seed(0)
    network = CaptionTask().network(language.network(), config, local_gather, 0, tokenizer.special.mask)
    state = make_state(network, network, config.optim)

    def batches():
        for step in itertools.count():
            rejected_rows(share, Stage.TRAIN)
            rows = clip_rows(share, source=source, epoch=step)
            drawn = draw_augmentation(rows, data.augmentation, seed=0, is_training=True)
            yield augment(language.batch(rows).to(torch.device("cpu")), drawn)

    return timed(training_steps(state, batches(), config, rank=0, clock=Clock()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
