"""The public door: `from snps3 import load`. A trained model is read from a run's folder, an export, or the hub.

May import `jobs.inference.model`, and only when a name is asked for: the command `snps3 --help` needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.inference.model import Model, Videos, decode, load

__all__ = ["Model", "Videos", "decode", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("jobs.inference.model"), name)
