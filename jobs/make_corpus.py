"""Make the embedded corpus.

python -m jobs.make_corpus --out corpora/embedded
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.corpus.generation import MakeCorpus, run

    config = parsing.read(MakeCorpus, argv, program="make_corpus.py", description=__doc__)
    run(config)


if __name__ == "__main__":
    run_command(main)
