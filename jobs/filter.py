"""Score the clips of a corpus, and with thresholds write a new version of its manifest.

python -m jobs.filter --manifest M --out FOLDER_OR_BUCKET [--keep "motion>=0.02" "blur<=3" "letterbox<=0.1"]

out/scores.parquet     motion, blur, black, static, letterbox, text, aspect, caption_words, caption_language and, with
                       --model, match by clip_id
out/filter.json        quantiles of the scores, and what each rule takes out; filter.html shows the clips at each border
out/manifest.parquet   with --keep: the clips that stay; out/rejected.parquet has the others
out/scores/            what was scored so far: the same again goes on from there
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import log_progress, run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.corpus.filtering import FilterConfig, describe, filter_clips

    log_progress()
    config = parsing.read(FilterConfig, argv, program="filter.py", description=__doc__)
    if config.model is None:
        print(describe(filter_clips(config)))
        return
    from jobs.inference.clip_match import ClipMatcher

    print(describe(filter_clips(config, ClipMatcher.load)))


if __name__ == "__main__":
    run_command(main)
