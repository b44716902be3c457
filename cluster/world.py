"""The ranks of a run as a value. Only this file imports torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward sums every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty((dist.get_world_size() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather(list(gathered.chunk(dist.get_world_size())), rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # autograd may share the gradient
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


@dataclass(frozen=True)
class World:
    """This process as one of `size` ranks. A world of size 1 needs no process group."""

    rank: int
    size: int
    device: torch.device
    votes: Any = None
    """A gloo process group for values on the host, so that no host waits for its GPU; None: the default group, on
    CPUs."""

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """Gather (n, …) of each rank to (size·n, …) in rank order, differentiably; `n` is the same on all ranks."""
        return rows if self.size == 1 else _Gather.apply(rows)  # pyright: ignore[reportReturnType]

    def highest(self, value: int) -> Callable[[], int]:
        """Start a reduction of all ranks' `value`; the returned function waits for it and returns the maximum, the same
        on every rank."""
        if self.size == 1:
            return lambda: value
        votes = torch.tensor([value])
        work = dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.votes, async_op=True)

        def answer() -> int:
            work.wait()  # pyright: ignore[reportOptionalMemberAccess]
            return int(votes.item())

        return answer

    def gather_objects(self, values: list[Any]) -> list[Any]:
        """Return the values of all ranks in one list, in rank order. They are pickled, which is safe between our own
        processes only."""
        if self.size == 1:
            return list(values)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, values, group=self.votes)
        return [value for part in parts for value in part]

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return `module` with the first rank's state and with gradients averaged over the ranks (DDP)."""
        if self.size == 1:
            return module
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=device_ids, forward_sync_buffers=False, gradient_as_bucket_view=True
        )


def make_world(device: str) -> World:
    """Return the world of the initialised process group, or a world of one, on `device`."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    is_host_apart = size > 1 and dist.get_backend() != "gloo"
    votes = dist.new_group(backend="gloo") if is_host_apart else None
    return World(rank=rank, size=size, device=torch.device(device), votes=votes)
