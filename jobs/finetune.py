"""Fine-tune a pre-trained run on a task: `ray job submit -- python jobs/finetune.py RECIPE --run RUN --name NAME …`.

The network, its vocabulary and the first weights are those of RUN; the recipe says what is learned and how. Every field
can be set anew; from scratch with `--model.initial-weights None`. The same command again goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.command_line.entry import run_command, run_training

if TYPE_CHECKING:
    from jobs.command_line import parsing
    from jobs.run.config import PretrainConfig

import argparse
import functools
import sys


def parse(argv: list[str]) -> parsing.Command:
    """What was asked for; refused on stderr with exit code 2."""
    from jobs.command_line import parsing
    from jobs.run.datasets import known_recipes
    from jobs.run.recipes import fine_tuning
    from jobs.run.run_identity import config_of
    from pipeline import storage

    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--run")
    known, rest = early.parse_known_args(argv)
    recipes = known_recipes()
    if not known.run:
        if rest and rest[0] in recipes:
            parsing.refuse("--run must name the folder of the pre-trained run, as in --run runs/tiny")
        unusable = {name: (recipe.title, _no_run) for name, recipe in recipes.items()}
        return parsing.parse(rest, program="finetune.py", presets=unusable)
    folder = storage.absolute(known.run)
    try:
        run = config_of(folder)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        parsing.refuse(f"--run {known.run}: {error}")
    presets = {
        name: (recipe.title, functools.partial(fine_tuning, recipe, run, folder)) for name, recipe in recipes.items()
    }
    return parsing.parse(rest, program="finetune.py", presets=presets)


def _no_run() -> PretrainConfig:
    raise ValueError("--run must name the folder of the pre-trained run")


def main(argv: list[str] | None = None) -> int:
    """Exit status of the command line."""
    return run_training(parse(sys.argv[1:] if argv is None else argv), program="finetune")


if __name__ == "__main__":
    sys.exit(run_command(main))
