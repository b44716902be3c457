"""Repeat the paper's ablations over seeds.

ray job submit -- python jobs/ablate.py III --name NAME [-- PRESET …]

II    P3E (a network for text, another for text with video) against SNP (one for both), with MLM and GVTM
III   MLM or MSSM, with GVTM alone or with LVWM

Every row and seed is a run of its own; as many at a time as the cluster has room for. The same command resumes, and
with more seeds keeps those that are done: NAME/cells.json has the results of each, and is all that is needed to resume
elsewhere. NAME/table.md has means, 95 % intervals over seeds, and differences seed by seed of rows that differ in one
thing, and to the first.
"""

from __future__ import annotations

import sys

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> int:
    """Return the exit status of the command line: 1 where a run failed."""
    from jobs.experiments.ablation import AblateConfig, ablate
    from jobs.tracking import voice

    options, run_options = parsing.split(sys.argv[1:] if argv is None else argv)
    config = parsing.read(AblateConfig, options, program="ablate.py", description=__doc__)
    base = parsing.parse_checked(run_options, name=config.name, program="ablate.py … --")
    text, failed = ablate(config, base)
    print(text)
    for (row, seed), error in failed.items():
        voice.say(f"ablate: “{row}” with seed {seed}: {error}")
    return int(bool(failed))


if __name__ == "__main__":
    run_command(main)
