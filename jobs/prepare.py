"""Raw videos and captions in; manifest and ledger of rejected samples out, as a Ray Data job.

python -m jobs.prepare --corpus NAME --root FOLDER_OR_BUCKET --annotations FILE … --out FOLDER_OR_BUCKET

out/manifest.parquet   a row per usable clip          (pipeline/corpus/manifest.py)
out/rejected.parquet   a row per sample that is not   (pipeline/corpus/ledger.py)
out/prepare.json       what it was made from, counts, seconds: the same again does nothing
"""

from __future__ import annotations

import sys

from jobs.command_line.entry import run_command


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when the corpus is prepared, 1 with a message when it is not."""
    from jobs.command_line.data_job import run_data_job
    from jobs.corpus.preparation import PrepareConfig, describe, prepare

    description = "Raw videos and captions in; manifest.parquet and rejected.parquet out."
    return run_data_job(PrepareConfig, prepare, describe, description, arguments)


if __name__ == "__main__":
    sys.exit(run_command(main))
