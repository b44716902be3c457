"""Video Swin against recorded numbers, and what its windows may and may not see."""

from __future__ import annotations

import pytest
import torch
from golden import golden
from torch import Tensor

from snps3_model import video_swin
from snps3_model.video_swin import PatchMerging, SwinBlock, SwinGeometry, VideoSwin, window_layout

RTOL = ATOL = 2e-5
FULL_SIZE_TOLERANCE = 5e-5

WINDOWS = golden("swin_windows")
SMALL = golden("visual_swin")
FULL_SIZE = golden("visual_swin_small_full_size")


def close(found: Tensor, expected: Tensor, tolerance: float = ATOL) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def triple(values) -> tuple[int, int, int]:
    return tuple(int(value) for value in values)


@pytest.mark.parametrize(
    "case", [name.removeprefix("out/relative_index/") for name in WINDOWS.arrays.files if "relative_index/" in name]
)
def test_golden_relative_index(case: str) -> None:
    window = triple(case.removeprefix("w").split("_"))
    expected = WINDOWS.tensor(f"out/relative_index/{case}").long()
    assert torch.equal(video_swin.relative_index(window, window), expected)


def test_golden_partition() -> None:
    cells, window = WINDOWS.tensor("in/partition/x"), triple(WINDOWS["in/partition/window"])
    windows = video_swin.partition(cells, window)
    assert torch.equal(windows.flatten(0, 1), WINDOWS.tensor("out/partition/windows"))
    joined = video_swin.join(windows, window, triple(cells.shape[1:4]))
    assert torch.equal(joined, WINDOWS.tensor("out/partition/reversed"))


@pytest.mark.parametrize("case", WINDOWS.cases("in/shift_mask", ("dims_window_shift",)))
def test_golden_shift_mask(case: str) -> None:
    sizes, window, shift = map(triple, WINDOWS[f"in/shift_mask/{case}/dims_window_shift"])
    expected = WINDOWS.tensor(f"out/shift_mask/{case}/blocked")
    assert torch.equal(video_swin.shift_mask(sizes, window, shift), expected)


def test_golden_effective_window() -> None:
    for given, expected in zip(
        WINDOWS["in/effective_window/size_window_shift"], WINDOWS["out/effective_window/window_shift"], strict=True
    ):
        assert video_swin.effective_window(*map(triple, given)) == tuple(map(triple, expected))


@pytest.mark.parametrize("case", WINDOWS.cases("in", ("shift",)))
def test_golden_blocks(case: str) -> None:
    cells, weights = WINDOWS.tensor(f"in/{case}/x"), WINDOWS.tensors(f"w/{case}")
    num_heads = weights["attn.relative_position_bias_table"].shape[1]
    window = (8, 7, 7)
    block = SwinBlock(cells.shape[-1], num_heads, window).eval()
    block.load_state_dict(weights)
    layout = window_layout(triple(cells.shape[1:4]), window, triple(WINDOWS[f"in/{case}/shift"]), reference=True)
    close(block(cells, layout), WINDOWS.tensor(f"out/{case}/y"))


def test_golden_merging() -> None:
    cells = WINDOWS.tensor("in/merge/x")
    merging = PatchMerging(cells.shape[-1])
    merging.load_state_dict(WINDOWS.tensors("w/merge"))
    close(merging(cells), WINDOWS.tensor("out/merge/y"))


def swin(settings: dict, weights: dict[str, Tensor], *, reference: bool = True) -> VideoSwin:
    geometry = SwinGeometry(
        embed=settings["embed_dim"],
        depths=tuple(settings["depths"]),
        heads=tuple(settings["num_heads"]),
        window=triple(settings["window"]),
        patch=triple(settings["patch"]),
    )
    network = VideoSwin(geometry, reference=reference).eval()
    network.load_state_dict(weights)
    return network


@pytest.mark.parametrize("case", SMALL.cases("in", ("frames", "frames_seed")))
@torch.no_grad()
def test_golden_small_video_swin(case: str) -> None:
    network, frames = swin(SMALL.settings, SMALL.tensors("w/swin")), SMALL.frames(case)
    cells = network.patch_embed(frames)
    outputs = {"patch_embed": cells}
    for number, stage in enumerate(network.layers, 1):
        outputs[f"stage{number}"] = cells = stage(cells)
    for name, output in outputs.items():
        if f"out/{case}/{name}_mean_std" in SMALL:
            close(torch.stack([output.mean(), output.std()]), SMALL.tensor(f"out/{case}/{name}_mean_std"))
        if f"out/{case}/{name}" in SMALL:
            close(output.permute(0, 4, 1, 2, 3), SMALL.tensor(f"out/{case}/{name}"))
    close(network(frames), SMALL.tensor(f"out/{case}/grid_feature"))


@torch.no_grad()
def test_golden_whole_windows_are_the_same_in_both_readings_of_the_bias_table() -> None:
    weights = SMALL.tensors("w/swin")
    for case in SMALL.cases("in", ("frames", "frames_seed")):
        frames = SMALL.frames(case)
        ours = swin(SMALL.settings, weights, reference=False)(frames)
        is_whole = min(frames.shape[-2:]) >= 32 * 7
        error = (ours - SMALL.tensor(f"out/{case}/grid_feature")).abs().max()
        assert (error < ATOL) == is_whole, case


@pytest.fixture(scope="module")
def full_size() -> VideoSwin:
    return swin(FULL_SIZE.settings, FULL_SIZE.rebuilt_weights())


@pytest.mark.parametrize("case", FULL_SIZE.cases("in", ("frames_seed",)))
@torch.no_grad()
def test_golden_video_swin_of_full_size(case: str, full_size: VideoSwin) -> None:
    grid = full_size(FULL_SIZE.frames(case))
    assert list(grid.shape) == FULL_SIZE[f"out/{case}/shape"].tolist()
    close(grid.mean((-2, -1)), FULL_SIZE.tensor(f"out/{case}/spatial_mean"), FULL_SIZE_TOLERANCE)
    slices = [name for name in FULL_SIZE.arrays.files if name.startswith(f"out/{case}/grid_feature_every_")]
    for name in slices:
        every = int("".join(filter(str.isdigit, name.rpartition("/")[2])))
        close(grid[:, :, ::every], FULL_SIZE.tensor(name), FULL_SIZE_TOLERANCE)
    assert slices
