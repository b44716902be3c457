"""The command line that every job on a corpus has."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

Config = TypeVar("Config")
Outcome = TypeVar("Outcome")


def run_data_job(
    config_type: type[Config],
    job: Callable[[Config], Outcome],
    describe: Callable[[Outcome], str],
    description: str,
    arguments: list[str] | None,
) -> int:
    """A job with the command line of `config_type`. Exit status: 0, or 1 with a message on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("ray", "ray.data"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    config = tyro.cli(config_type, args=arguments, description=description, config=(tyro.conf.EnumChoicesFromValues,))
    try:
        done = job(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(describe(done))
    return 0
