"""Recorded numbers of the published code: read from tests/data/golden, or from the folder that SNPS3_GOLDEN names."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snps3_model.config import ModelConfig, VisualConfig

FOLDER = Path(__file__).parent / "data" / "golden"


@dataclass(frozen=True)
class Recording:
    """One file of numbers. Array names start with in/, w/, out/ or recipe/; sizes and settings are the file's own."""

    arrays: np.lib.npyio.NpzFile

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @property
    def settings(self) -> dict[str, Any]:
        """Sizes, temperatures, seeds and epsilons with which the numbers were recorded."""
        return json.loads(str(self.arrays["settings"]))

    def cases(self, prefix: str, holding: tuple[str, ...]) -> list[str]:
        """The names X, in the file's order, for which an array `prefix/X/h` with h in `holding` exists."""
        found = (
            name.removeprefix(f"{prefix}/").rpartition("/") for name in self.arrays.files if name.startswith(prefix)
        )
        return list(dict.fromkeys(case for case, _, last in found if case and last in holding))

    def network_config(self) -> ModelConfig:
        """The shared network in the recorded sizes, with the smallest visual encoder."""
        sizes = self.settings
        return ModelConfig(
            visual=VisualConfig(channels=(4, 4)),
            hidden=sizes["hidden"],
            num_layers=sizes["layers"],
            num_heads=sizes["heads"],
            feed_forward=sizes["ffn"],
            max_positions=sizes["max_positions"],
            dropout=0.0,
        )

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The arrays below `prefix/`, by the rest of their names."""
        found = [name for name in self.arrays.files if name.startswith(f"{prefix}/")]
        return {name.removeprefix(f"{prefix}/"): self.tensor(name) for name in found}

    def rebuilt_weights(self) -> dict[str, Tensor]:
        """Weights too large to store, rebuilt from recipe/*, by the names after the model's."""
        columns = ("name", "shape_zero_padded", "offset", "scale", "use_abs", "checksum_sum_and_first")
        weights = {}
        for name, shape, offset, scale, use_abs, (total, first) in zip(
            *(self[f"recipe/{column}"] for column in columns), strict=True
        ):
            seed = zlib.crc32(f"{self.settings['salt']}/{name}".encode())
            drawn = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape[shape > 0])
            value = (offset + scale * (np.abs(drawn) if use_abs else drawn)).astype(np.float32)
            assert np.isclose(value.astype(np.float64).sum(), total, rtol=1e-9, atol=1e-6), name
            assert value.flat[0] == np.float32(first), name
            weights[str(name).partition("/")[2]] = torch.from_numpy(value)
        return weights

    def frames(self, case: str) -> Tensor:
        """Float32 frames (B, T, 3, H, W) of `in/case`: stored, or drawn again from the stored seed."""
        if f"in/{case}/frames" in self:
            return self.tensor(f"in/{case}/frames")
        generator = np.random.Generator(np.random.PCG64(int(self[f"in/{case}/frames_seed"])))
        frames = generator.standard_normal(self[f"in/{case}/frames_shape"]).astype(np.float32)
        totals = [
            self[f"in/{case}/{name}"] for name in ("frames_sum", "frames_checksum") if f"in/{case}/{name}" in self
        ]
        assert np.allclose(totals, frames.astype(np.float64).sum(), rtol=1e-9, atol=1e-6), case
        return torch.from_numpy(frames)


@cache
def golden(name: str) -> Recording:
    """The recording `name`.npz of the folder SNPS3_GOLDEN, or of tests/data/golden."""
    path = Path(os.environ.get("SNPS3_GOLDEN", FOLDER)) / f"{name}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; unset SNPS3_GOLDEN, or let it name a folder with {path.name}")
    return Recording(np.load(path, allow_pickle=False))
