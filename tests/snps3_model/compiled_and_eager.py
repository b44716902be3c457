"""One step of a small network, eager and compiled as one graph: prints how far losses and gradients are apart.

A program of its own, since the shape checks of the tests do not compile; in double precision, since single precision
rounds a gradient by more than 1e-5 already.
"""

from __future__ import annotations

import copy
import json
import sys
import time

import torch
from batches import random_batch, tiny_network
from torch import nn
from torch._dynamo.utils import counters

from pipeline.records import IGNORED_LABEL
from pipeline.stream.transforms import normalise
from snps3_model.config import ObjectiveConfig
from snps3_model.objective import Pretraining

OBJECTIVES = {
    "aot_eager": ObjectiveConfig(num_hard_negatives=2, negative_spread=1.0),
    "inductor": ObjectiveConfig(gvtm_level2=0.0, masked_words_text=0.0, masked_words_cross=0.0, lvwm=0.0),
}
CANCELLED = ("self.key.bias", "similarity.3.bias")
"""Their gradient is 0 but for rounding."""


def step(called: nn.Module, network: Pretraining) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients."""
    batch = random_batch(6, empty=(2,))
    batch.__dict__["max_masked"] = int((batch.labels != IGNORED_LABEL).sum(1).max())
    losses = called(batch, normalise(batch.frames).double())
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def main(backend: str) -> None:
    """`aot_eager` traces forward and backward of all losses; `inductor` compiles kernels too, for the dual encoder."""
    torch.set_num_threads(1)
    eager = tiny_network(OBJECTIVES[backend], dtype=torch.float64)
    compiled = copy.deepcopy(eager)
    losses, gradients = step(eager, eager)
    compiled.compile(fullgraph=True, backend=backend)  # as `placement.compiled` does
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
                "num_graphs": counters["stats"]["unique_graphs"],
                "cpu_seconds": time.process_time(),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
