"""Make a corpus of raw videos and captions: a manifest, and a ledger of rejected samples.

python -m jobs.prepare --corpus NAME --root FOLDER_OR_BUCKET --annotations FILE … --out FOLDER_OR_BUCKET [--dry-run]

out/manifest.parquet   a row per usable clip          (pipeline/corpus/manifest.py)
out/manifest/          the same in parts, with --in-parts
out/rejected.parquet   a row per sample that is not   (pipeline/corpus/ledger.py)
out/packets/           indexes of long videos         (pipeline/decode/packets.py)
out/prepare.json       what it was made from, counts, seconds: the same again does nothing
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import log_progress, run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.corpus.planning import describe_outline
    from jobs.corpus.preparation import PrepareConfig, describe, gather_inputs, prepare

    log_progress()
    config = parsing.read(PrepareConfig, argv, program="prepare.py", description=__doc__)
    print(describe_outline(gather_inputs(config).outline()) if config.dry_run else describe(prepare(config)))


if __name__ == "__main__":
    run_command(main)
