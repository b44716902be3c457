"""Show the page on a few films that are drawn on the spot, with a model that was trained on such.

python jobs/demo.py                    the released model, without training
python jobs/demo.py MODEL              the folder of a run, of an exported model, or its name on the hub
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.serving.demo import DemoConfig, demo

    demo(parsing.read(DemoConfig, argv, program="demo.py", description=__doc__))


if __name__ == "__main__":
    run_command(main)
