"""Find videos by a sentence: `python jobs/search.py INDEX "a red ring rises"`, in an index of jobs/embed.py.

The dual encoder's vectors choose `--rerank` videos, the cross encoder puts them in order.
"""

from __future__ import annotations

import sys

from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> int:
    """Exit status of the command line."""
    import tyro

    from jobs.command_line import parsing
    from jobs.inference.query import SearchConfig, search

    config = tyro.cli(SearchConfig, args=argv, prog="search.py", description=__doc__)
    with parsing.refusing():
        found = search(config)
    for one in found:
        print(f"{one.cross:8.3f}  {one.dual:8.3f}  {one.uri}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
