"""Makes the embedded corpus: `python -m jobs.make_corpus --out corpora/embedded`."""

from __future__ import annotations

import sys

from jobs.command_line.entry import run_command


def main() -> None:
    """Command line."""
    import tyro

    from jobs.corpus.generation import MakeCorpus, run

    config = tyro.cli(MakeCorpus, description=__doc__)
    try:
        run(config)
    except ValueError as error:
        sys.exit(f"corpus: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
