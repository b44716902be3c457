"""Captions of any corpus in; its significant words out, as a Ray Data job. Any number of runs can share them.

python -m jobs.mine_words --captions MANIFEST_OR_JSON_LINES --vocabulary FOLDER --out FOLDER_OR_BUCKET

out/significant_words.json   rank, counts and family of each id of the vocabulary     (pipeline/text/significance.py)
out/word_families.json       the families alone, as the published code keeps them
out/word_counts.json         part of speech → word → count, whatever the vocabulary
out/mine_words.json          what they were made from, and by what: the same again does nothing

python jobs/pretrain.py PRESET --text.vocabulary FOLDER --text.significant-words OUT/significant_words.json takes them.
"""

from __future__ import annotations

import sys

from jobs.command_line.entry import run_command


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when the words are there, 1 with a message when they are not."""
    from jobs.command_line.data_job import run_data_job
    from jobs.corpus.word_mining import MineConfig, describe, mine_words

    return run_data_job(MineConfig, mine_words, describe, "Captions in; significant_words.json out.", arguments)


if __name__ == "__main__":
    sys.exit(run_command(main))
