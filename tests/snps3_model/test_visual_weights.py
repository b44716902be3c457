"""Public releases load by their names, and whatever does not fit is refused or reported."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from pipeline import storage
from snps3_model.config import VisualConfig
from snps3_model.encoders import ResNet50, VisualEncoder, make_encoder
from snps3_model.video_swin import GEOMETRIES, SwinGeometry, VideoSwin
from snps3_model.visual import SmallCNN
from snps3_model.visual_weights import load_named, load_visual_weights, read_weights

SMALL = SwinGeometry(embed=8, depths=(2, 1, 2), heads=(1, 2, 4), window=(2, 3, 3))


def swin_encoder(geometry: SwinGeometry = SMALL, hidden: int = 5) -> VisualEncoder:
    return VisualEncoder(VideoSwin(geometry), hidden=hidden)


def resnet_encoder() -> VisualEncoder:
    return VisualEncoder(ResNet50(), hidden=8)


def renumbered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names and shapes, every tensor with values of its own."""
    generator = torch.Generator().manual_seed(len(weights))
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}


def in_torchvisions_names(name: str) -> str:
    """Our name of a Video Swin tensor as torchvision's `swin3d_*` has it, written out from its module tree."""
    parts = name.split(".")
    if parts[0] != "layers":
        return name
    stage = int(parts[1])
    if parts[2] == "downsample":
        return ".".join(["features", str(2 * stage + 1), *parts[3:]])
    tail = ".".join(parts[4:]).replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
    return f"features.{2 * stage}.{parts[3]}.{tail}"


HEAD = {"head.weight": torch.zeros(4, 32), "head.bias": torch.zeros(4)}
INDEX = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(18, 18, dtype=torch.int64)}


@pytest.mark.parametrize("release", ["violet", "video_swin", "torchvision"])
def test_video_swin_loads_each_public_release(release: str, tmp_path: Path) -> None:
    encoder = swin_encoder()
    weights = renumbered(encoder.backbone.state_dict())
    if release == "torchvision":
        index = {"features.0.0.attn.relative_position_index": INDEX[next(iter(INDEX))]}
        file = {in_torchvisions_names(name): tensor for name, tensor in weights.items()} | index | HEAD
    elif release == "violet":
        file = weights | INDEX
    else:
        named = {f"backbone.{name}": tensor for name, tensor in (weights | INDEX).items()}
        file = {"state_dict": named | {"cls_head.fc_cls.weight": torch.zeros(4, 32)}, "meta": {"epoch": 30}}
    torch.save(file, tmp_path / "release.pth")
    report = load_visual_weights(encoder, str(tmp_path / "release.pth"), storage)
    torch.testing.assert_close(dict(encoder.backbone.state_dict()), weights, rtol=0, atol=0)
    assert set(report.loaded) == {f"backbone.{name}" for name in weights}
    assert set(report.missing) == {"projection.weight", "projection.bias"}
    assert report.reshaped == ()
    assert len(report.unexpected) == {"violet": 1, "video_swin": 2, "torchvision": 3}[release]


