"""Download the files that a list of URLs names, to a folder or a bucket.

python -m jobs.download --table FILE --out FOLDER_OR_BUCKET [--column NAME]

out/HOST/…             the files, named after their URLs
out/clips.jsonl        the rows of the table, each with clip_name and sha256: `prepare --root out --annotations` of it
out/rejected.parquet   a row per row without a file
out/downloads/         what was fetched so far: the same again fetches the rest
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import log_progress, run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.corpus.downloading import DownloadConfig, describe, download

    log_progress()
    print(describe(download(parsing.read(DownloadConfig, argv, program="download.py", description=__doc__))))


if __name__ == "__main__":
    run_command(main)
