"""Show a corpus on one HTML page that opens offline.

Sizes, lengths, words, rejected samples, copies, and some of its clips.

python -m jobs.corpus_report --manifest M --out PAGE.html [--ledgers L …] [--pairs P] [--words W]

A section without data says what was missing.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.reports.corpus import CorpusReportConfig, corpus_page, read_corpus
    from pipeline import storage

    config = parsing.read(CorpusReportConfig, argv, program="corpus_report.py", description=__doc__)
    storage.write_bytes_atomic(storage.absolute(config.out), corpus_page(read_corpus(config)).encode())
    print(config.out)


if __name__ == "__main__":
    run_command(main)
