"""The command line of a run: a preset, any field of it set anew, and `--dry-run`.

python jobs/pretrain.py tiny --name first --optim.lr 2e-4 --placement.num-workers 1 [--dry-run]
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import tyro

from jobs.launch.preflight import describe, survey
from jobs.run.config import PretrainConfig
from jobs.run.fields import current_arguments
from jobs.run.presets import PRESETS

NOT_A_NUMBER = {
    r"invalid literal for int\(\) with base 10: ('.*')": r"\1 is not a whole number",
    r"could not convert string to float: ('.*')": r"\1 is not a number",
}
"""What Python says of a word where a number is needed, and what we say."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was asked for on the command line."""

    config: Annotated[PretrainConfig, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print the plan, check paths and sizes, and start nothing."""


def parse(
    argv: Sequence[str] | None = None,
    *,
    program: str = "pretrain.py",
    presets: Mapping[str, tuple[str, Callable[[], PretrainConfig]]] = PRESETS,
) -> Command:
    """The preset named first, with the fields that were set after it.

    What cannot be is refused on stderr with exit code 2: an unknown preset or field with the nearest ones, a value
    that the configuration refuses in one line.
    """
    arguments = current_arguments(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(program, presets), file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    name = arguments[0]
    if name not in presets:
        refuse(_unknown_preset(name, presets))
    description, preset = presets[name]
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                Command,
                default=Command(config=preset()),
                args=arguments[1:],
                prog=f"{program} {name}",
                description=description,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.EnumChoicesFromValues),
            )
    except ValueError as error:  # of a rule between parts of the configuration
        refuse(str(error))
    except SystemExit:
        if message := _value_error(box.getvalue()):
            refuse(message)
        sys.stderr.write(box.getvalue())
        raise


def answered(command: Command) -> int | None:
    """Exit code of what needs no start: a dry run, 1 if it found problems; a run with problems, 2. None: go on."""
    plan = survey(command.config)
    if command.dry_run:
        print(describe(plan))
        return 1 if plan.problems else 0
    if plan.problems:
        print("\n".join(f"error: {problem}" for problem in plan.problems), file=sys.stderr)
        return 2
    return None


def option(field: str, value: Any) -> list[str]:
    """A field with its value, unrounded, as the command line takes it."""
    path, _, last = field.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return [f"--{path}.{'' if value else 'no-'}{last}"]
    values = map(str, value) if isinstance(value, tuple) else [str(value)]
    return [f"--{path}.{last}" if path else f"--{last}", *values]


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What comes before `--`, and the preset and its fields after it, by default `tiny`."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :]) or ["tiny"]


def checked(arguments: Sequence[str], *, name: str, program: str) -> PretrainConfig:
    """The configuration that the runs of `name` have in common; refused if none of them could start. With `--dry-run`
    the plan of one is shown, and nothing starts."""
    preset, *options = arguments
    command = parse([preset, "--name", f"{name}-base", *options], program=program)
    if (status := answered(command)) is not None:
        sys.exit(status)
    return command.config


def _usage(program: str, presets: Mapping[str, tuple[str, object]]) -> str:
    width = max(map(len, presets))
    lines = "\n".join(f"  {name:{width}}  {description}" for name, (description, _) in presets.items())
    return (
        f"usage: {program} PRESET [--FIELD VALUE …] [--dry-run]\n\n{lines}\n\n"
        f"{program} PRESET --help lists every field with its meaning and its value in that preset"
    )


def _unknown_preset(name: str, presets: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, presets, n=1, cutoff=0.4)
    if name.startswith("-"):
        hint = f"the name of a preset comes before the fields, as in `{next(iter(presets))} {name}`"
    else:
        hint = f"did you mean {near[0]}?" if near else "name one of the presets"
    return f"there is no preset {name!r}; {hint} (presets: {', '.join(presets)})"


def _value_error(box: str) -> str | None:
    """The message in the frame that tyro draws around a ValueError of one part of the configuration, unframed."""
    lines = [line.strip("│╭╮╰╯─| ") for line in box.splitlines()]
    lines = [line for line in lines if line.strip("-+") or not line]  # without the rules of a frame in ASCII
    if not lines or "Value error" not in lines[0]:
        return None
    stop = next((number for number, line in enumerate(lines) if number and _ends_message(line)), len(lines))
    message = " ".join(lines[1:stop]).removeprefix("Error parsing ")
    for pattern, plain in NOT_A_NUMBER.items():
        message = re.sub(pattern, plain, message)
    return message.partition(": ")[2] if message.startswith("config") else message


def _ends_message(line: str) -> bool:
    return not line or line.startswith(("Argument helptext:", "For full helptext,"))


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What the block says cannot be is refused."""
    try:
        yield
    except (ValueError, FileNotFoundError, PermissionError, ConnectionError) as error:
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    """Ends with exit code 2 and a line on stderr."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
