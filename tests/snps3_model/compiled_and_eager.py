"""One step of a small network, eager and compiled as one graph: prints how far losses and gradients are apart.

A program of its own, since the shape checks of the tests do not compile; in double precision, since single precision
rounds a gradient by more than 1e-5 already.
"""

from __future__ import annotations

import copy
import json

import torch
from batches import random_batch, tiny_network
from torch import nn

from pipeline.records import IGNORED_LABEL
from pipeline.stream.transforms import normalise
from snps3_model.config import ObjectiveConfig
from snps3_model.objective import Pretraining

CANCELLED = ("self.key.bias", "similarity.3.bias")
"""Their gradient is 0 but for rounding."""


def step(called: nn.Module, network: Pretraining) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients."""
    batch = random_batch(6, empty=(2,))
    batch.__dict__["most_masked"] = int((batch.labels != IGNORED_LABEL).sum(1).max())
    losses = called(batch, normalise(batch.frames).double())
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def main() -> None:
    torch.set_num_threads(1)
    eager = tiny_network(ObjectiveConfig(num_hard_negatives=2, negative_spread=1.0), dtype=torch.float64)
    compiled = copy.deepcopy(eager)
    losses, gradients = step(eager, eager)
    compiled.compile(fullgraph=True)  # as `placement.compiled` does
    other_losses, other_gradients = step(compiled, compiled)
    kept = [name for name in gradients if not name.endswith(CANCELLED)]
    print(
        json.dumps(
            {
                "loss": max(abs(other_losses[name] / losses[name] - 1) for name in losses),
                "gradient": max(
                    ((other_gradients[name] - gradients[name]).abs().max() / gradients[name].abs().max()).item()
                    for name in kept
                ),
                "num_gradients": len(kept),
            }
        )
    )


if __name__ == "__main__":
    main()
