"""Scores how well clips match their captions with a trained model, for `filter`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.inference.model import Model, load, padded
from jobs.run import run_files
from jobs.run.config import DataConfig
from pipeline import storage
from pipeline.decode.clip_frames import clip_frames
from pipeline.decode.config import Limits


@dataclass(frozen=True, kw_only=True)
class ClipMatcher:
    """A model that scores a clip of a manifest with its captions."""

    model: Model
    limits: Limits
    name: str
    """Hash of its weights."""

    @classmethod
    def load(cls, folder: str, limits: Limits) -> ClipMatcher:
        """Return the matcher of a run's folder, or of an exported model. Raise ValueError for any other folder."""
        return cls(model=load(folder), limits=limits, name=run_files.weights_hash(storage.absolute(folder)))

    def __call__(self, clip: Mapping[str, Any]) -> float:
        """Return the cosine of a clip and its worst matching caption, in [-1, 1]: a soft maximum over the clip's
        frames.

        Raise DecodeError for a clip that cannot be read.
        """
        data = self.model.data
        shown = shown_frames(clip, data, self.limits)
        videos, texts = self.model.embed_frames(shown[None]), self.model.embed_texts(clip["captions"])
        scores = self.model.dual_scores(texts, videos).numpy(force=True)
        return float(np.min(scores) - math.log(data.num_frames)) * self.model.temperature


def shown_frames(clip: Mapping[str, Any], data: DataConfig, limits: Limits) -> np.ndarray:
    """Return the frames of a clip in a row of a manifest, uint8 (T, S, S, 4) as `model.decode` returns them.

    Raise DecodeError for a clip that cannot be read.
    """
    frames = clip_frames(
        dict(clip),
        num_frames=data.num_frames,
        size_px=data.frame_size_px,
        limits=limits,
        sampling=data.sampling,
        decoder=data.decoder,
    )
    shown = padded(frames, data.frame_size_px)
    return shown.repeat(data.num_frames // len(shown), axis=0)  # repeat the only frame of an image
