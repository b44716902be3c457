"""In which numbers a rank computes: `optim.precision`, in training and in evaluation."""

from __future__ import annotations

import torch

from jobs.run.config import Precision


def set_float32_precision(precision: Precision) -> None:
    """Let GPUs use TF32 in float32 matrix products and convolutions if `precision` is "tf32", and only then.

    cuDNN uses it for convolutions by default. With "bf16", operators that autocast leaves in float32 stay exact.
    """
    is_rounded = precision == "tf32"
    torch.set_float32_matmul_precision("high" if is_rounded else "highest")
    torch.backends.cudnn.allow_tf32 = is_rounded


def is_evaluated_in_bf16(precision: Precision, device: torch.device) -> bool:
    """Return whether an evaluation runs in bfloat16 too: on a GPU, where all pairs in float32 would take hours."""
    return precision == "bf16" and device.type == "cuda"


def evaluation_autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the autocast context of an evaluation."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_evaluated_in_bf16(precision, device))
