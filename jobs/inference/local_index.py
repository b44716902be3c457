"""An index of some videos, made in this process: what `embed` does, without a cluster."""

from __future__ import annotations

import pyarrow as pa

from jobs.inference.index import EmbedConfig, Embedder, bring_up_to_date, claim, parts_of
from pipeline import storage


def embed_here(config: EmbedConfig) -> list[str]:
    """Bring the index of local videos up to date. Return the paths that were embedded now."""
    claim(config, config.videos, config.out)
    versions = {storage.join(config.videos, path): of for path, of in storage.fingerprints(config.videos).items()}
    parts = parts_of(versions, bring_up_to_date(config.out, versions), config.videos_per_part)
    rows = [{"part": name, "uris": part, "versions": [versions[uri] for uri in part]} for name, part in parts]
    done = Embedder(config.run, config.out, config)(pa.Table.from_pylist(rows)).to_pylist() if rows else []
    return [row["uri"] for row in done if not row["reason"]]
