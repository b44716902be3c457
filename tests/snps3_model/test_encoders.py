"""The encoders behind one interface: recorded numbers, sizes, refusals, and local folders in the hub's format."""

from __future__ import annotations

import pytest
import torch
import transformers
from golden import Recording, golden
from torch import Tensor, nn
from transformers import PvtV2Config

from snps3_model.config import VisualConfig
from snps3_model.encoders import (
    PVT_SIZES,
    PvtV2,
    ResNet50,
    VisualEncoder,
    grid_mask,
    make_encoder,
)
from snps3_model.public_networks import FrozenBatchNorm
from snps3_model.video_swin import SwinGeometry, VideoSwin
from snps3_model.visual import SmallCNN, pool
from snps3_model.visual_weights import load_named

POOLING = golden("visual_pooling")
SWIN = golden("visual_swin")
PVT = golden("visual_pvt")
PVT_FULL_SIZE = golden("visual_pvt_v2_b2_full_size")
RESNET = golden("visual_resnet50")
NAMES = golden("parameter_names_full_size")


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def no_padding(frames: Tensor) -> Tensor:
    return torch.zeros(*frames.shape[:2], *frames.shape[3:], dtype=torch.bool)


def recorded_grid(recording: Recording, case: str, grid: Tensor, tolerance: float) -> None:
    """All that a full-size file holds of a grid."""
    assert list(grid.shape) == recording[f"out/{case}/shape"].tolist()
    close(grid, recording.tensor(f"out/{case}/grid_feature"), tolerance)
    close(grid.mean((-2, -1)), recording.tensor(f"out/{case}/spatial_mean"), tolerance)
    moments = torch.stack([grid.double().mean(), grid.double().std(unbiased=False)])
    close(moments, recording.tensor(f"out/{case}/mean_std"), tolerance)


@pytest.fixture(scope="module")
def resnet50() -> VisualEncoder:
    weights = RESNET.rebuilt_weights()
    encoder = make_encoder(VisualConfig(encoder="resnet50", frozen_batch_norm=True), len(weights["output_proj.bias"]))
    report = load_named(encoder, weights, "recipe")
    assert (report.missing, report.unexpected) == ((), ())
    return encoder.eval()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("case", RESNET.cases("in", ("frames_seed",)))
@torch.no_grad()
def test_golden_resnet50(case: str, resnet50: VisualEncoder) -> None:
    frames = RESNET.frames(case)
    grid, _ = resnet50(frames, no_padding(frames))
    recorded_grid(RESNET, case, grid, 1e-4)
    features = resnet50.backbone(frames[:, 0])
    [name] = [name for name in RESNET.arrays.files if name.startswith(f"out/{case}/backbone_")]
    every = int(name.rpartition("every_")[2].partition("th")[0])
    close(features[:, ::every], RESNET.tensor(name), 1e-4)


@pytest.fixture(scope="module")
def pvt_v2_b2() -> VisualEncoder:
    weights = PVT_FULL_SIZE.rebuilt_weights()
    encoder = make_encoder(VisualConfig(encoder="pvt_v2_b2"), len(weights["output_proj.bias"]))
    report = load_named(encoder, weights, "recipe")
    assert (report.missing, report.unexpected) == ((), ())
    return encoder.eval()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("case", PVT_FULL_SIZE.cases("in", ("frames_seed",)))
@torch.no_grad()
def test_golden_pvt_v2_b2(case: str, pvt_v2_b2: VisualEncoder) -> None:
    frames = PVT_FULL_SIZE.frames(case)
    recorded_grid(PVT_FULL_SIZE, case, pvt_v2_b2(frames, no_padding(frames))[0], 5e-5)


@pytest.mark.parametrize("case", PVT.cases("in", ("frames",)))
@torch.no_grad()
def test_golden_small_pvt(case: str) -> None:
    settings, variant = PVT.settings, case.partition("/")[0]
    config = PvtV2Config(
        hidden_sizes=settings["embed_dims"],
        depths=settings["depths"],
        mlp_ratios=settings["mlp_ratios"],
        num_attention_heads=settings["num_heads"],
        sr_ratios=settings["sr_ratios"],
        linear_attention=variant == "linear",
    )
    encoder = VisualEncoder(PvtV2(config), hidden=settings["hidden"]).eval()
    report = load_named(encoder, PVT.tensors(f"w/{variant}"), variant)
    assert (report.missing, report.unexpected) == ((), ())
    frames = PVT.frames(case)
    pad_mask = no_padding(frames)
    pad_mask[..., int(PVT[f"in/{case}/pad_mask_columns_from"]) :] = True
    grid, mask = encoder(frames, pad_mask)
    close(grid, PVT.tensor(f"out/{case}/grid_feature"), 2e-5)
    assert torch.equal(mask, PVT.tensor(f"out/{case}/grid_mask"))


