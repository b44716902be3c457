"""Serve the page and the JSON API of an index to others, by replicas on Ray.

SNPS3_TOKEN=… python jobs/serve.py INDEX --host 0.0.0.0 --replicas 4

/openapi.json describes the API. A replica that is gone is started again, and what it was asked is asked of another.
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    from jobs.serving.service import ServeConfig, serve

    serve(parsing.read(ServeConfig, argv, program="serve.py", description=__doc__))


if __name__ == "__main__":
    run_command(main)
