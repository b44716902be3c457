"""A trained model in a few lines: videos and texts in, vectors and matching scores out.

from snps3 import load

model = load("snps3-tiny")                         # the released model; or the folder of a run
videos = model.embed_videos(["a.mp4", "b.mp4"])
texts = model.embed_texts(["a red ring rises", "a dog runs"])
print(model.dual_scores(texts, videos))          # (2 texts, 2 videos), by vectors
print(model.match(texts, videos))                # the same pairs by the cross encoder
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import huggingface_hub
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cluster.world import World
from jobs import ROOT
from jobs.run import run_files
from jobs.run.config import DataConfig
from jobs.run.run_identity import config_of
from jobs.tasks import retrieval
from jobs.tasks.network import build_model
from jobs.tasks.retrieval import Queries
from jobs.tasks.text import TextProcessor
from jobs.training.checkpoints import read_weights
from pipeline import storage
from pipeline.corpus.fetching import fetch
from pipeline.corpus.media import kind_of
from pipeline.decode.codec import decode_frames, letterbox
from pipeline.decode.config import Limits
from pipeline.decode.formats import kind_by_bytes
from pipeline.decode.isolation import isolated
from pipeline.decode.windows import WindowSettings, decode_windows
from pipeline.records import ClipRows, DecodeError, Kind, Reason, Stored
from pipeline.stream.augmentation import draw_augmentation
from pipeline.stream.transforms import augment, normalise
from snps3_model import snps3
from snps3_model.loading import format_names, is_hub_name, load_earlier_run
from snps3_model.lora import without_updates
from snps3_model.objective import LEAST_LOG_TEMPERATURE
from snps3_model.snps3 import SNPS3

RELEASED = ROOT / "jobs" / "inference" / "released"
"""Folder of the models that ship with the package (jobs/inference/release.py)."""
TINY = "snps3-tiny"
"""The released model of the embedded corpus."""


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Embedded videos."""

    tokens: Float[Tensor, "N S D"]
    """For the cross encoder."""
    vectors: Float[Tensor, "N T D"]
    """A unit vector per frame, for the dual encoder."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network, and what it needs to read videos and texts."""

    network: SNPS3
    text: TextProcessor
    data: DataConfig
    """Settings with which the run read its videos."""
    temperature: float

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.network.word_embeddings.device

    @property
    def width(self) -> int:
        """D of the vectors."""
        return self.network.config.hidden

    @property
    def cross_encoder(self) -> Model:
        """What re-ranks the windows that a search found: the same network."""
        return self

    def embed_videos(self, paths: Sequence[str]) -> Videos:
        """Embed videos or images, with as many frames as in training. Raise DecodeError for the first that cannot be
        read."""
        return self.embed_frames(np.stack([decode(path, self.data) for path in paths]))

    @torch.no_grad()
    def embed_frames(self, frames: np.ndarray) -> Videos:
        """Embed decoded videos, uint8 (N, T, S, S, 4) as `decode` returns them."""
        count = len(frames)
        rows = ClipRows(
            clip_ids=np.arange(count),
            weight=np.ones(count, np.float32),
            epoch=0,
            captions=[""] * count,
            frames=np.ascontiguousarray(frames[..., :3]),
            frame_pad_mask=frames[..., 3].astype(bool),
            num_frames=np.full(count, frames.shape[1]),
        )
        drawn = draw_augmentation(rows, self.data.augmentation, seed=0, is_training=False)
        batch = augment(self.text.batch(rows).to(self.device), drawn)
        video = self.network.encode_video(normalise(batch.frames), batch.frame_pad_mask)
        return Videos(tokens=video.tokens, vectors=video.vectors)

    def embed_texts(self, texts: Sequence[str]) -> Queries:
        """Embed texts; too long ones are truncated at the end."""
        ids, mask = (part.to(self.device) for part in self.text.tokens(texts))
        return retrieval.encode_texts(self.network, ids, mask, World(rank=0, size=1, device=self.device))

    def dual_scores(self, texts: Queries, videos: Videos) -> Float[Tensor, "Q N"]:
        """Return the dual encoder's score of each text with each video."""
        return snps3.dual_scores(texts.vectors, videos.vectors, self.temperature)

    def match(self, texts: Queries, videos: Videos) -> Float[Tensor, "Q N"]:
        """Return the cross encoder's score of each text with each video."""
        num_texts, num_videos = len(texts.vectors), len(videos.vectors)
        text, clip = (part.ravel() for part in np.indices((num_texts, num_videos)))
        return retrieval.cross_scores(self.network, texts, videos.tokens, text, clip).view(num_texts, num_videos)


