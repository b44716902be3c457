"""Copies in a corpus, and between it and test sets: a report, and a manifest without them.

python -m jobs.deduplicate --manifest M --out FOLDER_OR_BUCKET [--against OTHER_MANIFEST …] [--write-filtered]

out/pairs.parquet      a row per pair of clips that show the same: exact, near or leak
out/deduplicate.json   counts, settings, seconds
out/manifest.parquet   with --write-filtered: the clips that stay
out/rejected.parquet   with --write-filtered: a row per clip that goes, with the one it copies

What frames look like is kept beside each manifest (…-fingerprints.parquet), so that only new clips are decoded again.
"""

from __future__ import annotations

import sys

from jobs.command_line.entry import run_command


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when the corpus was searched, 1 with a message when it was not."""
    from jobs.command_line.data_job import run_data_job
    from jobs.corpus.deduplication import DeduplicateConfig, deduplicate, describe

    description = "Copies in a corpus, and between it and test sets."
    return run_data_job(DeduplicateConfig, deduplicate, describe, description, arguments)


if __name__ == "__main__":
    sys.exit(run_command(main))
