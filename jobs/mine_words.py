"""Count the significant words of captions, for any number of runs to share.

python -m jobs.mine_words --captions MANIFEST_OR_JSON_LINES --vocabulary FOLDER --out FOLDER_OR_BUCKET

out/significant_words.json   rank, counts and family of each id of the vocabulary     (pipeline/text/significance.py)
out/word_families.json       the families alone, as the published code keeps them
out/word_counts.json         part of speech → word → count, whatever the vocabulary
out/mine_words.json          what they were made from, and by what: the same again does nothing

python jobs/pretrain.py PRESET --text.vocabulary FOLDER --text.significant-words OUT/significant_words.json takes them.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import log_progress, run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.corpus.word_mining import MineConfig, describe, mine_words

    log_progress()
    print(describe(mine_words(parsing.read(MineConfig, argv, program="mine_words.py", description=__doc__))))


if __name__ == "__main__":
    run_command(main)
