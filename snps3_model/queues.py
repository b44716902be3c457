"""MoCo for GVTM level 1 (paper's ℒ3, published): momentum encoders, and queues of their vectors.

model ──momentum──► momentum encoders ─ no gradient ─► keys of this batch ──after the loss──► queues
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from snps3_model.gather import Gather, local_gather
from snps3_model.loss_table import DUAL, PARTS
from snps3_model.snps3 import SNPS3

End = Literal["circular", "shifted"]
"""See ObjectiveConfig.queue_end."""
NOT_DUAL = (PARTS - DUAL - {"text_pooler", "cross_network"}) | {"separate_cross"}
"""Parts of `SNPS3` that its dual vectors do not depend on; the cross network is one if it is separate."""


@dataclass(frozen=True)
class Keys:
    """Unit vectors of this batch from the momentum encoders."""

    text: Float[Tensor, "b D"]
    video: Float[Tensor, "b T D"]


class MomentumQueues(nn.Module):
    """Momentum encoders, and two queues that start as random unit vectors. All of it is saved with the network.

    The momentum encoders run without dropout: the published ones had it on (fault B19). Nothing here has a gradient.
    """

    text: Tensor
    video: Tensor
    text_next: Tensor
    video_next: Tensor

    def __init__(self, model: SNPS3, *, length: int, momentum: float, end: End = "circular") -> None:
        super().__init__()
        self.momentum = momentum
        self.end: End = end
        self.encoders = dual_encoders(model)
        for name in ("text", "video"):
            self.register_buffer(name, F.normalize(torch.randn(length, model.config.hidden), dim=1))
            self.register_buffer(f"{name}_next", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> MomentumQueues:
        super().train(mode)
        self.encoders.eval()
        return self

    @torch.no_grad()
    def follow(self, model: SNPS3) -> None:
        """Update the momentum encoders towards `model`: m · slow + (1 − m) · fast."""
        move_towards(dict(self.encoders.named_parameters()), dict(model.named_parameters()), self.momentum)
        fast_buffers = dict(model.named_buffers())
        for name, buffer in self.encoders.named_buffers():
            buffer.copy_(fast_buffers[name])

    @torch.no_grad()
    def keys(
        self,
        frames: Float[Tensor, "b T 3 H W"],
        pad_mask: Bool[Tensor, "b T H W"],
        token_ids: Int64[Tensor, "b L"],
        token_mask: Bool[Tensor, "b L"],
    ) -> Keys:
        """Return the momentum encoders' vectors of a batch."""
        video = self.encoders.encode_video(frames, pad_mask)
        return Keys(text=self.encoders.encode_text(token_ids, token_mask).vector, video=video.vectors)

    @torch.no_grad()
    def add(self, keys: Keys, weight: Float[Tensor, " b"], gather: Gather = local_gather) -> None:
        """Write the keys of all ranks' rows of weight 1 to the next positions of the queues."""
        frames = weight[:, None].expand(keys.video.shape[:2])
        is_text, is_video = gather(weight) > 0.5, gather(frames.contiguous()).flatten() > 0.5
        text, video = gather(keys.text), gather(keys.video).flatten(0, 1)
        # new tensors instead of in-place writes: the backward pass still needs the queues that the loss read
        self.text, self.text_next = enqueued(self.text, self.text_next, text, is_text, self.end)
        self.video, self.video_next = enqueued(self.video, self.video_next, video, is_video, self.end)


@torch.no_grad()
def move_towards(slow: Mapping[str, Tensor], fast: Mapping[str, Tensor], momentum: float) -> None:
    """Update each tensor of `slow` in place to m · slow + (1 − m) · fast, by name."""
    for name, tensor in slow.items():
        tensor.mul_(momentum).add_(fast[name], alpha=1 - momentum)


def dual_encoders(model: SNPS3) -> SNPS3:
    """Return a copy of the parts of `model` that its dual vectors depend on, frozen and in evaluation mode."""
    copied = copy.deepcopy(model).requires_grad_(False)
    for name in NOT_DUAL:
        delattr(copied, name)
    return copied.eval()


def enqueued(
    queue: Float[Tensor, "K D"],
    position: Int64[Tensor, ""],
    keys: Float[Tensor, "m D"],
    is_usable: Bool[Tensor, " m"],
    end: End,
) -> tuple[Float[Tensor, "K D"], Int64[Tensor, ""]]:
    """Return the queue with the usable keys written to it, in order from `position` on, and the position after them.

    At the end of the queue `circular` wraps around; `shifted` is the published rule, which moves the block back over
    the newest keys instead (§8.5). A batch with a NaN or infinity is skipped whole. The host waits for no device.
    """
    K, m = len(queue), len(keys)
    if m > K:
        raise ValueError(
            f"a queue of {K} cannot take the {m} keys of one step; raise objective.queue_length to at least {m}"
        )
    is_usable = is_usable & keys.isfinite().all()
    count = is_usable.sum()
    first = (~is_usable).long().argsort(stable=True)  # usable keys first, in their order
    start = position if end == "circular" else (position + count).clamp(max=K) - count
    places = (start + torch.arange(m, device=queue.device)) % K
    content = torch.where(is_usable[first][:, None], keys[first], queue[places])
    return queue.index_copy(0, places, content), (start + count) % K
