"""A moving average of a run's weights, which is evaluated and saved instead of the last weights.

`torch.optim.swa_utils.AveragedModel` would need a deep copy of the network (hooks, gathers and queues included), has
names with a prefix `module.` in its checkpoint and counts updates in a tensor on the device; its
`get_ema_multi_avg_fn` has one fixed decay, without the faster start below. Checkpoints and numbers would change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average over steps of weights and normalisation statistics; queues are kept as they are."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in network.state_dict().items()
        }
        self.averaged = {
            name for name, value in self.values.items() if value.is_floating_point() and not name.startswith("queues.")
        }

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update with the weights after `step` steps. Early updates decay faster, to forget the random start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            if name in self.averaged:
                self.values[name].lerp_(tensor, 1 - decay)
            else:
                self.values[name].copy_(tensor)

    def load(self, values: dict[str, Tensor]) -> None:
        """Resume from saved averages. KeyError for a tensor that is missing."""
        for name, value in self.values.items():
            value.copy_(values[name])


@contextmanager
def averaged(network: nn.Module, average: WeightAverage | None) -> Iterator[None]:
    """Replace the weights of `network` by the averages within this context; do nothing without an average."""
    if average is None:
        yield
        return
    weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(average.values)
    try:
        yield
    finally:
        network.load_state_dict(weights)
