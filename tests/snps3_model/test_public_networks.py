"""Networks of Transformers from local folders in the hub's format: features, pixels, gradients and refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from pipeline import storage
from pipeline.stream.transforms import normalise
from snps3_model.config import Pixels, VisualConfig
from snps3_model.encoders import frame_size_problem, make_encoder
from snps3_model.public_networks import refuse_other_pixels
from snps3_model.visual_weights import load_visual_weights


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def no_padding(frames: Tensor) -> Tensor:
    return torch.zeros(*frames.shape[:2], *frames.shape[3:], dtype=torch.bool)


PUBLIC = {
    "dinov2": (transformers.Dinov2Config, {"patch_size": 8, "image_size": 40}, (5, 5)),
    "dinov3": (transformers.DINOv3ViTConfig, {"patch_size": 8, "image_size": 40, "num_register_tokens": 2}, (5, 5)),
    "vit": (transformers.ViTConfig, {"patch_size": 8, "image_size": 32}, (5, 5)),
    "siglip": (transformers.SiglipVisionConfig, {"patch_size": 8, "image_size": 32}, (5, 5)),
    "convnext": (transformers.ConvNextConfig, {"hidden_sizes": [4, 8, 8, 16], "depths": [1, 1, 1, 1]}, (1, 1)),
    "swin": (
        transformers.SwinConfig,
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 5},
        (5, 5),
    ),
    "resnet": (transformers.ResNetConfig, {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 4}, (5, 5)),
    "clip": (transformers.CLIPConfig, {}, (5, 5)),
    "videomae": (transformers.VideoMAEConfig, {"patch_size": 8, "image_size": 40, "num_frames": 2}, (5, 5)),
    "vivit": (transformers.VivitConfig, {"image_size": 40, "num_frames": 2, "tubelet_size": [2, 8, 8]}, (5, 5)),
    "vjepa2": (
        transformers.VJEPA2Config,
        {"patch_size": 8, "crop_size": 40, "frames_per_clip": 2}
        | {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
        (5, 5),
    ),
}
OF_CLIPS = ("videomae", "vivit", "vjepa2")
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def public_folder(name: str, folder: Path) -> str:
    """A model of random weights as the hub would give it: config.json and model.safetensors."""
    kind, sizes, _ = PUBLIC[name]
    torch.manual_seed(3)
    if name == "clip":
        vision = TRANSFORMER | {"patch_size": 8, "image_size": 32}
        config = kind(vision_config=vision, text_config=TRANSFORMER | {"vocab_size": 9}, projection_dim=4)
    elif name in ("dinov2", "dinov3", "vit", "siglip", *OF_CLIPS):
        config = kind(**TRANSFORMER | sizes)
    else:
        config = kind(**sizes)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():  # fresh norms are all ones and zeros, fresh statistics too
        for seed, tensor in enumerate(model.state_dict().values()):
            if tensor.ndim == 1:
                tensor.copy_(0.5 + noise(len(tensor), seed=seed).abs())
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_local_folder_in_hub_format_becomes_an_encoder(name: str, tmp_path: Path) -> None:
    folder = public_folder(name, tmp_path / name)
    encoder = make_encoder(VisualConfig(encoder="auto", backbone=folder, pretrained=folder), 6).eval()
    report = load_visual_weights(encoder, folder, storage)
    assert {part for part in report.missing if part.startswith("projection.")} == set(report.missing)
    frames = noise(2, 2, 3, 40, 40)
    grid, mask = encoder(frames, no_padding(frames))
    assert grid.shape == (2, 2, 6, *PUBLIC[name][2])
    assert mask.shape == (2, 2, *PUBLIC[name][2])
    shaped = frames if name in OF_CLIPS else frames.flatten(0, 1)
    expected = plain_features(name, folder, shaped)
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(encoder.backbone(shaped), expected, rtol=1e-5, atol=1e-5)


def plain_features(name: str, folder: str, images: Tensor) -> Tensor:
    """The last feature map by Transformers' own models, without our code."""
    if name == "clip":
        model = transformers.CLIPModel.from_pretrained(folder).vision_model
    else:
        model = transformers.AutoModel.from_pretrained(folder)
    options = {"interpolate_pos_encoding": True} if name in ("vit", "siglip", "clip", "vivit") else {}
    output = model.eval()(images, **options).last_hidden_state
    if name in OF_CLIPS:
        return output[:, -25:].mT.unflatten(2, (1, 5, 5)).movedim(1, 2).expand(-1, 2, -1, -1, -1)
    if name == "convnext":  # the backbone norms its map, the whole model what it pools from it
        return model.layernorm(output.movedim(1, -1)).movedim(-1, 1)
    if output.ndim == 4:
        return output
    num_before = {"vit": 1, "clip": 1, "dinov2": 1, "dinov3": 3}.get(name, 0)
    return output[:, num_before:].transpose(1, 2).unflatten(2, PUBLIC[name][2])


