"""Make the folder of the model that ships with the package from a run of `make pretrain`.

python jobs/release.py runs/tiny                        the package's own folder
python jobs/release.py runs/tiny FOLDER
python jobs/release.py runs/tiny FOLDER --check         does the run give this folder, byte by byte?

model.safetensors (float16)  config.json  identity.json  tokenizer.json  significant_words.json
cards/retrieval-test.json    scores.json  README.md      the scores of these weights, and of the run's
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> int:
    """Return the exit status of the command line: 1 where --check finds a difference."""
    from jobs.inference.release import ReleaseConfig, find_changes, release

    config = parsing.read(ReleaseConfig, argv, program="release.py", description=__doc__)
    if not config.check:
        print(release(config))
        return 0
    changes = find_changes(config)
    print("\n".join(changes) or f"{config.run} gives {config.out}, byte by byte")
    return int(bool(changes))


if __name__ == "__main__":
    run_command(main)
