"""One training step in the published implementation and in ours: same mathematics, weights and batch, fp32, on CPU.

| | published | ours |
|---|---|---|
| captions | padded to 30 tokens | in groups, as long as the longest of a group |
| attention | maps computed and kept | scaled dot product |
| text passes | raw for ℒ3, raw again for LVWM, masked | raw and masked, together |
| GVTM level 2 | five captions, all clips; each pair embedded | all pairs, embedded before; last layer for [CLS] |
| word heads | every position | masked positions |

Each implementation runs in a separate process, for its own peak memory; the two alternate.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.benchmarks.support.fixtures import data_folder, json_of_child
from jobs.benchmarks.tiny_step import tiny_speedup
from jobs.run.config import Placement
from pipeline.records import IGNORED_LABEL, Batch, ClipRows
from pipeline.stream.collate import collate
from pipeline.stream.transforms import normalise
from pipeline.text.config import MaskingConfig
from pipeline.text.significance import SignificantWords
from pipeline.text.tokenizer import Tokenizer
from snps3_model import losses
from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig
from snps3_model.gather import local_gather
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3, additive_mask

Way = Literal["published", "ours", "hard"]
NUM_WORDS, MAX_TOKENS, CAPTIONS_AT_ONCE, NUM_HARD = 3, 30, 5, 3
LEAST = {"r50": 1.5, "vst4": 1.15, "no_visual": 2.0}
"""Required speed-up, by row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    visual: VisualConfig | None
    """None: no visual encoder; frames have random tokens."""
    batch: int
    num_frames: int
    size_px: int = 224


ROWS = {
    "no_visual": Row(visual=None, batch=16, num_frames=1),
    "r50": Row(visual=VisualConfig(encoder="resnet50", frozen_batch_norm=True), batch=8, num_frames=1),
    "vst4": Row(visual=VisualConfig(encoder="video_swin_small"), batch=4, num_frames=4),
}
SIZES = {
    "base": ModelConfig(hidden=768, num_layers=12, num_heads=12, feed_forward=3072, max_positions=512, dropout=0.0),
    "small": ModelConfig(hidden=32, num_layers=2, num_heads=2, feed_forward=64, max_positions=64, dropout=0.0),
}
"""`small` only tests that the benchmark runs; its times are meaningless."""


