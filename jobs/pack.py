"""A prepared corpus packed into few large files, as a Ray Data job: raw bytes, or the clips' frames as JPEG.

python -m jobs.pack --manifest CORPUS/manifest.parquet --out FOLDER_OR_BUCKET [--packing.content raw]

out/shards/*.parquet   the data, and an index of each shard     (pipeline/offline/shards.py)
out/manifest.parquet   as before, its uris point into the shards: train on it instead of the first one
out/rejected.parquet   clips that could not be packed
"""

from __future__ import annotations

import sys

from jobs.command_line.entry import run_command


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when the corpus is packed, 1 with a message when it is not."""
    from jobs.command_line.data_job import run_data_job
    from jobs.corpus.packing import PackConfig, pack
    from jobs.corpus.preparation import describe

    description = "A prepared corpus packed into few large files: raw bytes, or frames as JPEG."
    return run_data_job(PackConfig, pack, describe, description, arguments)


if __name__ == "__main__":
    sys.exit(run_command(main))
