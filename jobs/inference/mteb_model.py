"""A run or an exported folder as a model for `mteb`, and a manifest as a retrieval task of `mteb`.

import mteb
from jobs.inference.mteb_model import MtebModel

mteb.evaluate(MtebModel("runs/tiny"), mteb.get_tasks(tasks=["MSRVTTT2V"]))

A video's vector concatenates the vectors of its frames; its similarity with a text is the dual score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jobs.inference.model import decode_unnamed, folder_of, load
from jobs.run import run_files
from pipeline.corpus.media import read
from pipeline.records import Kind
from pipeline.stream.source import split_rows
from snps3_model.snps3 import dual_scores

VIDEOS_AT_ONCE = 16
Direction = Literal["t2v", "v2t"]


class MtebModel:
    """An `EncoderProtocol` of mteb. Videos are decoded as in our own evaluation, from their bytes."""

    def __init__(self, model_name: str, revision: str | None = None, *, device: str | None = None, **_: Any) -> None:
        """`model_name`: folder of a run or of an exported model, or a name on the hub."""
        self.name, self.folder = model_name, folder_of(model_name)
        self.revision = revision or run_files.weights_hash(self.folder)
        self.model = load(self.folder, device or "cpu")

    @property
    def mteb_model_meta(self) -> Any:
        """The model's metadata, which mteb writes with its scores."""
        from mteb.models import ModelMeta  # pyright: ignore[reportMissingImports]

        network = self.model.network
        facts = {
            "name": f"snps3/{self.name.strip('/').rpartition('/')[2]}",
            "revision": self.revision,
            "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
            "embed_dim": network.config.hidden,
            "max_tokens": self.model.text.text.max_tokens,
            "modalities": ["text", "video"],
            "framework": ["PyTorch"],
        }
        return ModelMeta.create_empty(overwrites=facts)

    def encode(
        self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **_: Any
    ) -> Float[Tensor, "N d"]:
        """Return a row per input of mteb's loader: D numbers for a text, T · D for a video."""
        if "video" in inputs.dataset.features:
            return torch.cat([self.embed_videos(media) for media in batches_of(inputs.dataset)])
        return torch.cat([self.model.embed_texts(batch["text"]).vectors for batch in inputs])

    def embed_videos(self, videos: Sequence[bytes]) -> Float[Tensor, "n d"]:
        """Return the concatenated frame vectors of each video. Raise DecodeError for bytes that are no video."""
        frames = np.stack([decode_unnamed(media, self.model.data) for media in videos])
        return self.model.embed_frames(frames).vectors.flatten(1)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[Tensor, "n m"]:
        """Return the dual scores of texts and videos, which may come in either order."""
        first, second = map(torch.as_tensor, (embeddings1, embeddings2))
        if (width := self.model.network.config.hidden) != first.shape[-1]:
            return self.similarity(second, first).T
        return dual_scores(first, second.unflatten(-1, (-1, width)), self.model.temperature)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[Tensor, " n"]:
        """Return the similarity of inputs in the same rows."""
        pairs = zip(embeddings1, embeddings2, strict=True)
        return torch.cat([self.similarity(first[None], second[None])[0] for first, second in pairs])


def batches_of(dataset: Any) -> Iterator[list[bytes]]:
    """Yield the bytes of a data set's videos in batches, without the data set's own decoding."""
    column = dataset.features["video"]
    if getattr(column, "decode", False):
        dataset = dataset.cast_column("video", dataclasses.replace(column, decode=False))
    for start in range(0, len(dataset), VIDEOS_AT_ONCE):
        yield [bytes_of(video) for video in dataset[start : start + VIDEOS_AT_ONCE]["video"]]


def bytes_of(video: Any) -> bytes:
    """Return the bytes of a data set's video, which are given directly or as a path. Raise ValueError for anything
    else."""
    if isinstance(video, dict):
        video = video["bytes"] or video["path"]
    media = read(video) if isinstance(video, str) else video
    if not isinstance(media, bytes):
        raise ValueError(f"videos of mteb are files or their bytes, got {type(media).__name__}; name files")
    return media


def retrieval_task(manifest: str, split: str, direction: Direction) -> Any:
    """Return a loaded retrieval task of mteb with the videos of a manifest's split and their first captions.

    Raise ValueError for clips that are parts of files, which mteb does not support.
    """
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from mteb.abstasks.retrieval import AbsTaskRetrieval  # pyright: ignore[reportMissingImports]
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData  # pyright: ignore[reportMissingImports]
    from mteb.abstasks.task_metadata import TaskMetadata  # pyright: ignore[reportMissingImports]

    rows = split_rows(manifest, split)[Kind.VIDEO].to_pylist()
    if any(row["start_seconds"] is not None for row in rows):
        raise ValueError(f"{manifest} has clips between two times of a file; cut the files with snps3 pack first")
    ids = [str(row["clip_id"]) for row in rows]
    captions = [row["captions"][0] for row in rows]
    by_caption: dict[str, list[str]] = {}
    for number, caption in zip(ids, captions, strict=True):
        by_caption.setdefault(caption, []).append(number)
    texts = Dataset.from_dict({"id": ids, "text": captions})
    videos = Dataset.from_dict({"id": ids, "video": [row["uri"] for row in rows]})
    right = {number: dict.fromkeys(by_caption[caption], 1) for number, caption in zip(ids, captions, strict=True)}
    queries, corpus = (texts, videos) if direction == "t2v" else (videos, texts)

    class ManifestRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Manifest{direction.upper()}",
            description="Videos of a manifest and their first captions.",
            dataset={"path": "manifest", "revision": split},
            type="Any2AnyRetrieval",
            category=direction,
            modalities=["text", "video"],
            eval_splits=[split],
            eval_langs=["eng-Latn"],
            main_score="recall_at_1",
        )

        def load_data(self, **_: Any) -> None:
            """Do nothing: the rows are already loaded."""

    task = ManifestRetrieval()
    data = RetrievalSplitData(queries=queries, corpus=corpus, relevant_docs=right, top_ranked=None)
    task.dataset, task.data_loaded = {"default": {split: data}}, True
    return task
