"""The public door: `from jobs.model import load`."""

from __future__ import annotations

from jobs.inference.model import Model, Videos, decode, load

__all__ = ["Model", "Videos", "decode", "load"]
