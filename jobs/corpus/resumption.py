"""A pass of Ray Data over rows that goes on where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from pipeline.offline import kept


def computed_once(
    rows: pa.Table, function: Callable[[pa.Table], pa.Table], folder: str, schema: pa.Schema, **options: Any
) -> pa.Table:
    """Return the results of `rows`: those in `folder`, and of the others what `kept.compute` does with `options`.

    Ray is joined only if something is left to compute.
    """
    done, left = kept.parted(rows, folder, schema)
    if not len(left):
        return done
    from cluster.connection import connected_ray  # who has nothing to compute does not wait for Ray

    with connected_ray():
        return pa.concat_tables([done, kept.compute(left, function, folder, **options)])
