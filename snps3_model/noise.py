"""Random numbers that are functions of clip ids: equal on any number of ranks and after a resume."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def pair_noise(clip_ids: Int64[Tensor, " B"]) -> Float[Tensor, "B B"]:
    """Return Gumbel noise for each ordered pair of the global batch, a function of the clip ids alone.

    The k highest of the scores plus this noise are k draws without replacement from their softmax. No random generator
    is used, so the draws are the same on any number of ranks and after a resume.
    """
    return gumbel(clip_ids, clip_ids, clip_ids.sum())


def word_noise(clip_ids: Int64[Tensor, " b"], length: int, pool: Int64[Tensor, ""]) -> Float[Tensor, "b L"]:
    """Return Gumbel noise for each word of a caption, a function of its clip, its position and `pool`, the sum of the
    clip ids of the global batch."""
    places = torch.arange(length, device=clip_ids.device)
    return gumbel(clip_ids, places, pool)


def gumbel(rows: Int64[Tensor, " R"], columns: Int64[Tensor, " C"], salt: Int64[Tensor, ""]) -> Float[Tensor, "R C"]:
    """Return Gumbel noise, a function of row, column and `salt`."""
    return -torch.log(-torch.log(hashed_uniform(rows, columns, salt))).float()


def hashed_uniform(
    rows: Int64[Tensor, " R"], columns: Int64[Tensor, " C"], salt: Int64[Tensor, ""]
) -> Float[Tensor, "R C"]:
    """Return uniform numbers in (0, 1) in double precision, a function of row, column and `salt`."""
    rows = rows * 0x5851F42D4C957F2D + salt
    mixed = (rows[:, None] ^ (columns * 0x14057B7EF767814F)[None, :]) * 0x2545F4914F6CDD1D
    mixed = (mixed ^ (mixed >> 29)) * 0x1D8E4E27C47D124F
    return ((mixed >> 40) & 0x7FFFFF).double().add(0.5) / 0x800000