@pytest.mark.parametrize("case", SWIN.cases("in", ("frames", "frames_seed")))
@torch.no_grad()
def test_golden_mask_of_video_swin(case: str) -> None:
    settings = SWIN.settings
    geometry = SwinGeometry(
        embed=settings["embed_dim"], depths=tuple(settings["depths"]), heads=tuple(settings["num_heads"])
    )
    encoder = VisualEncoder(VideoSwin(geometry, reference=True), hidden=settings["hidden"]).eval()
    load_named(encoder, SWIN.tensors("w/swin"), "swin")
    frames = SWIN.frames(case)
    pad_mask = no_padding(frames)
    pad_mask[..., int(SWIN[f"in/{case}/pad_mask_rows_from"]) :, :] = True
    grid, mask = encoder(frames, pad_mask)
    close(grid, SWIN.tensor(f"out/{case}/grid_feature"), 2e-5)
    assert torch.equal(mask, SWIN.tensor(f"out/{case}/grid_mask"))


@pytest.mark.parametrize("case", POOLING.cases("in", ("grid_feature",)))
def test_golden_pooling(case: str) -> None:
    grid, mask = POOLING.tensor(f"in/{case}/grid_feature"), POOLING.tensor(f"in/{case}/grid_pad_mask")
    tokens = POOLING.tensor(f"out/{case}/clip_tokens")
    frames_per_clip = grid.shape[1] // tokens.shape[1]
    # several frames of a clip stand beside each other, as one frame of a wider grid
    wide = grid.unflatten(1, (-1, frames_per_clip)).movedim(2, 4).flatten(4)
    wide_mask = mask.unflatten(1, (-1, frames_per_clip)).movedim(2, 3).flatten(3)
    found = pool(wide, wide_mask)
    close(found, tokens, 1e-5)
    head = nn.Sequential(nn.Linear(found.shape[-1], found.shape[-1]), nn.ReLU(), nn.Linear(*[found.shape[-1]] * 2))
    head.load_state_dict(POOLING.tensors("w/img_fc"))
    vectors = nn.functional.normalize(head(found), dim=-1)
    close(vectors.flatten(0, 1), POOLING.tensor(f"out/{case}/clip_vectors"), 1e-5)


def test_golden_padding_is_marked_in_strips() -> None:
    sizes = POOLING["in/padding/image_sizes"].tolist()
    *_, height, width = POOLING["out/padding/padded_shape"].tolist()
    pad_mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for image, (rows, columns) in zip(pad_mask, sizes, strict=True):
        image[:rows, :columns] = False
    assert torch.equal(pad_mask, POOLING.tensor("out/padding/full_pad_mask"))
    cells = POOLING["out/padding/grid_size"].tolist()
    assert torch.equal(grid_mask(pad_mask[:, None], *cells)[:, 0], POOLING.tensor("out/padding/full_grid_mask"))
    reference = POOLING.tensor("out/padding/seed_pad_mask")
    assert torch.equal(grid_mask(reference[:, None], *cells)[:, 0], POOLING.tensor("out/padding/seed_grid_mask"))


@pytest.mark.parametrize(
    ("encoder", "published"),
    [("resnet50", "resnet50"), ("pvt_v2_b2", "pvt_v2_b2"), ("video_swin_small", "video_swin_small")],
)
def test_golden_names_of_the_published_encoders_are_ours(encoder: str, published: str) -> None:
    """Every parameter of the published encoder has its place and shape in ours, and none of ours is left over."""
    prefix = "model.module.img_encoder."
    shapes = {
        str(name): shape[shape > 0].tolist()
        for name, shape in zip(
            NAMES[f"{published}/parameter_name"], NAMES[f"{published}/parameter_shape_zero_padded"], strict=True
        )
        if str(name).startswith(prefix)
    }
    ours = make_encoder(VisualConfig(encoder=encoder, frozen_batch_norm=encoder == "resnet50"), 768)
    buffers = {name: tensor for name, tensor in ours.state_dict().items() if name not in dict(ours.named_parameters())}
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    report = load_named(ours, weights | buffers, "published")
    assert report.missing == report.reshaped == ()
    assert {name.removeprefix(prefix).partition(".")[0] for name in report.unexpected} <= {"img_fc", "model"}
    assert not any(parameter.any() for parameter in ours.parameters())


