"""A checkpoint of the published code through the command, and full-size ones with the names that were recorded."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from golden import golden
from torch import Tensor

from jobs.inference import conversion
from jobs.run.config import PretrainConfig
from jobs.run.presets import PRESETS
from snps3_model.config import ModelConfig, VisualConfig
from snps3_model.convert import load_published, published_name
from snps3_model.loading import initialise
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3
from snps3_model.visual_weights import load_named

PRESET_OF = {
    "resnet50": "coco_vg_resnet50",
    "pvt_v2_b2": "coco_vg_pvt",
    "video_swin_small": "webvid_video_swin",
}


def small_preset() -> PretrainConfig:
    model = ModelConfig(
        visual=VisualConfig(channels=(4, 6)), hidden=16, num_layers=2, num_heads=2, feed_forward=32, max_positions=32
    )
    whole = PRESETS["tiny"][1]()
    return dataclasses.replace(whole, model=model, text=dataclasses.replace(whole.text, vocabulary_size=50))


def small_network(seed: int) -> Pretraining:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        run = small_preset()
        return Pretraining(SNPS3(run.model, vocabulary_size=50, pad_id=0, separator_id=2), run.objective)


def published(network: Pretraining) -> dict[str, Tensor]:
    return {published_name(name): tensor.clone() for name, tensor in network.state_dict().items()}


def test_a_published_checkpoint_becomes_first_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "PRESETS", {"small": ("", small_preset)})
    theirs, ours = small_network(1), small_network(2)
    torch.save({"model": published(theirs)}, tmp_path / "theirs.ckpt")
    out = str(tmp_path / "ours.safetensors")
    report = conversion.convert(conversion.Convert(preset="small", checkpoint=tmp_path / "theirs.ckpt", out=out))
    assert not report.missing
    config = dataclasses.replace(small_preset().model, initial_weights=out)
    initialise(ours.model, config, Path(out).read_bytes())
    torch.testing.assert_close(dict(ours.model.state_dict()), dict(theirs.model.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "tinny"}, "there is no preset 'tinny'; there are tiny"),
        ({"out": "weights.pt"}, "--out must end in .safetensors, got weights.pt"),
    ],
)
def test_what_cannot_be_converted_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversion.Convert(**{"preset": "tiny", "checkpoint": Path("x"), "out": "x.safetensors"} | change)


def test_a_checkpoint_that_is_not_there_or_of_another_network_is_refused(tmp_path: Path) -> None:
    asked = conversion.Convert(preset="tiny", checkpoint=tmp_path / "none.ckpt", out=str(tmp_path / "o.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt is not there"):
        conversion.convert(asked)
    theirs = small_network(1)
    safetensors.torch.save_file(
        {published_name(name): tensor.clone() for name, tensor in theirs.state_dict().items()},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(ValueError, match=r"convolutions\.0\.weight has shape .* choose the encoder size"):
        conversion.convert(dataclasses.replace(asked, checkpoint=tmp_path / "x.safetensors"))
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("name", PRESET_OF)
def test_golden_names_of_full_size_fill_every_tensor_of_the_preset(name: str) -> None:
    file, run = golden("parameter_names_full_size"), PRESETS[PRESET_OF[name]][1]()
    weights: dict[str, Tensor] = {}
    shapes = file[f"{name}/parameter_shape_zero_padded"]
    for published, shape in zip(file[f"{name}/parameter_name"].tolist(), shapes, strict=True):
        weights[published] = torch.rand([int(size) for size in shape if size])
    for line in file[f"{name}/aliases"].tolist():
        first, *others = line.split(" = ")
        weights |= dict.fromkeys(others, weights[first])
    model = SNPS3(run.model, vocabulary_size=30_522, pad_id=0, separator_id=102)
    network = Pretraining(model, run.objective)
    if name == "resnet50":  # frozen normalisation holds no parameters, so the recording does not name it
        for conv, tensor in list(weights.items()):
            norm = re.sub(r"conv(\d)\.weight$|downsample\.0\.weight$", r"bn\1.", conv)
            if ".img_encoder.model." in conv:
                norm = norm.replace("bn.", "downsample.1.")
                for part in ("weight", "bias", "running_mean", "running_var"):
                    weights[norm + part] = torch.rand(len(tensor))
    report = load_published(network, weights, name, load_named)
    assert not report.missing
    drawn = {id(tensor): tensor for tensor in weights.values()}
    filled = {tensor.sum().item() for tensor in model.state_dict().values() if tensor.is_floating_point()}
    known = {tensor.sum().item() for tensor in drawn.values()}
    assert len(filled & known) > 0.8 * len(filled)
