"""What an index needs of a model: ours, or a folder of CLIP or SigLIP, as its config.json says.

frames (N, T, S, S, 4) ── embed_frames ──► a unit vector per frame ─┐
texts ─────────────────── embed_texts ───► a unit vector ───────────┴─► dual scores by `temperature`
candidates ────────────── cross_encoder, ours alone ──────────────────► cross scores
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jobs.inference.model import Videos, load
from jobs.inference.public_dual import PublicDual, list_weights, load_public
from jobs.run import run_files
from jobs.run.config import DataConfig
from jobs.tasks.retrieval import Queries
from pipeline import storage
from pipeline.corpus.manifest import checksum

OWN_TYPES = (None, "snps3")
"""`model_type` in the config.json of a run, and of an exported folder."""
PUBLIC_FRAMES = 4
"""Frames per window that a public model sees, as many as in `tiny`."""
WIDEST = 16 / 9
"""Ratio of sides up to which a frame's short side is decoded at the size of the public tower, or larger. The tower's
own processor scales and crops every frame."""


class CrossEncoder(Protocol):
    """Scores pairs of texts and videos."""

    def match(self, texts: Queries, videos: Videos) -> Float[Tensor, "Q N"]: ...


class SearchModel(Protocol):
    """A model that an index is made with and answers by."""

    @property
    def data(self) -> DataConfig:
        """Settings with which it reads videos."""
        ...

    @property
    def temperature(self) -> float:
        """Temperature of dual scores."""
        ...

    @property
    def width(self) -> int:
        """D of the vectors."""
        ...

    @property
    def cross_encoder(self) -> CrossEncoder | None:
        """What re-ranks; None: nothing does."""
        ...

    def embed_frames(self, frames: np.ndarray) -> Videos:
        """Embed decoded videos, uint8 (N, T, S, S, 4) as `model.decode` returns them."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Queries:
        """Embed texts; too long ones are truncated at the end."""
        ...


@dataclass(frozen=True, kw_only=True)
class PublicModel:
    """A CLIP or SigLIP, which searches by dual scores alone."""

    dual: PublicDual
    data: DataConfig
    temperature: float
    width: int
    cross_encoder: None = None

    @classmethod
    def load(cls, folder: str, device: str = "cpu") -> PublicModel:
        """Load a folder as `load_public` does."""
        dual = load_public(folder, device)
        return cls(
            dual=dual,
            data=DataConfig(num_frames=PUBLIC_FRAMES, frame_size_px=math.ceil(WIDEST * dual.size_px)),
            temperature=float(torch.exp(-dual.network.logit_scale.detach())),
            width=dual.width,
        )

    def embed_frames(self, frames: np.ndarray) -> Videos:
        """Embed decoded videos, uint8 (N, T, S, S, 4). They have no tokens: nothing would read them."""
        pictures = itertools.chain.from_iterable(unpadded(clip) for clip in frames)
        vectors = self.dual.embed_pictures([*pictures]).view(*frames.shape[:2], -1)
        return Videos(tokens=vectors.new_empty(len(frames), 0, self.width), vectors=vectors)

    def embed_texts(self, texts: Sequence[str]) -> Queries:
        """Embed texts; too long ones are truncated at the end. They have no tokens either."""
        vectors = self.dual.embed_texts(texts)
        nothing = torch.empty(len(texts), 0, dtype=torch.long, device=vectors.device)
        return Queries(token_ids=nothing, token_mask=nothing.bool(), vectors=vectors)


def unpadded(clip: np.ndarray) -> np.ndarray:
    """Return a clip, uint8 (T, S, S, 4) with padding in the last channel, as uint8 (T, H, W, 3) without it."""
    is_real = ~clip[0, ..., 3].astype(bool)
    return clip[:, : int(is_real.any(1).sum()), : int(is_real.any(0).sum()), :3]


def is_public(folder: str) -> bool:
    """Return whether a folder is a model of others, by the `model_type` of its config.json."""
    path = f"{folder}/{run_files.CONFIG}"
    return storage.exists(path) and run_files.read_json(path).get("model_type") not in OWN_TYPES


def load_searcher(folder: str, device: str = "cpu") -> SearchModel:
    """Load the model in a folder. Raise as `model.load` and `load_public` do."""
    return PublicModel.load(folder, device) if is_public(folder) else load(folder, device)


def weights_of(folder: str) -> str:
    """Return the hash of a model's weights, 32 hex digits. Raise FileNotFoundError if there are none, ValueError for an
    incomplete public model."""
    if not is_public(folder):
        return run_files.weights_hash(folder)
    hashes = [checksum(storage.read_bytes(path)) for path in list_weights(folder)]
    return hashes[0] if len(hashes) == 1 else checksum(" ".join(hashes).encode())