class GivenTokens(nn.Module):
    """Replaces a visual encoder: one cell per frame, with random channels that have a gradient."""

    def __init__(self, row: Row, hidden: int) -> None:
        super().__init__()
        self.cells = nn.Parameter(torch.randn(row.batch, row.num_frames, hidden, 1, 1))

    def forward(self, frames: Tensor, pad_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.cells, torch.zeros(self.cells.shape[0], self.cells.shape[1], 1, 1, dtype=torch.bool)


class PublishedWay(nn.Module):
    """The losses of `Pretraining` with exact pairs, computed as the published code computes them."""

    def __init__(self, model: SNPS3, config: ObjectiveConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        model.bert.set_attn_implementation("eager")

    def encode(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states and unit vector of the text pass; sum its attention maps to the importance of words."""
        hidden, received = self.model.bert.embeddings(input_ids=ids), []
        additive = additive_mask(mask, hidden.dtype)
        for layer in self.model.bert.encoder.layer:
            attended, attention = cast(Any, layer).attention(hidden, additive)
            hidden = cast(Any, layer).feed_forward_chunk(attended)
            received.append(attention)
        torch.stack(received).mean(2).sum((0, 2)).detach()
        return hidden, F.normalize(self.model.text_pooler(hidden), dim=-1)

    def forward(self, batch: Batch, frames: Tensor) -> dict[str, Tensor]:
        model = self.model
        video = model.encode_video(frames, batch.frame_pad_mask)
        rows = torch.arange(len(batch.weight))[:, None]
        _, vector = self.encode(batch.token_ids, batch.token_mask)
        masked, _ = self.encode(batch.masked_token_ids, batch.token_mask)
        words = self.encode(batch.token_ids, batch.token_mask)[0][rows, batch.word_positions]
        fused = model.fuse(batch.masked_token_ids, batch.token_mask, video.tokens)
        return {
            "gvtm_level1": losses.gvtm_level1(
                vector, video.vectors, batch.weight, temperature=self.config.temperature, gather=local_gather
            ),
            "gvtm_level2": losses.mil_nce(self.all_pairs(batch, video.tokens), batch.weight),
            "lvwm": losses.lvwm(words, video.vectors, batch.weight, gather=local_gather),
            "masked_words_text": self.words(masked, batch.labels, model.text_words),
            "masked_words_cross": self.words(fused.text_hidden, batch.labels, model.cross_words),
        }

    def words(self, hidden: Tensor, labels: Tensor, head: nn.Module) -> Tensor:
        """Return the cross entropy with logits at every position."""
        logits = head(hidden.flatten(0, 1), self.model.word_embeddings)
        return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL)

    def all_pairs(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Return matching scores, computed for five captions with all clips at a time."""
        scores = []
        parts = (batch.token_ids.split(CAPTIONS_AT_ONCE), batch.token_mask.split(CAPTIONS_AT_ONCE))
        for ids, mask in zip(*parts, strict=True):
            captions, masks = (part.repeat_interleave(len(tokens), 0) for part in (ids, mask))
            fused = self.model.fuse(captions, masks, tokens.repeat(len(ids), 1, 1))
            scores.append(self.model.match(fused.pooled).view(len(ids), len(tokens)))
        return torch.cat(scores)


def first_captions(data: Path, row: Row, way: Way) -> Batch:
    """Return a batch of the first captions of `data`/coco_captions_25k.jsonl, masked by MSSM, and of random frames."""
    lines = (data / "coco_captions_25k.jsonl").read_text().splitlines()[: row.batch]
    tokenizer = Tokenizer.load(data / "bert-base-uncased-vocab.txt")
    rng = np.random.default_rng(0)
    shape = (row.batch, row.num_frames, row.size_px, row.size_px)
    rows = ClipRows(
        clip_ids=np.arange(row.batch),
        weight=np.ones(row.batch, dtype=np.float32),
        epoch=0,
        captions=[json.loads(line)["caption"] for line in lines],
        frames=rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        frame_pad_mask=np.zeros(shape, dtype=bool),
        num_frames=np.full(row.batch, row.num_frames),
    )
    return collate(
        rows,
        tokenizer=tokenizer,
        table=SignificantWords.load(data / "significant_words_webvid.json"),
        masking=MaskingConfig(),
        num_words=NUM_WORDS,
        seed=0,
        max_tokens=MAX_TOKENS,
        pad_to=MAX_TOKENS if way == "published" else None,
        max_length_groups=1 if way == "published" else Placement.length_groups,
    )


def built(way: Way, row: Row, size: str) -> nn.Module:
    """Return the network of an implementation, with the same weights for both."""
    torch.manual_seed(0)
    config = SIZES[size]
    visual = row.visual or VisualConfig(channels=(4, 4))
    model = SNPS3(dataclasses.replace(config, visual=visual), vocabulary_size=30_522, pad_id=0, separator_id=102)
    if row.visual is None:
        model.visual = GivenTokens(row, config.hidden)  # pyright: ignore[reportAttributeAccessIssue]
    if way == "published":
        return PublishedWay(model, ObjectiveConfig())
    return Pretraining(model, ObjectiveConfig(num_hard_negatives=NUM_HARD if way == "hard" else None))


def measure(way: Way, row: Row, *, data: Path, size: str, num_steps: int) -> dict[str, Any]:
    """Return losses, seconds of each step after a warm-up step, and the peak memory of this process."""
    batch = first_captions(data, row, way)
    network, frames = built(way, row, size).train(), normalise(batch.frames)
    seconds, result = [], {}
    for _ in range(num_steps + 1):
        start = time.perf_counter()
        network.zero_grad(set_to_none=True)
        result = network(batch, frames)
        torch.stack(list(result.values())).sum().backward()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"losses": {k: v.item() for k, v in result.items()}, "seconds": seconds[1:], "peak_bytes": peak}


def step(
    rows: tuple[str, ...] = tuple(ROWS),
    data: str | None = None,
    size: Literal["base", "small"] = "base",
    num_steps: int = 3,
    num_rounds: int = 2,
    threads: int | None = None,
    earlier: str | None = None,
) -> dict[str, Any]:
    """Return speed-up and memory of a training step; `data`: by default the folder SNPS3_TEST_DATA.

    `earlier`: a worktree of v0.1.0; adds the speed-up of its `tiny` in today's trainer.
    """
    folder, threads = data_folder(data, "the first captions"), threads or os.cpu_count()
    if unknown := [name for name in rows if name not in ROWS]:
        raise ValueError(f"there is no row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    result: dict[str, Any] = {"size": size, "threads": threads}
    for name in rows:
        runs: dict[str, list[dict[str, Any]]] = {"published": [], "ours": [], "hard": []}
        for _ in range(num_rounds):
            for way in runs:  # the environment is that of a training worker
                arguments = (way, name, folder, size, num_steps, threads)
                run = json_of_child("jobs.benchmarks.step_time", *arguments, environment=WORKER_ENVIRONMENT)
                runs[way].append(run)
        result |= compared(name, runs)
    return result | (tiny_speedup(earlier) if earlier else {})


def compared(name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the figures of a row. Raise AssertionError if the implementations compute different losses."""
    published, ours = runs["published"][0]["losses"], runs["ours"][0]["losses"]
    for loss, value in published.items():
        if abs(value - ours[loss]) > 1e-4 * abs(value) + 1e-5:
            raise AssertionError(f"{name}: {loss} is {ours[loss]} and {value} the published way")
    seconds = {way: statistics.median(s for run in of_way for s in run["seconds"]) for way, of_way in runs.items()}
    peaks = {way: max(run["peak_bytes"] for run in of_way) for way, of_way in runs.items()}
    return {
        f"speedup_{name}": seconds["published"] / seconds["ours"],
        f"speedup_{name}_hard_negatives": seconds["published"] / seconds["hard"],
        **{f"seconds_{name}_{way}": value for way, value in seconds.items()},
        **{f"peak_gib_{name}_{way}": value / 2**30 for way, value in peaks.items()},
        f"asked_{name}": LEAST[name],
    }


if __name__ == "__main__":
    way, row, folder, size, num_steps, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(measure(cast(Way, way), ROWS[row], data=Path(folder), size=size, num_steps=int(num_steps))))
