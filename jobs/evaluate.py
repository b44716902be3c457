"""Score a run on a task and write its protocol card.

ray job submit -- python jobs/evaluate.py RUN …
python jobs/evaluate.py runs/tiny                                 retrieval on the run's test split, exhaustive
python jobs/evaluate.py runs/tiny --rerank 100                    the same in two stages
python jobs/evaluate.py runs/tiny --task multiple_choice --questions corpora/embedded/multiple_choice/test.jsonl
python jobs/evaluate.py snps3-tiny --out card                     the released model
python jobs/evaluate.py --card runs/tiny/evaluation/retrieval-test/card.json       the same score again
python jobs/evaluate.py runs/tiny --mteb MSRVTTT2V                a task of mteb, with the extra `mteb`
python jobs/evaluate.py runs/tiny --baselines                     beside chance, words, a still image and the scenes
python jobs/evaluate.py runs/tiny --baselines random hub=FOLDER   beside chance and a folder of CLIP or SigLIP

On the clips of any manifest. A score on the split by which the checkpoint was chosen is refused, unless asked for.
"""

from __future__ import annotations

import dataclasses

from jobs.command_line import parsing
from jobs.command_line.entry import run_command


def main(argv: list[str] | None = None) -> int:
    """Return the exit status of the command line: 1 where a card's score did not come out again."""
    import torch

    from jobs.evaluation import baselines, mteb_cards
    from jobs.evaluation.cards import find_differences, read_card
    from jobs.evaluation.scoring import EvaluateConfig, evaluate, table
    from jobs.inference.model import folder_to_score
    from jobs.reports.run_report import refresh_protocols

    config = parsing.read(EvaluateConfig, argv, program="evaluate.py", description=__doc__)
    if config.mteb:
        from jobs.inference.mteb_evaluation import evaluate_with_mteb

        print(mteb_cards.table(evaluate_with_mteb(config)))
        return 0
    if config.baselines is not None:
        from jobs.inference.baselines import compare_with_baselines

        print(baselines.table(compare_with_baselines(config)))
        return 0
    torch.set_num_threads(1)  # ranks compute; a table in the driver needs no pool
    if config.run:
        config = dataclasses.replace(config, run=folder_to_score(config.run, config.out))
    card = evaluate(config)
    refresh_protocols(card.protocol.run)
    print(table(card))
    if config.card:
        lines = find_differences(read_card(config.card), card.scores)
        print("\n".join(lines) or "every score is that of the card")
        return int(any(", outside [" in line for line in lines))
    return 0


if __name__ == "__main__":
    run_command(main)
