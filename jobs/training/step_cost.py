"""Memory and FLOP of a step on a rank's device, counted without computing it.

The step runs on fake tensors, which have shapes but no values. A storage counts from the operator that allocates it
until its last tensor dies, as for an allocator. FLOP are those of `torch.utils.flop_counter`.
Not counted: the CUDA context, workspaces of cuDNN, fragmentation.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

from jobs.run.config import OptimConfig
from pipeline.records import IGNORED_LABEL, Batch
from pipeline.stream.transforms import normalise
from snps3_model.config import ModelConfig, ObjectiveConfig
from snps3_model.gather import Gather
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

MASK_ID = 3
NUM_MOMENTS = 2
"""State values that AdamW keeps per trained parameter."""


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """One rank's share of a step."""

    num_clips: int
    num_ranks: int
    num_frames: int
    size_px: int
    num_tokens: int
    """Of every caption: the maximum."""
    num_words: int
    """Words per caption that LVWM matches."""
    num_masked: int
    """Most masked tokens of a caption."""
    vocabulary_size: int
    rows_at_once: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Memory and FLOP of one rank's step."""

    weights_bytes: int
    """Weights, buffers and their average."""
    optimizer_bytes: int
    """Moments of AdamW, and the gradients."""
    activation_bytes: int
    """Peak of everything else: activations, batch, and temporaries of operators."""
    flop: int
    """Of the forward and the backward pass."""

    @property
    def peak_bytes(self) -> int:
        """Return the peak memory of the device."""
        return self.weights_bytes + self.optimizer_bytes + self.activation_bytes


class CostCounter(TorchDispatchMode):
    """Counts the FLOP of operators, and the bytes of live storages, current (`live_bytes`) and peak (`peak_bytes`)."""

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = self.flop = 0
        self.live: dict[int, weakref.ref] = {}
        for tensor in existing:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.live:
            return

        def on_free(_: Any, key: int = key, size: int = size) -> None:
            self.live.pop(key, None)
            self.live_bytes -= size

        self.live[key] = weakref.ref(storage, on_free)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.flop += flop_of(func, args, kwargs or {}, result)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.add(value)
        return result


def flop_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the FLOP that `FlopCounterMode` counts. That mode itself would keep tensors alive that checkpointing
    frees. It counts the weight gradient of a grouped convolution as if there were one group; here the gradient costs as
    much as the convolution."""
    packet = func._overloadpacket
    if packet is torch.ops.aten.convolution_backward:
        gradient, features, weight, is_transposed, is_asked = args[0], args[1], args[2], args[7], args[10]
        return sum(is_asked[:2]) * conv_flop_count(features.shape, weight.shape, gradient.shape, is_transposed)
    formula = flop_registry.get(packet)
    return formula(*args, **kwargs, out_val=result) if formula else 0


@functools.lru_cache(maxsize=32)
def step_cost(model: ModelConfig, objective: ObjectiveConfig, optim: OptimConfig, shape: StepShape) -> StepCost:
    """Count a step of the losses of `objective`. Takes seconds, whatever the size of the network."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # half a second

    with torch.device("meta"):  # no initial weights are drawn
        made = SNPS3(model, vocabulary_size=shape.vocabulary_size, pad_id=0, separator_id=2)
        network = Pretraining(
            made, objective, gather_of(shape.num_ranks), mask_id=MASK_ID, rows_at_once=shape.rows_at_once
        )
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = network.to_empty(device="cpu").train()
        live, flop = measure_step(network, full_batch(shape), is_bf16=optim.precision == "bf16")
    trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    return StepCost(
        weights_bytes=weights * (2 if optim.average_decay else 1),
        optimizer_bytes=(NUM_MOMENTS + 1) * trained,
        activation_bytes=max(live - weights - trained, 0),
        flop=flop,
    )


def measure_step(network: Pretraining, batch: Batch, *, is_bf16: bool) -> tuple[int, int]:
    """Run the forward and the backward pass; return the peak bytes and the FLOP."""
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    with CostCounter([*network.parameters(), *network.buffers(), *tensors]) as counter:
        step(network, batch, is_bf16=is_bf16).backward()
    return counter.peak_bytes, counter.flop


def step(network: nn.Module, batch: Batch, *, is_bf16: bool) -> Tensor:
    """Return the total loss of a step."""
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        losses = network(batch, normalise(batch.frames))
        return torch.stack(list(losses.values())).sum()


def gather_of(num_ranks: int) -> Gather:
    """Return a gather that repeats this rank's rows `num_ranks` times."""
    return lambda rows: rows if num_ranks == 1 else torch.cat([rows] * num_ranks)


def full_batch(shape: StepShape) -> Batch:
    """Return a batch in which every caption has all its tokens."""
    ids = torch.full((shape.num_clips, shape.num_tokens), MASK_ID + 1)
    labels = torch.full_like(ids, IGNORED_LABEL)
    labels[:, : shape.num_masked] = MASK_ID + 1
    pixels = (shape.num_clips, shape.num_frames, shape.size_px, shape.size_px)
    return Batch(
        clip_ids=torch.arange(shape.num_clips),
        weight=torch.ones(shape.num_clips),
        frames=torch.zeros(*pixels, 3, dtype=torch.uint8),
        frame_pad_mask=torch.zeros(pixels, dtype=torch.bool),
        token_ids=ids,
        masked_token_ids=ids.clone(),
        token_mask=torch.ones_like(ids, dtype=torch.bool),
        labels=labels,
        word_positions=torch.zeros(shape.num_clips, shape.num_words, dtype=torch.int64),
        max_masked=shape.num_masked,
        max_tokens=shape.num_tokens,
    )