@pytest.mark.parametrize("name", PUBLIC)
def test_only_what_the_grid_depends_on_asks_for_a_gradient(name: str, tmp_path: Path) -> None:
    folder = public_folder(name, tmp_path / name)
    encoder = make_encoder(VisualConfig(encoder="auto", backbone=folder), 6).train()
    frames = noise(1, 1, 3, 40, 40)
    encoder(frames, no_padding(frames))[0].sum().backward()
    asked = {key for key, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert asked == {key for key, parameter in encoder.named_parameters() if parameter.grad is not None}


def test_planes_of_a_clip_stand_in_time_and_an_image_is_a_clip_that_stands_still(tmp_path: Path) -> None:
    """Of ten tubelets' tokens the ones that change are those of the frames that change."""
    torch.manual_seed(0)
    config = PUBLIC["videomae"][0](**TRANSFORMER | PUBLIC["videomae"][1] | {"num_frames": 4, "num_hidden_layers": 0})
    config.save_pretrained(tmp_path)
    encoder = make_encoder(VisualConfig(encoder="auto", backbone=str(tmp_path)), 6).eval()
    frames = noise(1, 4, 3, 40, 40)
    other = frames.clone()
    other[:, 2:, :, 8:16, :8] += 1.0
    before, after = (encoder(clip, no_padding(clip))[0] for clip in (frames, other))
    moved = (before - after).abs().amax((0, 2)) > 1e-4
    expected = torch.zeros(4, 5, 5, dtype=torch.bool)
    expected[2:, 1, 0] = True
    assert torch.equal(moved, expected)
    image = encoder(frames[:, :1], no_padding(frames[:, :1]))[0]
    still = frames[:, :1].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(image[:, 0], encoder(still, no_padding(still))[0].mean(1))


@pytest.mark.parametrize(
    ("pixels", "processor"), [("clip", "CLIPImageProcessorPil"), ("half", "SiglipImageProcessorPil")]
)
def test_a_tower_sees_the_pixels_that_its_own_processor_makes(pixels: Pixels, processor: str, tmp_path: Path) -> None:
    folder = public_folder("siglip", tmp_path)
    encoder = make_encoder(VisualConfig(encoder="auto", backbone=folder, pixels=pixels), 16).eval()
    frames = torch.randint(0, 256, (1, 2, 40, 40, 3), dtype=torch.uint8)
    settings = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
    own = getattr(transformers, processor)()(list(frames[0].numpy()), **settings)["pixel_values"]
    grid, _ = encoder(normalise(frames), no_padding(frames.movedim(-1, 2)))
    torch.testing.assert_close(grid[0], encoder.backbone(own), rtol=1e-5, atol=1e-5)


def test_pixels_of_another_tower_are_refused_with_its_own(tmp_path: Path) -> None:
    config = VisualConfig(encoder="auto", backbone=str(tmp_path))
    refuse_other_pixels(config)  # nothing says what they were
    transformers.SiglipImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"it is imagenet, but .* mean \[0\.5, 0\.5, 0\.5\] .*: set it to half"):
        refuse_other_pixels(config)
    refuse_other_pixels(dataclasses.replace(config, pixels="half"))


def test_what_no_encoder_can_take_is_refused(tmp_path: Path) -> None:
    frames = noise(1, 1, 3, 16, 48)
    with pytest.raises(ValueError, match=r"16 × 48 px are too small: .* at least 32 px; raise data\.frame_size_px"):
        make_encoder(VisualConfig(encoder="pvt_v2_b0"), 6)(frames, no_padding(frames))
    folder = public_folder("vit", tmp_path)
    config = VisualConfig(encoder="auto", backbone=folder)
    frames = noise(1, 1, 3, 36, 36)
    with pytest.raises(ValueError, match=r"36 × 36 px do not fall into the encoder's patches of 8 px.*here 32 × 32"):
        make_encoder(config, 6)(frames, no_padding(frames))
    assert "patches of 8 px" in str(frame_size_problem(config, 36, 36))
    assert frame_size_problem(config, 40, 40) is None
    assert frame_size_problem(VisualConfig(), 8, 8) is None
    clips = VisualConfig(encoder="auto", backbone=public_folder("videomae", tmp_path / "clips"))
    assert frame_size_problem(clips, 40, 40, 2) is None
    for size, num_frames in ((48, 2), (40, 4), (40, 3)):
        with pytest.raises(ValueError, match=r"cannot take .* it was made for 2 frames of 40 × 40 px"):
            frame_size_problem(clips, size, size, num_frames)
    assert "at least 32 px" in str(frame_size_problem(VisualConfig(encoder="pvt_v2_b0"), 224, 24))


def test_backbones_that_are_not_there_or_see_no_images_are_refused(tmp_path: Path) -> None:
    absent = VisualConfig(encoder="auto", backbone=str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=r"model\.visual\.backbone=.*absent is neither a folder"):
        make_encoder(absent, 6)
    transformers.BertConfig(**TRANSFORMER).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'bert', which is no image network"):
        make_encoder(VisualConfig(encoder="auto", backbone=str(tmp_path)), 6)
    transformers.Siglip2VisionConfig(**TRANSFORMER).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the 'siglip2_vision_model' that .* cannot take .*missing 2 required"):
        make_encoder(VisualConfig(encoder="auto", backbone=str(tmp_path)), 6)
