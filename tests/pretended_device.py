"""A pretended device for machines without one: tensors of the host that count as those of an accelerator.

`on_device(tensors)` marks tensors as the device's. Within it they say that they lie on `DEVICE`, what is computed from
them lies there too, and whatever would make a host wait for its device, copy between the two, or mix their tensors in
one operator raises DeviceError: in the forward pass, in the backward pass, in an optimizer's step.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cpu", 0)
"""Real tensors of the host have no index."""
WAITS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "unique_consecutive"),
    *("_unique", "_unique2", "repeat_interleave.Tensor", "bincount", "histc", "allclose", "item"),
}
"""Operators whose result, or its shape, a host has to know."""
TO_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}
NO_COPIES = {Tensor.numpy, Tensor.__array__}
BY_REAL_DEVICE = ("torch.nn.utils.clip_grad",)
"""They group tensors in C++, by where they really lie."""
GET_DEVICE = Tensor.device.__get__  # pyright: ignore[reportAttributeAccessIssue]


class DeviceError(AssertionError):
    """What a real device would refuse or wait for."""


class Places:
    """Where storages lie: on the device, on the host, or wherever they are needed (made inside torch)."""

    def __init__(self, waits: list[str] | None) -> None:
        self.waits, self.known = waits, dict[int, tuple[bool, weakref.ref]]()

    def refuse_wait(self, why: str) -> None:
        """Raise DeviceError, or note the wait where it is only counted."""
        if self.waits is None:
            raise DeviceError(why)
        self.waits.append(why)

    def mark(self, tensor: Tensor, is_device: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self.known[key] = (is_device, weakref.ref(storage, lambda _, key=key: self.known.pop(key, None)))

    def is_device(self, tensor: Tensor) -> bool | None:
        place = self.known.get(tensor.untyped_storage()._cdata)
        return place and place[0]


def tensors_of(*values: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Calls(TorchFunctionMode):
    """What Python asks of torch: where a tensor lies, constants, copies to the host."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == GET_DEVICE:
            return DEVICE if self.places.is_device(args[0]) else func(*args)
        if func is Tensor.backward:  # the mode is off within a call, and the backward pass shall be watched
            with self:
                return backward(args[0])
        if func is F.one_hot:  # looks at its numbers on a CPU only
            return (args[0][..., None] == torch.arange(args[1])).long()
        caller = sys._getframe(1).f_globals.get("__name__")
        is_to_host = func in TO_HOST or (func is Tensor.to and is_host(*args[1:], *kwargs.values()))
        if is_to_host and self.places.is_device(args[0]) and caller not in BY_REAL_DEVICE:
            self.places.refuse_wait(f"Tensor.{func.__name__} copies to the host")
            if func in NO_COPIES:
                raise DeviceError(f"Tensor.{func.__name__} of a tensor of the device")
            if func is not Tensor.tolist:
                self.places.mark(copy := args[0].detach().clone(), is_device=False)
                return copy
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not tensors_of(args, kwargs):
            if func is torch.tensor and kwargs.get("device") == DEVICE:
                self.places.refuse_wait("torch.tensor copies a constant of the host to the device")
            self.places.mark(result, is_device=kwargs.get("device") == DEVICE)
        return result


def backward(root: Tensor) -> Any:
    """What `Tensor.backward` does."""
    run, options = torch.autograd.graph._engine_run_backward, {"allow_unreachable": True, "accumulate_grad": True}
    return run((root,), (torch.ones_like(root),), False, False, (), **options)


def is_host(*arguments: Any) -> bool:
    """Whether the arguments of `Tensor.to` name the host."""
    return any(argument in ("cpu", torch.device("cpu")) for argument in arguments if not isinstance(argument, Tensor))


class Operators(TorchDispatchMode):
    """What torch does, in either pass: waits, and operators with tensors of both places."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # in the backward pass it would take this for calls of the project
            return self.checked(func, args, kwargs or {})

    def checked(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operator returns, marked."""
        name, overload = func._schema.name.removeprefix("aten::"), func._overloadname
        tensors = tensors_of(args, kwargs)
        places = {self.places.is_device(tensor) for tensor in tensors} - {None}
        is_moved = kwargs.get("device") == DEVICE
        if is_moved and tensors and True not in places:
            self.places.refuse_wait(f"{name} copies to the device")
        elif len(places) == 2:
            raise DeviceError(f"{name} mixes tensors of the host and of the device")
        is_device = is_moved or True in places
        if is_device and (name in WAITS or f"{name}.{overload}" in WAITS or is_mask_index(name, args)):
            self.places.refuse_wait(f"the host waits for {name}")
        result = func(*args, **kwargs)
        if is_device or False in places:
            for tensor in tensors_of(result):
                self.places.mark(tensor, is_device)
        return result


def is_mask_index(name: str, args: Any) -> bool:
    """Whether an operator is indexed by a mask, whose number of elements the host has to know."""
    is_indexed = name.startswith(("index", "_index_put")) and len(args) > 1 and isinstance(args[1], (list, tuple))
    return is_indexed and any(index is not None and index.dtype == torch.bool for index in args[1])


@contextlib.contextmanager
def on_device(tensors: Iterable[Tensor], waits: list[str] | None = None) -> Iterator[None]:
    """Within it, `tensors` and what is computed from them lie on the pretended device. With `waits`, waits and copies
    are noted there and only a mixture raises DeviceError."""
    places = Places(waits)
    for tensor in tensors:
        places.mark(tensor, is_device=True)
    looks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
    with (
        mock.patch("snps3_model.snps3.refuse_strange_ids"),  # on a CPU only
        mock.patch.dict(looks, default=lambda tensor: None),  # C++ does not know of the pretence
        Operators(places),
        Calls(places),
    ):
        yield
