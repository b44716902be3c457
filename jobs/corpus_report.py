"""A corpus on one HTML page that opens offline: sizes, lengths, words, rejected samples, copies, and some of its clips.

python -m jobs.corpus_report --manifest M --out PAGE.html [--ledgers L …] [--pairs P] [--words W]

A section without data says what was missing. `corpus_page` is pure: the caller writes the file.
"""

from __future__ import annotations

import sys

from jobs.command_line.entry import run_command


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when the page is written, 1 with a message when it is not."""
    import tyro

    from jobs.reports.corpus import CorpusReportConfig, corpus_page, read_corpus
    from pipeline import storage

    config = tyro.cli(CorpusReportConfig, args=arguments, description="A corpus on one HTML page.")
    try:
        storage.write_bytes_atomic(storage.absolute(config.out), corpus_page(read_corpus(config)).encode())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(config.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
