"""An index of some videos, made in this process: what `embed` does, without a cluster."""

from __future__ import annotations

import pyarrow as pa

from jobs.inference.index import EmbedConfig, Embedder, rows_to_embed


def embed_here(config: EmbedConfig) -> list[str]:
    """Bring the index of local videos up to date. Return the paths that were embedded now."""
    _, rows = rows_to_embed(config, config.videos, config.out)
    done = Embedder(config.run, config.out, config)(pa.Table.from_pylist(rows)).to_pylist() if rows else []
    return [row["uri"] for row in done if not row["reason"]]
