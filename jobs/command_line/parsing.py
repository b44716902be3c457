"""Parse the command line of a run: a preset, overrides of its fields, and `--dry-run`.

python jobs/pretrain.py tiny --name first --optim.lr 2e-4 --placement.num-workers 1 [--dry-run]
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

import tyro
import tyro._errors  # private: pyproject.toml caps the version, and tests/jobs/test_cli.py reads every refusal
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from jobs.run.config import PretrainConfig
from jobs.run.fields import current_arguments
from jobs.run.presets import PRESETS
from jobs.tracking import voice
from pipeline.nearest import did_you_mean

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A parsed command line."""

    config: Annotated[PretrainConfig, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print the plan, check paths and sizes, and start nothing."""


def parse(
    argv: Sequence[str] | None = None,
    *,
    program: str = "pretrain.py",
    presets: Mapping[str, tuple[str, Callable[[], PretrainConfig]]] = PRESETS,
) -> Command:
    """Parse a preset and the fields set after it.

    Exit with status 2 and a message on stderr for an unknown preset or field, with the nearest names, and for an
    invalid value.
    """
    arguments = current_arguments(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(program, presets), file=sys.stdout if arguments else voice.terminal_stream())
        sys.exit(0 if arguments else 2)
    name = arguments[0]
    if name not in presets:
        refuse(_unknown_preset(name, presets))
    description, preset = presets[name]
    default = Command(config=preset())
    return read(Command, arguments[1:], program=f"{program} {name}", description=description, default=default)


def read(
    config_type: type[Config],
    argv: Sequence[str] | None = None,
    *,
    program: str,
    description: str | None,
    default: Config | None = None,
) -> Config:
    """Parse a command line into a dataclass; exit with status 2 and a one-line message for an invalid value."""
    start: Any = {} if default is None else {"default": default}
    try:
        # tyro writes its box of similar options to stderr, which may be the log
        with contextlib.redirect_stderr(voice.terminal_stream()), tyro._errors.on_parse_error(_refuse_value):
            return tyro.cli(
                config_type,
                args=argv,
                prog=program,
                description=description,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.EnumChoicesFromValues),
                registry=_NUMBERS,
                **start,
            )
    except ValueError as error:  # a rule over several parts of the configuration
        refuse(str(error))


def preflight_status(command: Command) -> int | None:
    """Check the run; return None if it may start, else the exit status: 0 or 1 after a dry run, 2 for problems."""
    from jobs.launch.preflight import describe, survey

    plan = survey(command.config)
    if command.dry_run:
        print(describe(plan))
        return 1 if plan.problems else 0
    if plan.problems:
        voice.say("\n".join(f"error: {problem}" for problem in plan.problems))
        return 2
    return None


def option(field: str, value: Any) -> list[str]:
    """Return the arguments that set a field to `value`, unrounded."""
    path, _, last = field.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return [f"--{path}.{'' if value else 'no-'}{last}"]
    values = map(str, value) if isinstance(value, tuple) else [str(value)]
    return [f"--{path}.{last}" if path else f"--{last}", *values]


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before `--`, and the preset with its fields after it, by default `tiny`."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :]) or ["tiny"]


def parse_checked(arguments: Sequence[str], *, name: str, program: str) -> PretrainConfig:
    """Return the configuration that the runs of `name` share; exit if it has problems. With `--dry-run`, print the plan
    of one run and exit."""
    preset, *options = arguments
    command = parse([preset, "--name", f"{name}-base", *options], program=program)
    if (status := preflight_status(command)) is not None:
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
    hint = did_you_mean(name, presets) or "name one of the presets"
    if name.startswith("-"):
        hint = f"the name of a preset comes before the fields, as in `{next(iter(presets))} {name}`"
    return f"there is no preset {name!r}; {hint} (presets: {', '.join(presets)})"


def _refuse_value(event: tyro._errors.ParseErrorEvent) -> None:
    """Report an invalid value in one line instead of tyro's box. Unknown options keep tyro's list of similar ones."""
    if isinstance(event, tyro._errors.InstantiationFailure):
        names = event.argument.lowered.name_or_flags if event.argument else ()
        refuse(": ".join([*names[:1], event.message]))


_NUMBERS = ConstructorRegistry()


@_NUMBERS.primitive_rule
def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
    """Return the parser of int and float fields, whose error names the argument that is not a number."""
    kind = info.type
    if kind not in (int, float):
        return None

    def read_number(words: list[str]) -> float:
        try:
            return kind(words[0])
        except ValueError as error:
            raise ValueError(f"{words[0]!r} is not a {'whole ' * (kind is int)}number") from error

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=read_number,
        is_instance=lambda value: isinstance(value, (int, kind)),
        str_from_instance=lambda value: [str(value)],
    )


def refuse(message: str) -> NoReturn:
    """Print an error on stderr and exit with status 2."""
    voice.say(f"error: {message}")
    sys.exit(2)
