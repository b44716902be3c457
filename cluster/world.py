"""The ranks of a run as a value. The only file that imports torch.distributed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward sums what every rank wants of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty((dist.get_world_size() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather(list(gathered.chunk(dist.get_world_size())), rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *wanted: Tensor) -> Tensor:
        total = wanted[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


@dataclass(frozen=True)
class World:
    """This process among `size` equal ones. A world of one needs no process group."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """(n, …) of each rank to (size·n, …) in rank order, differentiable; `n` must be the same everywhere."""
        return rows if self.size == 1 else _Gather.apply(rows)  # pyright: ignore[reportReturnType]

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one: how ranks agree to stop at the same step."""
        if self.size == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(votes)
        return votes.item() > 0

    def gather_objects(self, values: list[Any]) -> list[Any]:
        """The values of all ranks in one list, in rank order. They cross between our own processes only."""
        if self.size == 1:
            return list(values)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` with its gradients averaged over the ranks (DDP)."""
        if self.size == 1:
            return module
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=device_ids, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def broadcast(self, module: nn.Module) -> None:
        """Give every rank the parameters and buffers of the first."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)


def make_world(device: str | None = None) -> World:
    """The world of the process group that is up, or a world of one; CUDA by local rank where there is one."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return World(rank=rank, size=size, device=torch.device(device))
