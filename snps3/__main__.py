"""`snps3 COMMAND …`: each command of `jobs` under one name, beside `python jobs/COMMAND.py` and `python -m`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

from jobs.command_line.entry import REFUSED, run_command
from pipeline.nearest import did_you_mean


def commands() -> dict[str, str]:
    """Return what each command does, by name: the first line of its file, which is read and not imported."""
    (folder,) = getattr(importlib.util.find_spec("jobs"), "submodule_search_locations", None) or ("",)
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in Path(folder).glob("[a-z]*.py")}
    return {name.replace("_", "-"): docs[name].partition("\n")[0] for name in sorted(docs) if name != "model"}


def usage() -> str:
    """Return the list of commands."""
    lines = "\n".join(f"  {name:14} {text}" for name, text in commands().items())
    return f"usage: snps3 COMMAND …\n\n{lines}\n\nsnps3 COMMAND --help says what a command takes"


def main() -> int:
    """Return the exit status of the command that the first word names."""
    name = sys.argv[1].replace("_", "-") if len(sys.argv) > 1 else ""
    if name in ("", "-h", "--help"):
        print(usage(), file=sys.stdout if name else sys.stderr)
        return 0 if name else REFUSED
    if name not in commands():
        hint = did_you_mean(name, commands()) or "name one of the commands"
        print(f"error: there is no command {name!r}; {hint} (commands: {', '.join(commands())})", file=sys.stderr)
        return REFUSED

    def run() -> int | None:
        return importlib.import_module(f"jobs.{name.replace('-', '_')}").main()

    del sys.argv[1]
    return run_command(run, name)


if __name__ == "__main__":
    sys.exit(main())
