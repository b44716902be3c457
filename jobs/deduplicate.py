"""Find copies in a corpus, and between it and test sets: a report, and a manifest without them.

python -m jobs.deduplicate --manifest M --out FOLDER_OR_BUCKET [--against OTHER_MANIFEST …] [--write-filtered]

out/pairs.parquet      a row per pair of clips that show the same: exact, near or leak
out/deduplicate.json   counts, settings, seconds
out/manifest.parquet   with --write-filtered: the clips that stay
out/rejected.parquet   with --write-filtered: a row per clip that goes, with the one it copies

What frames look like is kept beside each manifest (…-fingerprints/), so that only new clips are decoded again.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import log_progress, run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.corpus.deduplication import DeduplicateConfig, deduplicate, describe

    log_progress()
    print(describe(deduplicate(parsing.read(DeduplicateConfig, argv, program="deduplicate.py", description=__doc__))))


if __name__ == "__main__":
    run_command(main)