# published counts in millions: snps3.md for the paper's three; the releases for the others, without their 1000 classes
@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (VisualConfig(encoder="resnet50", frozen_batch_norm=True), 26.21 - 1.18),
        (VisualConfig(encoder="pvt_v2_b2"), 26.94 - 1.18 - 0.513),
        (VisualConfig(encoder="video_swin_small"), 49.51),
    ],
)
def test_the_papers_encoders_have_their_number_of_parameters(config: VisualConfig, millions: float) -> None:
    with torch.device("meta"):
        encoder = make_encoder(config, 768)
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("pvt_v2_b0", 3.67),
        ("pvt_v2_b1", 14.01),
        ("pvt_v2_b2", 25.36),
        ("pvt_v2_b3", 45.24),
        ("pvt_v2_b4", 62.56),
        ("pvt_v2_b5", 81.96),
        ("video_swin_tiny", 28.158070 - 0.3076),
        ("video_swin_base", 88.048984 - 0.41),
    ],
)
def test_other_sizes_have_the_number_of_parameters_of_their_releases(name: str, millions: float) -> None:
    width = PVT_SIZES[name][0][-1] if name in PVT_SIZES else 0
    head = (1000 * width + 1000) / 1e6 if width else 0
    with torch.device("meta"):
        encoder = make_encoder(VisualConfig(encoder=name), 96)
    assert isinstance(encoder, VisualEncoder)
    found = sum(parameter.numel() for parameter in encoder.backbone.parameters()) / 1e6
    assert found + head == pytest.approx(millions, abs=0.005)


def small_swin(**options: bool | float) -> VisualEncoder:
    geometry = SwinGeometry(embed=8, depths=(2, 2), heads=(1, 2), window=(2, 3, 3))
    return VisualEncoder(VideoSwin(geometry, **options), hidden=5)


def small_pvt(drop_path: float = 0.0) -> VisualEncoder:
    config = PvtV2Config(hidden_sizes=(8, 16, 20, 32), depths=(1, 1, 1, 1), drop_path_rate=drop_path)
    return VisualEncoder(PvtV2(config), hidden=5)


SMALL = {
    "resnet50": lambda: make_encoder(VisualConfig(encoder="resnet50", frozen_batch_norm=True), 5),
    "pvt": small_pvt,
    "video_swin": small_swin,
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SMALL)
def test_a_clip_has_the_same_grid_whatever_its_batch_mates(name: str) -> None:
    torch.manual_seed(0)
    encoder = SMALL[name]().train()
    frames = noise(2, 3, 3, 40, 56)
    together, mask = encoder(frames, no_padding(frames))
    alone, _ = encoder(frames[1:], no_padding(frames[1:]))
    assert mask.shape == (together.shape[0], together.shape[1], *together.shape[3:])
    assert together.shape[:3] == (2, 3, 5)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none(name: str) -> None:
    torch.manual_seed(0)
    encoder = SMALL[name]().train()
    frames = noise(1, 2, 3, 64, 64)
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            encoder.backbone.checkpoint_activations()
        encoder.zero_grad()
        encoder(frames, no_padding(frames))[0].square().mean().backward()
        gradients.append({key: parameter.grad for key, parameter in encoder.named_parameters()})
    plain, again = gradients
    assert all(gradient is not None for gradient in plain.values())
    torch.testing.assert_close(plain, again)


def test_checkpointed_stages_keep_fewer_tensors() -> None:
    frames = noise(1, 1, 3, 64, 64)
    kept = []
    for is_checkpointed in (False, True):
        encoder = SMALL["resnet50"]().train()
        if is_checkpointed:
            encoder.backbone.checkpoint_activations()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            encoder(frames, no_padding(frames))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 4