def decode(path: str, data: DataConfig, limits: Limits | None = None) -> np.ndarray:
    """Return the middle frames of a video, uint8 (T, S, S, 4): RGB, and 1 where a pixel is padding. Raise DecodeError
    for a file that cannot be read.

    A separate process decodes it, within `limits`, since an untrusted file may crash or hang the decoder.
    """
    kind = kind_of(path)
    if kind is None:
        raise DecodeError(Reason.UNREADABLE, f"{path} is neither a video nor an image by its name")
    return decode_media(fetch(path), kind, data, limits)


def decode_media(media: Stored, kind: Kind, data: DataConfig, limits: Limits | None = None) -> np.ndarray:
    """Decode the bytes of a video or an image as `decode` does."""
    decoded = isolated(
        decode_frames,
        media,
        limits=limits or Limits(),
        kind=kind,
        num_frames=data.num_frames if kind == Kind.VIDEO else 1,
        size_px=data.frame_size_px,
        sampling=data.sampling,
        decoder=data.decoder,
    )
    frames = padded(decoded, data.frame_size_px)
    return frames if kind == Kind.VIDEO else frames.repeat(data.num_frames, axis=0)


def decode_unnamed(media: bytes, data: DataConfig) -> np.ndarray:
    """Detect the kind of `media` from its bytes and decode it as `decode` does. Raise DecodeError if it is neither a
    picture nor a video."""
    if (kind := kind_by_bytes(media)) is None:
        raise DecodeError(Reason.UNREADABLE, "it is neither a picture nor a video of a kind that is read")
    return decode_media(media, kind, data)


def windows(
    path: str, data: DataConfig, limits: Limits, window_seconds: float | None, stride_seconds: float
) -> Iterator[tuple[list[tuple[float, float | None]], np.ndarray]]:
    """Yield the windows of a video in batches: their (start, end) in seconds, and uint8 (W, T, S, S, 4), where each
    window is like a whole video from `decode`.

    An image is one window without an end. Raise DecodeError as `decode` does.
    """
    if kind_of(path) == Kind.IMAGE:
        yield [(0.0, None)], decode(path, data, limits)[None]
        return
    settings = WindowSettings(
        window_seconds=window_seconds,
        stride_seconds=stride_seconds,
        num_frames=data.num_frames,
        size_px=data.frame_size_px,
        sampling=data.sampling,
        decoder=data.decoder,
        limits=limits,
    )
    for spans, frames in decode_windows(path, settings):
        yield [*spans], np.stack([padded(clip, data.frame_size_px) for clip in frames])


def padded(frames: np.ndarray, size_px: int) -> np.ndarray:
    """Pad frames, uint8 (T, H, W, 3), to squares (T, S, S, 4): RGB, and 1 where a pixel is padding."""
    clip = letterbox(frames, size_px)
    return np.concatenate([clip.frames, clip.pad_mask[..., None].astype(np.uint8)], axis=-1)


def load(folder: str, device: str = "cpu") -> Model:
    """Load the best model of a run, or a folder that jobs/export.py wrote; a name that is no folder is that of a
    released model, as "snps3-tiny", or is looked up on the hub. Raise ValueError with the tensors that do not fit."""
    folder = folder_of(folder)
    config = config_of(folder)
    text = TextProcessor.load(folder, text=config.text, masking=config.masking, seed=config.seed)
    network = build_model(without_updates(config.model), text.tokenizer)
    path = run_files.best_weights(folder)
    weights = read_weights(storage.read_bytes(path), path)
    report = load_earlier_run(network, weights, path)
    if lost := report.missing:  # initial weights may lack some tensors, a trained model may not
        raise ValueError(f"{path} lacks {len(lost)} tensors of its network{format_names(lost)}; write it anew")
    network.eval().to(device)
    temperature = temperature_of(weights, config.objective.temperature)
    return Model(network=network, text=text, data=config.data, temperature=temperature)


def folder_of(name: str) -> str:
    """Return the folder of a model: `name`, a released model of this name, or the download of one from the hub.

    Raise FileNotFoundError if there is neither.
    """
    if not is_hub_name(name):
        return storage.absolute(name)
    if (RELEASED / name / run_files.CONFIG).is_file():
        return str(RELEASED / name)
    try:
        return huggingface_hub.snapshot_download(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name} is no folder below {storage.absolute('.')}, nor a model on the hub that can be reached: check the "
            f"path, or download the model: `hf download {name} --local-dir FOLDER` ({type(error).__name__})"
        ) from error


def folder_to_score(name: str, out: str | None) -> str:
    """Return the folder of a model; ValueError for a named one without `out`, since its folder takes no card."""
    folder = folder_of(name)
    if is_hub_name(name) and not out:
        raise ValueError(f"{name} is the name of a model, whose folder is not written to: set --out")
    return folder


def temperature_of(weights: Mapping[str, Tensor], default: float) -> float:
    """Return the temperature of dual scores: the learned one of the weights if there is one, else `default`."""
    if "log_temperature" not in weights:
        return default
    return weights["log_temperature"].clamp(min=LEAST_LOG_TEMPERATURE).exp().item()
