"""Build a small index in this process, as `embed` does on a cluster."""

from __future__ import annotations

import pyarrow as pa

from jobs.inference.index import EmbedConfig, Embedder, rows_to_embed


def embed_here(config: EmbedConfig) -> list[str]:
    """Bring the index of local videos up to date. Return the newly embedded paths."""
    _, rows = rows_to_embed(config, config.videos, config.out)
    outcomes = Embedder(config.run, config.out, config)(pa.Table.from_pylist(rows)).to_pylist() if rows else []
    return [row["uri"] for row in outcomes if not row["reason"]]