def test_torchvisions_names_of_every_size_fit() -> None:
    """The module tree of torchvision's swin3d_t, _s and _b, written out, against ours."""
    for name, geometry in GEOMETRIES.items():
        with torch.device("meta"):
            ours = set(VideoSwin(geometry).state_dict())
        affine = ("weight", "bias")
        blocks = [
            f"features.{2 * stage}.{block}.{part}"
            for stage, depth in enumerate(geometry.depths)
            for block in range(depth)
            for part in (
                "attn.relative_position_bias_table",
                *(f"{p}.{a}" for p in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.0", "mlp.3") for a in affine),
            )
        ]
        merging = [f"features.{n}.{p}" for n in (1, 3, 5) for p in ("norm.weight", "norm.bias", "reduction.weight")]
        ends = [f"{p}.{a}" for p in ("patch_embed.proj", "patch_embed.norm", "norm") for a in affine]
        assert {in_torchvisions_names(mine) for mine in ours} == {*blocks, *merging, *ends}, name


def test_a_swin_of_images_is_inflated_so_that_a_still_clip_looks_the_same() -> None:
    encoder = swin_encoder()
    weights = renumbered(encoder.backbone.state_dict())
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"][:, :, 0].contiguous()
    tables = [name for name in weights if name.endswith("bias_table")]
    for name in tables:
        weights[name] = weights[name][: 5 * 5].contiguous()
    report = load_named(encoder, weights, "image swin")
    assert len(report.reshaped) == len(tables) + 1
    patches = encoder.backbone.state_dict()["patch_embed.proj.weight"]
    torch.testing.assert_close(patches.sum(2), weights["patch_embed.proj.weight"])
    loaded = encoder.backbone.state_dict()
    for name in tables:
        assert torch.equal(loaded[name].view(3, 25, -1), weights[name].expand(3, 25, -1))


def test_resnet50_loads_torchvisions_names(tmp_path: Path) -> None:
    encoder = resnet_encoder()
    weights: dict[str, Tensor] = {"fc.weight": torch.zeros(9, 2048), "fc.bias": torch.zeros(9)}
    norm = ("weight", "bias", "running_mean", "running_var")
    for name in ("bn1", *(f"layer{s}.0.downsample.1" for s in range(1, 5))):
        width = 64 if name == "bn1" else 128 * 2 ** int(name[5])
        weights |= {f"{name}.{part}": torch.randn(width) for part in norm}
    weights["conv1.weight"] = torch.randn(64, 3, 7, 7)
    weights["bn1.num_batches_tracked"] = torch.tensor(3)
    for stage, depth in enumerate((3, 4, 6, 3)):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        before = 64 if stage == 0 else outer // 2
        weights[f"layer{stage + 1}.0.downsample.0.weight"] = torch.randn(outer, before, 1, 1)
        for block in range(depth):
            entry = before if block == 0 else outer
            shapes = {1: (inner, entry, 1, 1), 2: (inner, inner, 3, 3), 3: (outer, inner, 1, 1)}
            for number, shape in shapes.items():
                prefix = f"layer{stage + 1}.{block}"
                weights[f"{prefix}.conv{number}.weight"] = torch.randn(shape)
                weights |= {f"{prefix}.bn{number}.{part}": torch.randn(shape[0]) for part in norm}
    torch.save(weights, tmp_path / "resnet50.pth")
    report = load_visual_weights(encoder, str(tmp_path / "resnet50.pth"), storage)
    assert set(report.missing) == {"projection.weight", "projection.bias"}
    assert set(report.unexpected) == {"fc.weight", "fc.bias", "bn1.num_batches_tracked"}
    state = encoder.backbone.state_dict()
    assert torch.equal(
        state["encoder.stages.2.layers.5.layer.1.normalization.running_var"], weights["layer3.5.bn2.running_var"]
    )
    assert torch.equal(
        state["encoder.stages.3.layers.0.shortcut.convolution.weight"], weights["layer4.0.downsample.0.weight"]
    )
    assert len(state) == len(weights) - 3


@pytest.mark.parametrize(
    ("encoder", "model"),
    [
        ("resnet50", lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=3))),
        ("pvt_v2_b0", lambda: transformers.PvtV2ForImageClassification(transformers.PvtV2Config(num_labels=3))),
    ],
)
def test_folders_in_hub_format_load(encoder: str, model, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = model().eval()
    whole.save_pretrained(tmp_path, max_shard_size="8MB")
    ours = make_encoder(VisualConfig(encoder=encoder, frozen_batch_norm=encoder == "resnet50"), 8).eval()
    report = load_visual_weights(ours, str(tmp_path), storage)
    assert set(report.missing) == {"projection.weight", "projection.bias"}
    frames = torch.randn(2, 3, 64, 64)
    expected = whole.base_model(frames).last_hidden_state
    torch.testing.assert_close(ours.backbone(frames), expected, rtol=1e-4, atol=1e-4)


def test_a_saved_run_of_ours_fills_its_encoder_again(tmp_path: Path) -> None:
    for make in (swin_encoder, lambda: SmallCNN(VisualConfig(channels=(4, 6)), 5)):
        first, second = make(), make()
        names = [name for name in first.state_dict() if not name.endswith("num_batches_tracked")]
        save_file({f"model.visual.{name}": first.state_dict()[name] for name in names}, tmp_path / "run.safetensors")
        report = load_visual_weights(second, str(tmp_path / "run.safetensors"), storage)
        assert (report.missing, report.unexpected, report.reshaped) == ((), (), ())
        torch.testing.assert_close(dict(second.state_dict()), dict(first.state_dict()), rtol=0, atol=0)


def test_the_report_counts_and_names() -> None:
    report = load_named(swin_encoder(), renumbered(swin_encoder().backbone.state_dict()) | HEAD, "file")
    assert str(report) == (
        "file: 77 tensors loaded, 2 missing (projection.weight, projection.bias), 2 unexpected (head.weight, "
        "head.bias), 0 reshaped"
    )


def test_weights_of_another_network_are_refused_and_change_nothing() -> None:
    encoder = swin_encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    fitting = renumbered(encoder.backbone.state_dict())
    lacking = dict(itertools.islice(fitting.items(), 3, None))
    stranger = fitting | {"layers.9.blocks.0.norm1.weight": torch.zeros(8)}
    wider = fitting | {"norm.weight": torch.zeros(9)}
    odd_window = fitting | {"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(7, 1)}
    for weights, message in (
        (lacking, r"file does not fit the visual encoder: 3 of its tensors are missing \(backbone\.patch_embed"),
        (stranger, r"1 are unknown \(backbone\.layers\.9\.blocks\.0\.norm1\.weight\); choose the model\.visual\.enc"),
        (wider, r"backbone\.norm\.weight has shape \(9,\), but model\.visual\.encoder needs \(32,\)"),
        (odd_window, r"bias_table has shape \(7, 1\).*the window of 8 × 7 × 7"),
    ):
        with pytest.raises(ValueError, match=message):
            load_named(encoder, weights, "file")
    torch.testing.assert_close(dict(encoder.state_dict()), before, rtol=0, atol=0)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.visual\.pretrained=.*absent\.pt is not there; download"):
        read_weights(str(tmp_path / "absent.pt"), storage)
    with pytest.raises(FileNotFoundError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        read_weights(str(tmp_path), storage)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_weights(str(tmp_path / "empty.pt"), storage)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "bomb": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pth")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        read_weights(str(tmp_path / "bomb.pth"), storage)
    assert not (tmp_path / "exploded").exists()


def test_a_public_backbone_of_another_size_is_refused(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
    for width in (16, 32):
        config = transformers.ViTConfig(hidden_size=width, image_size=32, **sizes)
        transformers.ViTModel(config).save_pretrained(tmp_path / str(width))
    encoder = make_encoder(VisualConfig(encoder="auto", backbone=str(tmp_path / "16")), 5)
    with pytest.raises(ValueError, match=r"does not fit model\.visual\.backbone: 0 .* missing and \d+ have other shap"):
        load_visual_weights(encoder, str(tmp_path / "32"), storage)
    with pytest.raises(FileNotFoundError, match="is neither a folder with weights nor a name on the hub"):
        load_visual_weights(encoder, str(tmp_path / "absent"), storage)


class Shelf:
    """Files in memory, as a bucket holds them: no folders but the prefixes of keys."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.files = {f"{prefix}/{path.name}": path.read_bytes() for path in folder.iterdir()}

    def exists(self, path: str) -> bool:
        return path in self.files or self.is_folder(path)

    def is_folder(self, path: str) -> bool:
        return any(name.startswith(f"{path}/") for name in self.files)

    def read_bytes(self, path: str) -> bytes:
        return self.files[path]


@pytest.mark.parametrize("kind", ["auto", "resnet50"])
def test_weights_of_a_bucket_fill_the_encoder_as_those_of_a_folder_do(kind: str, tmp_path: Path) -> None:
    if kind == "auto":
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
        model = transformers.ViTModel(transformers.ViTConfig(hidden_size=16, image_size=32, **sizes))
        config = VisualConfig(encoder="auto", backbone=str(tmp_path))
    else:
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=3))
        config = VisualConfig(encoder="resnet50", frozen_batch_norm=True)
    model.save_pretrained(tmp_path, max_shard_size="8MB" if kind == "resnet50" else "1GB")
    local, remote = make_encoder(config, 5), make_encoder(config, 5)
    first = load_visual_weights(local, str(tmp_path), storage)
    second = load_visual_weights(remote, "s3://bucket/weights", Shelf(tmp_path, "s3://bucket/weights"))
    assert (set(second.loaded), second.missing) == (set(first.loaded), first.missing)
    backbones = [dict(encoder.backbone.state_dict()) for encoder in (remote, local)]
    torch.testing.assert_close(*backbones, rtol=0, atol=0)
    assert len(second.loaded) > 10
