"""Memory of frames is used again when nothing refers to it, and never before."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.stream.recycling import NUM_KEPT, RecycledArrays

SHAPE = (4, 3, 8, 8, 3)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_free_when_its_last_view_or_tensor_is_gone() -> None:
    allocate = RecycledArrays()
    first = allocate(SHAPE, np.uint8)
    place = address(first)
    view, tensor = first[1:3, 0], torch.from_numpy(first)[2]
    del first
    others = [allocate(SHAPE, np.uint8) for _ in range(3)]
    assert place not in map(address, others)
    del view
    assert address(allocate(SHAPE, np.uint8)) != place
    del tensor
    again = [allocate(SHAPE, np.uint8) for _ in range(NUM_KEPT)]
    assert place in map(address, again)


def test_contents_survive_what_is_allocated_after_them() -> None:
    allocate, rng = RecycledArrays(), np.random.default_rng(0)
    kept = []
    for number in range(40):
        array = allocate((int(rng.integers(1, 5)), 8, 8, 3), np.uint8)
        array[:] = number
        if number % 3:
            kept.append((number, torch.from_numpy(array)[..., :2]))
        if len(kept) > 5:
            del kept[int(rng.integers(5))]
        assert all((tensor == value).all() for value, tensor in kept)


def test_memory_of_another_size_is_not_kept_for_it() -> None:
    allocate = RecycledArrays()
    large = address(allocate((1000,), np.uint8))
    assert address(small := allocate((10,), np.uint8)) != large
    assert small.shape == (10,)
    assert allocate((0, 3), np.uint8).shape == (0, 3)
    assert allocate((2, 3), np.float32).dtype == np.float32
