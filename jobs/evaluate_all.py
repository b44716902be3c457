"""Evaluate a checkpoint on everything that is at hand, into one table.

ray job submit -- python jobs/evaluate_all.py RUN

    zero-shot     retrieval on each data set that is at hand, and MSR-VTT's multiple choice
    fine-tuned    each recipe of jobs/finetune.py whose data set is at hand, and its score; MSRVTT-MC once more

As many at a time as the cluster has room for. What is finished already is read; what is not at hand is "not run".
"""

from __future__ import annotations

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> int:
    """Return the exit status of the command line: 1 where an evaluation failed."""
    from jobs.experiments.suite import EvaluateAllConfig, evaluate_all
    from jobs.tracking import voice

    config = parsing.read(EvaluateAllConfig, argv, program="evaluate_all.py", description=__doc__)
    failed = evaluate_all(config)
    if failed:
        voice.say("\n".join(failed))
    return int(bool(failed))


if __name__ == "__main__":
    run_command(main)
