"""In which numbers a rank computes: `optim.precision`, in training and in evaluation."""

from __future__ import annotations

import torch

from jobs.run.config import Precision


def set_float32_precision(precision: Precision) -> None:
    """Let GPUs round the factors of float32 matrices and convolutions to TF32 where `precision` says so, not elsewhere.

    cuDNN would round those of convolutions by default. What autocast leaves in float32 stays exact.
    """
    is_rounded = precision == "tf32"
    torch.set_float32_matmul_precision("high" if is_rounded else "highest")
    torch.backends.cudnn.allow_tf32 = is_rounded


def is_evaluated_in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether an evaluation runs in bfloat16 too: on a GPU, where all pairs of a split in float32 would take hours."""
    return precision == "bf16" and device.type == "cuda"


def evaluation_autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context in which a rank evaluates."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_evaluated_in_bf16(precision, device))
