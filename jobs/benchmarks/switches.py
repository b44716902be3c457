"""Gain of each switch of a training step, and its effect on the results: `switches` of `python jobs/benchmark.py`.
A step of a small network with ResNet-50, on the GPU if there is one.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from jobs.benchmarks.step_memory import measured_bytes
from jobs.training.precision import set_float32_precision
from jobs.training.step_cost import MASK_ID, StepShape, full_batch
from pipeline.stream.transforms import normalise
from snps3_model.config import ModelConfig, ObjectiveConfig, VisualConfig
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

SWITCHES = {
    "none": "all at once, fp32, channels last as decoded",
    "bf16": "optim.precision=bf16",
    "tf32": "optim.precision=tf32, on GPUs only",
    "fused": "fused AdamW, the default on GPUs",
    "channels first": "frames turned around before the encoder",
    "checkpointed encoder": "model.visual.activation_checkpointing",
    "chunks": "placement.rows_at_once=4: gradients accumulate over chunks, losses see the whole batch",
    "compiled": "placement.compiled",
}
SHAPE = StepShape(
    num_clips=8, num_ranks=1, num_frames=2, size_px=96, num_tokens=16, num_words=3, num_masked=3, vocabulary_size=500
)
MODEL = ModelConfig(hidden=64, num_layers=3, num_heads=4, feed_forward=256, max_positions=64, dropout=0.0)


def switches(num_steps: int = 5, names: tuple[str, ...] = tuple(SWITCHES)) -> dict[str, Any]:
    """Return by switch the seconds (CPU seconds without a GPU) and peak bytes of a step over those without the switch,
    and the differences of losses and gradients."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = measure("none", device, num_steps)
    rows = {}
    for name in names:
        row = measure(name, device, num_steps)
        apart = (row["gradient"] - base["gradient"]).norm() / base["gradient"].norm()
        rows[name] = {
            "what": SWITCHES[name],
            "time_over_none": row["seconds"] / base["seconds"],
            "peak_over_none": row["peak_bytes"] / base["peak_bytes"],
            "loss_apart": abs(row["loss"] / base["loss"] - 1),
            "gradient_apart": apart.item(),
        }
    return {"device": device, "seconds_none": base["seconds"], "switches": rows}


def made_network(name: str, device: str) -> Pretraining:
    """Return the network of a switch, with the same weights for each."""
    torch.manual_seed(0)
    is_checkpointed = name == "checkpointed encoder"
    visual = VisualConfig(encoder="resnet50", frozen_batch_norm=True, activation_checkpointing=is_checkpointed)
    model = SNPS3(dataclasses.replace(MODEL, visual=visual), vocabulary_size=500, pad_id=0, separator_id=2)
    rows_at_once = 4 if name == "chunks" else None
    network = Pretraining(model, ObjectiveConfig(pairs="local"), mask_id=MASK_ID, rows_at_once=rows_at_once)
    return network.to(device).train()


def measure(name: str, device: str, num_steps: int) -> dict[str, Any]:
    """Return loss and gradient of the first step with a switch, and median time and peak of the later ones."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    network, is_bf16 = made_network(name, device), name == "bf16"
    set_float32_precision("tf32" if name == "tf32" else "fp32")
    noise = torch.randint(0, 256, (8, 2, 96, 96, 3), generator=torch.Generator().manual_seed(0))
    batch = dataclasses.replace(full_batch(SHAPE), frames=noise.to(torch.uint8)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True if name == "fused" else None)
    if name == "compiled":
        network.compile()
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds, losses, gradients = [], [], []
    for _ in range(num_steps + 1):
        start = clock()
        with torch.autocast(device, torch.bfloat16, enabled=is_bf16):
            frames = normalise(batch.frames)
            frames = frames.contiguous() if name == "channels first" else frames
            total = torch.stack(list(network(batch, frames).values())).sum()
        total.backward()
        if not gradients:
            gradients.append(flat_gradient(network))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total.item())
        seconds.append(clock() - start)
    if device == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated()
    else:
        peak_bytes = measured_bytes(network, SHAPE, "bf16" if is_bf16 else "fp32")
    result = {"seconds": statistics.median(seconds[1:]), "peak_bytes": peak_bytes}
    return result | {"loss": losses[0], "gradient": gradients[0]}


def flat_gradient(network: Pretraining) -> Tensor:
    """Return all gradients in one row, on the host."""
    return torch.cat([p.grad.float().flatten() for p in network.parameters() if p.grad is not None]).cpu()
