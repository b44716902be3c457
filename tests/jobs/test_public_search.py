"""Search with CLIP and SigLIP: ranked as Transformers scores the same frames, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import transformers

from jobs import search as search_command
from jobs.inference.index import EmbedConfig
from jobs.inference.indexed_files import Filters
from jobs.inference.local_index import embed_here
from jobs.inference.query import Answerer, SearchConfig, search
from jobs.inference.search_model import is_public, load_searcher, weights_of
from jobs.serving.app import UPLOAD_TYPE
from jobs.serving.library import Library
from pipeline.decode.codec import encode_video
from tests.jobs.test_page import get
from tests.made_run import made_run
from tests.public_folder import clip_folder, siglip_folder
from tests.served import served

TEXTS = ("a red ring rises", "a blue star")
CLASSES = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}
NUM_FILMS, SECONDS = 5, 4
"""A film has a frame per second, so that a window of the whole film shows every frame."""


@dataclass(frozen=True)
class Indexed:
    """A model of others, and its index of a folder of films."""

    kind: str
    model: str
    videos: Path
    out: str


@pytest.fixture(scope="module", params=["clip", "siglip"])
def indexed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    root = tmp_path_factory.mktemp(request.param)
    write = {"clip": clip_folder, "siglip": siglip_folder}[request.param]
    model, videos = write(root / "model"), root / "videos"
    videos.mkdir()
    for number in range(NUM_FILMS):
        blocks = np.random.default_rng(number).integers(0, 256, (SECONDS, 4, 7, 3), np.uint8)
        (videos / f"{number}.mp4").write_bytes(encode_video(blocks.repeat(8, 1).repeat(8, 2), fps=1))
    config = EmbedConfig(run=model, videos=str(videos), out=f"{root}/index", window_seconds=None)
    assert len(embed_here(config)) == NUM_FILMS
    return Indexed(request.param, model, videos, config.out)


def scores_of(indexed: Indexed, text: str) -> dict[str, float]:
    """Score each film with Transformers alone, on frames as PyAV decodes them."""
    network = CLASSES[indexed.kind].from_pretrained(indexed.model).eval()
    pictures = transformers.AutoImageProcessor.from_pretrained(indexed.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(indexed.model)
    padding = {"padding": "max_length", "max_length": 8} if indexed.kind == "siglip" else {}
    tokens = tokenizer([text], return_tensors="pt", **padding)
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    scores = {}
    for path in sorted(indexed.videos.glob("*.mp4")):
        with av.open(str(path)) as film:
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        pixels = pictures(images=frames, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = network(**tokens, pixel_values=pixels).logits_per_text[0].double()
        bias = float(network.logit_bias) if indexed.kind == "siglip" else 0.0
        scores[path.name] = float(torch.logsumexp(logits - bias, 0))
    return scores


@pytest.mark.parametrize("text", TEXTS)
def test_a_search_ranks_films_by_the_scores_of_transformers(indexed: Indexed, text: str) -> None:
    expected = scores_of(indexed, text)
    found = search(SearchConfig(index=indexed.out, text=text, num_results=NUM_FILMS))
    assert [Path(match.uri).name for match in found] == sorted(expected, key=expected.__getitem__, reverse=True)
    for match in found:
        assert match.dual == pytest.approx(expected[Path(match.uri).name], abs=1e-3)
        assert match.cross is None
