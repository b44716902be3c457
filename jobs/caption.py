"""Caption clips by an endpoint of OpenAI's kind, beside the captions that are there.

OPENAI_API_KEY=… python -m jobs.caption --manifest M --out FOLDER_OR_BUCKET --endpoint.url URL --endpoint.model NAME

out/manifest.parquet   the clips with the new captions; the column caption_sources says who wrote which
out/rejected.parquet   a row per clip that the endpoint gave no caption for
out/answers/           what was answered so far: the same again asks for the rest
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import log_progress, run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.corpus.captioning import CaptionConfig, caption, describe

    log_progress()
    print(describe(caption(parsing.read(CaptionConfig, argv, program="caption.py", description=__doc__))))


if __name__ == "__main__":
    run_command(main)
