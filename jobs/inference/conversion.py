"""Convert a checkpoint of the published code into initial weights for a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.run.presets import PRESETS
from jobs.training import checkpoints
from pipeline import storage
from snps3_model.convert import load_published
from snps3_model.loading import WeightsReport
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3
from snps3_model.visual_weights import load_named, read_weights


@dataclass(frozen=True, kw_only=True)
class Convert:
    """The checkpoint to convert, and the file to write."""

    preset: Annotated[str, tyro.conf.Positional]
    """The preset with the checkpoint's network."""
    checkpoint: str
    """File or s3:// URL of the published code: .ckpt, .pth, .pt or .safetensors. Nothing in it is executed."""
    out: str
    """The new .safetensors file, for --model.initial-weights."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"there is no preset {self.preset!r}; there are {', '.join(PRESETS)}")
        if not self.out.endswith(".safetensors"):
            raise ValueError(f"--out must end in .safetensors, got {self.out}")


def convert(config: Convert) -> WeightsReport:
    """Write `config.out`. Raise ValueError if the checkpoint does not fit the preset's network, FileNotFoundError if
    there is no checkpoint."""
    run = PRESETS[config.preset][1]()
    checkpoint = str(config.checkpoint)
    if not storage.exists(checkpoint) or storage.is_folder(checkpoint):
        raise FileNotFoundError(f"--checkpoint {checkpoint} is not there; name a file of the published code")
    weights = read_weights(checkpoint, storage)
    # the ids of BERT's vocabulary; no tensor depends on them
    model = SNPS3(run.model, vocabulary_size=run.text.vocabulary_size, pad_id=0, separator_id=102)
    network = Pretraining(model, run.objective, mask_id=103)
    report = load_published(network, weights, checkpoint, load_named)
    storage.write_bytes_atomic(config.out, checkpoints.weight_bytes(network))
    return report
