"""The paper's ablations over seeds: `ray job submit -- python jobs/ablate.py III --name NAME [-- PRESET …]`.

II    P3E (a network for text, another for text with video) against SNP (one for both), with MLM and GVTM
III   MLM or MSSM, with GVTM alone or with LVWM

Every row and seed is a run of its own; as many at a time as the cluster has room for. The same command goes on, and
with more seeds keeps those that are done: NAME/cells.json has what came out of each, and is all that is needed to go on
elsewhere. NAME/table.md has means, 95 % intervals over seeds, and differences seed by seed of rows that differ in one
thing, and to the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.command_line.entry import run_command

if TYPE_CHECKING:
    from jobs.experiments.ablation import AblateConfig
    from jobs.run.config import PretrainConfig

import sys
from collections.abc import Sequence


def parse(argv: Sequence[str]) -> tuple[AblateConfig, PretrainConfig]:
    """What was asked for; refused on stderr with exit code 2."""
    import tyro

    from jobs.command_line import parsing
    from jobs.experiments.ablation import AblateConfig

    own, base = parsing.split(argv)
    with parsing.refusing():
        config = tyro.cli(AblateConfig, args=own, prog="ablate.py", description=__doc__)
    return config, parsing.checked(base, name=config.name, program="ablate.py … --")


def main(argv: list[str] | None = None) -> int:
    """Exit status of the command line: 1 where a run failed, 130 where it was asked to stop."""
    from jobs.command_line import parsing
    from jobs.experiments.ablation import ablate
    from jobs.experiments.child_runs import STOPPED, StoppedError

    config, base = parse(sys.argv[1:] if argv is None else argv)
    try:
        with parsing.refusing():
            text, failed = ablate(config, base)
    except StoppedError:
        print(f"{config.name} was stopped; the same command goes on from here")
        return STOPPED
    print(text)
    for (row, seed), error in failed.items():
        print(f"ablate: “{row}” with seed {seed}: {error}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(run_command(main))
