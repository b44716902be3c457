"""Fine-tune a pre-trained run on a task: `ray job submit -- python jobs/finetune.py RECIPE --run RUN --name NAME …`.

The network, its vocabulary and the first weights are those of RUN; the recipe says what is learned and how. Every field
can be set anew; from scratch with `--model.initial-weights None`. The same command again goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.command_line.entry import ExitStatus, run_command

if TYPE_CHECKING:
    from jobs.command_line import parsing

import argparse
import functools
import sys


def parse(argv: list[str]) -> parsing.Command:
    """What was asked for; refused on stderr with exit code 2."""
    from jobs.command_line import parsing
    from jobs.run.recipes import RECIPES
    from jobs.run.run_identity import config_of
    from pipeline import storage

    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--run")
    known, rest = early.parse_known_args(argv)
    run: Any = None  # then nothing but the usage is printed
    folder = storage.absolute(known.run or ".")
    if known.run:
        try:
            run = config_of(folder)
        except (ValueError, FileNotFoundError, PermissionError) as error:
            parsing.refuse(f"--run {known.run}: {error}")
    elif rest and rest[0] in RECIPES:
        parsing.refuse("--run must name the folder of the pre-trained run, as in --run runs/tiny")
    presets = {
        name: ((recipe.__doc__ or "").splitlines()[0], functools.partial(recipe, run, folder))
        for name, recipe in RECIPES.items()
    }
    return parsing.parse(rest, program="finetune.py", presets=presets)


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0 done or stopped, 1 lost or diverged, 2 refused."""
    from jobs.command_line import parsing
    from jobs.launch import driver

    command = parse(sys.argv[1:] if argv is None else argv)
    if (answer := parsing.answered(command)) is not None:
        return answer
    with ExitStatus("finetune") as status:
        driver.pretrain(command.config)
    return status.value


if __name__ == "__main__":
    sys.exit(run_command(main))
