"""Sweep masking ratios, loss weights and more.

ray job submit -- python jobs/sweep.py SPACE --name NAME [-- PRESET …]
python jobs/sweep.py masking_ratio --name ratio                                    a ready space, on `tiny`
python jobs/sweep.py --name mine --vary optim.lr=1e-4..3e-3:log masking.strategy=mssm,mlm
python jobs/sweep.py loss_weights --name weights -- tiny --optim.num-steps 200     what follows -- is as for pretrain.py

Every trial is a pre-training run of its own, in its own folder and MLflow run below that of the sweep. Trials are
compared by a probe on the validation split, never by the weighted loss. The same command again resumes.
"""

from __future__ import annotations

import sys

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> int:
    """Return the exit status of the command line: 1 where a trial failed."""
    from jobs.experiments.sweep_table import changed_selection, describe
    from jobs.experiments.sweeps import SweepConfig, sweep

    options, run_options = parsing.split(sys.argv[1:] if argv is None else argv)
    config = parsing.read(SweepConfig, options, program="sweep.py", description=__doc__)
    base = parsing.parse_checked(run_options, name=config.name, program="sweep.py … --")
    rows = sweep(config, base)
    selection = changed_selection(base.placement.storage, base.selection, rows[0])
    print(describe(rows, config.name, config.metric, run_options, selection))
    return int(any(row.status == "failed" for row in rows))


if __name__ == "__main__":
    run_command(main)
