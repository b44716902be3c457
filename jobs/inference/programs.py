"""Export of a model's encoders as programs of `torch.export`, which torch runs without any of our code.

    text.pt2     (input_ids, attention_mask) ─► vector
    video.pt2    (pixel_values, pixel_padding) ─► tokens, vectors
    match.pt2    (input_ids, attention_mask, tokens) ─► score of each row

The numbers of rows, words, frames (two or more) and visual tokens may vary between calls.
"""

from __future__ import annotations

import io

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export, save

from jobs.inference.model import Model
from snps3_model.snps3 import SNPS3


class Encoder(nn.Module):
    """One pass of a network as a separate module."""

    def __init__(self, network: SNPS3) -> None:
        super().__init__()
        self.network = network


class TextEncoder(Encoder):
    """Encodes texts as unit vectors."""

    def forward(self, input_ids: Int64[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        return self.network.encode_text(input_ids, attention_mask).vector


class VideoEncoder(Encoder):
    """Encodes frames as tokens and unit vectors."""

    def forward(
        self, pixel_values: Float[Tensor, "B T 3 H W"], pixel_padding: Bool[Tensor, "B T H W"]
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B T D"]]:
        video = self.network.encode_video(pixel_values, pixel_padding)
        return video.tokens, video.vectors


class CrossEncoder(Encoder):
    """Scores pairs of a text and a video."""

    def forward(
        self, input_ids: Int64[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"], tokens: Float[Tensor, "B S D"]
    ) -> Float[Tensor, " B"]:
        return self.network.score(input_ids, attention_mask, tokens)


def exported(model: Model) -> dict[str, ExportedProgram]:
    """Return the programs of a model by name. The frame size is fixed to that of training."""
    network, data = model.network, model.data
    rows, words = Dim("rows", min=1), Dim("words", min=2, max=network.config.max_positions)
    frames = Dim("frames", min=2, max=network.config.max_positions - 1)
    ids, mask = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool)
    pixels = torch.zeros(2, data.num_frames, 3, data.shown_px, data.shown_px)
    padding = torch.zeros(2, data.num_frames, data.shown_px, data.shown_px, dtype=torch.bool)
    text, clip = {0: rows, 1: words}, {0: rows, 1: frames}
    tokens = torch.zeros(2, data.num_frames * network.config.grid_side**2, network.config.hidden)
    parts = network.config.grid_side**2
    visual = {0: rows, 1: parts * frames if parts > 1 else frames}
    with torch.no_grad():
        return {
            "text": export(TextEncoder(network), (ids, mask), dynamic_shapes=(text, text)),
            "video": export(VideoEncoder(network), (pixels, padding), dynamic_shapes=(clip, clip)),
            "match": export(CrossEncoder(network), (ids, mask, tokens), dynamic_shapes=(text, text, visual)),
        }


def programs_of(model: Model) -> dict[str, bytes]:
    """Return the files of the programs of a model by name."""
    files = {}
    for name, program in exported(model).items():
        save(program, buffer := io.BytesIO())
        files[name] = buffer.getvalue()
    return files
