"""Pack a prepared corpus into few large files: raw bytes, or the clips' frames as JPEG.

python -m jobs.pack --manifest CORPUS/manifest.parquet --out FOLDER_OR_BUCKET [--packing.content raw]

out/shards/*.parquet   the data, and an index of each shard     (pipeline/offline/shards.py)
out/manifest.parquet   as before, its uris point into the shards: train on it instead of the first one
out/rejected.parquet   clips that could not be packed
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import log_progress, run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.corpus.packing import PackConfig, pack
    from jobs.corpus.preparation import describe

    log_progress()
    print(describe(pack(parsing.read(PackConfig, argv, program="pack.py", description=__doc__))))


if __name__ == "__main__":
    run_command(main)
