"""Split long videos into clips: times of shots, of a stride or of an annotation, for prepare.

python -m jobs.split --videos FOLDER_OR_BUCKET --out FOLDER_OR_BUCKET [--by shots|stride|times] [--detector transnetv2]

out/clips.parquet      clip_name, start and end of each clip: `prepare --annotations` of it makes a manifest
out/rejected.parquet   a row per video that cannot be read
out/spans/             what was found in each video: the same again goes on from there
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import log_progress, run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.corpus.splitting import SplitConfig, describe, split

    log_progress()
    print(describe(split(parsing.read(SplitConfig, argv, program="split.py", description=__doc__))))


if __name__ == "__main__":
    run_command(main)