def test_a_frozen_encoder_trains_its_projection_only_and_drops_no_path() -> None:
    torch.manual_seed(0)
    backbone = VideoSwin(SwinGeometry(embed=8, depths=(2, 2), heads=(1, 2), window=(2, 3, 3)), drop_path=0.9)
    encoder = VisualEncoder(backbone, hidden=5, is_frozen=True).train()
    frames = noise(1, 2, 3, 32, 32)
    first, second = (encoder(frames, no_padding(frames))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert {key for key, parameter in encoder.named_parameters() if parameter.requires_grad} == {
        "projection.weight",
        "projection.bias",
    }
    assert not torch.equal(*(small_swin(drop_path=0.9).train()(frames, no_padding(frames))[0] for _ in range(2)))


def test_a_dropped_path_leaves_the_mean_as_it_is() -> None:
    torch.manual_seed(0)
    encoder = small_pvt(drop_path=0.5).train()
    rates = [m.drop_prob for m in encoder.modules() if hasattr(m, "drop_prob")]
    assert max(rates) == 0.5
    dropped = transformers.models.pvt_v2.modeling_pvt_v2.PvtV2DropPath(0.5).train()(torch.ones(4000, 1))
    ours = [m for m in small_swin(drop_path=0.5).modules() if type(m).__name__ == "DropPath"][-1].train()
    assert ours.rate == 0.5
    assert float(ours(torch.ones(4000, 1)).mean()) == pytest.approx(float(dropped.mean()), abs=0.1)


def test_sides_that_are_no_multiple_of_the_stride_have_a_mask_that_fits() -> None:
    """The published code gave a grid rounded up and a mask rounded down."""
    for make in SMALL.values():
        frames = noise(1, 1, 3, 40, 72)
        grid, mask = make().eval()(frames, no_padding(frames))
        assert mask.shape[-2:] == grid.shape[-2:]
        assert pool(grid, mask).isfinite().all()


def test_frozen_batch_norm_is_torchs_in_evaluation() -> None:
    torchs, ours = nn.BatchNorm2d(6).eval(), FrozenBatchNorm(6).train()
    with torch.no_grad():
        for seed, (name, tensor) in enumerate(torchs.state_dict().items()):
            if tensor.ndim:
                tensor.copy_(noise(6, seed=seed).abs() if name == "running_var" else noise(6, seed=seed))
    ours.load_state_dict({k: v for k, v in torchs.state_dict().items() if v.ndim})
    features = noise(2, 6, 3, 3)
    torch.testing.assert_close(ours(features), torchs(features))
    assert not list(ours.parameters())
    assert ours(features.bfloat16()).dtype == torch.bfloat16


def test_resnet50_trains_no_statistics() -> None:
    encoder = ResNet50().train()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(noise(2, 3, 32, 32))
    assert all(torch.equal(before[name], buffer) for name, buffer in encoder.named_buffers())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "resnet50"}, "resnet50 has frozen batch normalisation only"),
        ({"encoder": "auto"}, "set both or neither"),
        ({"backbone": "dinov2"}, "set both or neither"),
        ({"drop_path": 0.1}, "model.visual.drop_path has no effect on model.visual.encoder=small_cnn"),
        ({"drop_path": 1.0, "encoder": "pvt_v2_b0"}, r"must lie in \[0, 1\), got 1.0"),
        ({"frozen": True}, "model.visual.frozen has no effect on model.visual.encoder=small_cnn"),
        ({"encoder": "pvt_v2_b1", "frozen_batch_norm": True}, "frozen_batch_norm has no effect on .*=pvt_v2_b1"),
        ({"encoder": "pvt_v2_b1", "reference_window_index": True}, "reference_window_index has no effect"),
        ({"encoder": "resnet50", "frozen_batch_norm": True, "pixels": "clip"}, "model.visual.pixels has no effect on"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisualConfig(**settings)


def test_an_unknown_encoder_is_refused_with_those_there_are() -> None:
    config = VisualConfig()
    object.__setattr__(config, "encoder", "resnet51")  # under pytest the types refuse it before
    with pytest.raises(
        ValueError, match=r"encoder='resnet51' is unknown; take small_cnn or clip_cnn, or one of resnet50, pvt_v2_b0"
    ):
        config.__post_init__()


def test_the_default_is_the_small_cnn() -> None:
    assert isinstance(make_encoder(VisualConfig(), 8), SmallCNN)
