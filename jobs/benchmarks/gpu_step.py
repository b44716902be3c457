"""One bf16 training step of SNP-VST on this machine's GPU: time, clips per second, memory, share of its peak FLOP/s.

Batches double until memory is full. Without a GPU the same program runs once on the CPU at a small size, as a test.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cluster.machines import PEAK_TFLOPS
from jobs.benchmarks.step_time import SIZES
from pipeline.records import IGNORED_LABEL, Batch
from pipeline.stream.transforms import normalise
from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

VOCABULARY, PAD, SEP, MASK, NUM_TOKENS, NUM_MASKED, NUM_WORDS = 30_522, 0, 102, 103, 20, 3, 3


def gpu_step(
    frames: tuple[int, ...] = (1, 4, 16),
    first_batch: int = 8,
    largest_batch: int = 512,
    num_steps: int = 5,
    compiled: bool = False,
    rows_at_once: int | None = None,
    peak_tflops: float | None = None,
) -> dict[str, Any]:
    """Return seconds, clips/s, memory and share of peak FLOP/s of a step, by frames per clip and batch size."""
    if not torch.cuda.is_available():
        row = measure(SIZES["small"], "cpu", num_frames=1, num_clips=2, size_px=64)
        return {"device": "cpu", "note": "not measured: no GPU here; one small step shows that the program runs", **row}
    name = torch.cuda.get_device_name()
    peak = peak_tflops or next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
    options = {"num_steps": num_steps, "compiled": compiled, "rows_at_once": rows_at_once}
    result: dict[str, Any] = {"device": name, "peak_tflops": peak}
    for num_frames in frames:
        num_clips = first_batch
        while num_clips <= largest_batch:
            key = f"T{num_frames}/B{num_clips}"
            try:
                row = measure(SIZES["base"], "cuda", num_frames=num_frames, num_clips=num_clips, **options)
            except torch.OutOfMemoryError:
                result[key] = "out of memory"
                break
            finally:
                torch.cuda.empty_cache()
            result[key] = row | ({"share_of_peak": row["tflops_per_second"] / peak} if peak else {})
            print(f"{num_frames} frames, {num_clips} clips: {result[key]}", flush=True)
            num_clips *= 2
    return result


def measure(
    config: ModelConfig,
    device: str,
    *,
    num_frames: int,
    num_clips: int,
    size_px: int = 224,
    num_steps: int = 1,
    compiled: bool = False,
    rows_at_once: int | None = None,
) -> dict[str, Any]:
    """Return means over `num_steps` steps after two warm-up steps; torch counts the FLOPs of the executed operators."""
    torch.manual_seed(0)
    visual = VisualConfig(encoder="video_swin_small")
    config = dataclasses.replace(config, visual=visual)
    model = SNPS3(config, vocabulary_size=VOCABULARY, pad_id=PAD, separator_id=SEP)
    objective = ObjectiveConfig(num_hard_negatives=min(3, num_clips - 1))
    network = Pretraining(model, objective, mask_id=MASK, rows_at_once=rows_at_once).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device == "cuda")
    called = torch.compile(network) if compiled else network
    batch = random_batch(num_clips, num_frames, size_px).to(device)

    def step() -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            losses = called(batch, normalise(batch.frames))
            total = torch.stack(list(losses.values())).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.detach()

    step()
    with FlopCounterMode(display=False) as counter:
        loss = step()
    loss.item()  # waits for the device
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(num_steps):
        loss = step()
    last_loss = loss.item()
    seconds = (time.perf_counter() - start) / num_steps
    return {
        "seconds_per_step": seconds,
        "clips_per_second": num_clips / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "tflops_per_second": counter.get_total_flops() / seconds / 1e12,
        "loss": last_loss,
    }


def random_batch(num_clips: int, num_frames: int, size_px: int) -> Batch:
    """Return noise in the shape of a batch: 20 tokens per caption, three of them masked."""
    ids = torch.randint(1000, VOCABULARY, (num_clips, NUM_TOKENS))
    ids[:, 0], ids[:, -1] = 101, SEP
    masked, labels = ids.clone(), torch.full_like(ids, IGNORED_LABEL)
    masked[:, 1 : 1 + NUM_MASKED] = MASK
    labels[:, 1 : 1 + NUM_MASKED] = ids[:, 1 : 1 + NUM_MASKED]
    shape = (num_clips, num_frames, size_px, size_px)
    return Batch(
        clip_ids=torch.arange(num_clips),
        weight=torch.ones(num_clips),
        frames=torch.randint(0, 256, (*shape, 3)).to(torch.uint8),
        frame_pad_mask=torch.zeros(shape, dtype=torch.bool),
        token_ids=ids,
        masked_token_ids=masked,
        token_mask=torch.ones_like(ids, dtype=torch.bool),
        labels=labels,
        word_positions=torch.arange(1, 1 + NUM_WORDS).expand(num_clips, -1).clone(),
        max_masked=NUM_MASKED,
    )
