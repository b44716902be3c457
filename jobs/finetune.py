"""Fine-tune a pre-trained run on a task.

ray job submit -- python jobs/finetune.py RECIPE --run RUN --name NAME …

The network, its vocabulary and the first weights are those of RUN; the recipe says what is learned and how. Every field
can be set anew; from scratch with `--model.initial-weights None`. The same command again resumes.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def parse(argv: list[str] | None) -> parsing.Command:
    """Return the recipe with its fields; a run that is not there is refused."""
    from jobs.run.datasets import known_recipes
    from jobs.run.recipes import fine_tuning
    from jobs.run.run_identity import config_of
    from pipeline import storage

    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--run", default="")
    known, rest = early.parse_known_args(argv)
    run: Any = None
    recipes = known_recipes()
    folder = storage.absolute(known.run)
    if known.run:
        try:
            run = config_of(folder)
        except (ValueError, FileNotFoundError, PermissionError) as error:
            parsing.refuse(f"--run {known.run}: {error}")
    elif rest and rest[0] in recipes:
        parsing.refuse("--run must name the folder of the pre-trained run, as in --run runs/tiny")
    presets = {
        name: (recipe.title, functools.partial(fine_tuning, recipe, run, folder)) for name, recipe in recipes.items()
    }
    return parsing.parse(rest, program="finetune.py", presets=presets)


def main(argv: list[str] | None = None) -> int:
    """Return the exit status of the command line."""
    command = parse(argv)
    if (status := parsing.preflight_status(command)) is not None:
        return status

    from jobs.launch.driver import pretrain

    pretrain(command.config)
    return 0


if __name__ == "__main__":
    run_command(main)
