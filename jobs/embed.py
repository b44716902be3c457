"""Embed a folder or bucket of videos.

ray job submit -- python jobs/embed.py RUN --videos FOLDER --out FOLDER

    list of videos ─ parts of a few ─► windows decoded (CPU) and embedded (a model per worker) ─► OUT/part-….parquet

A row is a window, with its times and a strip of its frames. What is there is not embedded again: the same command goes
on after a stop, adds new videos and changed ones, and drops those that are gone. A video that cannot be read is a row
of OUT/rejected.parquet, and not of the index. `jobs/search.py` answers from OUT.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.inference.index import REJECTED, EmbedConfig, embed

    config = parsing.read(EmbedConfig, argv, program="embed.py", description=__doc__)
    counts = embed(config)
    print(
        f"{counts['videos']} videos: {counts['embedded']} embedded now, {counts['rejected']} rejected now "
        f"({config.out}/{REJECTED}), the others are in {config.out} already"
    )


if __name__ == "__main__":
    run_command(main)
