"""Make the embedded corpus.

python -m jobs.make_corpus --out corpora/embedded
"""

from __future__ import annotations

import sys

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> int:
    """Return the exit status of the command line."""
    from jobs.corpus.generation import MakeCorpus, run

    config = parsing.read(MakeCorpus, argv, program="make_corpus.py", description=__doc__)
    run(config)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
