"""Make the results and the report of a run from the files in its folder.

run folder ──conclude──► results.json, report.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.evaluation import cards
from jobs.reports.run_report import MaskedCaption, ReportData, render_report
from jobs.run import run_files
from jobs.run.config import TaskConfig
from jobs.run.generated_corpus import summary_beside
from jobs.tasks.task import Examples, Measured, SavedScores
from jobs.tracking.journal import read_journals
from jobs.training import checkpoints
from jobs.training.job import Job
from pipeline import storage
from pipeline.corpus.ledger import count_by_reason, read_ledger
from pipeline.text.tokenizer import Tokenizer

NUM_MASKED = 9
"""Most captions with masked words in the report."""
HEADLINES = {"test": "test/t2v/r1", "temporal": "temporal/t2v/group_r1"}
"""Test dataset → metric that has ceilings."""


def conclude(job: Job, task: TaskConfig, facts: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Write the protocol card of the run's test split; return the results under flat names and the report as HTML.

    `facts`: date, hardware, commit, config_hash, manifest_hash.
    """
    folder, scores = job.run_folder, read_scores(job)
    if "test" in scores:
        write_own_card(job, task, scores["test"].measured, facts)
    seconds = run_files.read_json(f"{folder}/{run_files.SECONDS}")
    rejected, ceilings = read_ledger(f"{folder}/ledger.parquet"), corpus_ceilings(job.data.manifest)
    results: dict[str, Any] = {
        "name": job.name,
        "num_steps": run_files.committed_step(folder),
        "best_step": run_files.read_json(f"{folder}/best/{run_files.PROGRESS}")["step"],
        "num_parameters": num_parameters(folder),
        "num_rejected": len(rejected),
        **facts,
        **{f"seconds/{name}": value for name, value in seconds.items()},
        **{f"ceiling/{name}": value for name, value in ceilings.items()},
        **{name: value for saved in scores.values() for name, value in saved.metrics.items()},
        **job.task.training_facts(),
        **peak_memory(folder),
    }
    examples = {name: saved.examples for name, saved in scores.items() if saved.examples}
    data = ReportData(
        name=job.name,
        **facts,
        results={key: value for key, value in results.items() if isinstance(value, int | float)},
        ceilings=ceilings,
        test=examples.get("test"),
        temporal=examples.get("temporal"),
        masked_captions=masked_captions(examples["test"], job.text.tokenizer) if "test" in examples else (),
        num_clips={name: source.num_clips for name, source in job.sources.items() if name != "train"},
        ledger={str(reason): count for reason, count in count_by_reason(rejected).items()},
        timings=seconds,
        protocols=list(cards.read_cards(folder).values()),
    )
    return results, render_report(data)


def read_scores(job: Job) -> dict[str, SavedScores]:
    """Return the scores that the ranks saved at the end of the run, by test dataset."""
    sources = {name: job.sources[name] for name in ("test", "temporal") if name in job.sources}
    saved = {
        name: job.task.read_scores(name, source, f"{job.run_folder}/evaluation") for name, source in sources.items()
    }
    return {name: scores for name, scores in saved.items() if scores}


def num_parameters(run_folder: str) -> int:
    """Return the number of parameters with heads and without queues."""
    path = run_files.best_weights(run_folder)
    weights = checkpoints.read_weights(storage.read_bytes(path), path)
    return sum(tensor.numel() for name, tensor in weights.items() if not name.startswith("queues."))


def peak_memory(run_folder: str) -> dict[str, float]:
    """Return the peak memory of any rank in MiB, of the process and of its GPU."""
    lines = [line for line in read_journals(run_folder) if line["event"] == "step"]
    names = ("memory_mib", "gpu_memory_mib")
    return {name: max(values) for name in names if (values := [line[name] for line in lines if line.get(name)])}


def write_own_card(job: Job, task: TaskConfig, measured: Measured, facts: Mapping[str, str]) -> None:
    """Write the protocol card of the evaluation at the end of the run to its folder."""
    data = job.data
    protocol = cards.make_run_protocol(
        job.run_folder,
        data=data,
        task=task,
        rerank=job.selection.rerank,
        scores_all_pairs=job.task.scores_all_pairs,
    )
    scored, chosen, trained = (
        (protocol.manifest, split) for split in (data.test_split, data.validation_split, data.train_split)
    )
    card = cards.make_card(
        protocol,
        measured,
        run_seed=job.seed,
        selected_on=cards.selected_on(job.selection, data),
        is_selected_on_test=cards.num_shared(scored, chosen) > 0,
        num_trained_on=cards.num_shared(scored, trained),
        weights=run_files.weights_hash(job.run_folder),
        run_hash=facts["config_hash"],
        **{name: facts[name] for name in ("manifest_hash", "date", "hardware", "commit")},
    )
    cards.write_card(card, f"{cards.card_folder(protocol, is_own=True)}/card.json")


def masked_captions(examples: Examples, tokenizer: Tokenizer) -> list[MaskedCaption]:
    """Return a few captions with the model's predictions of their masked words."""
    pieces, shown = tokenizer.pieces, []
    for row, blanks in enumerate(examples.filled):
        if not blanks:
            continue
        ids = [token for token in examples.token_ids[row].tolist() if token != tokenizer.special.pad]
        words = [pieces[token] for token in ids]
        for position, true_id, _ in blanks:
            words[position] = pieces[true_id]
        guesses = {
            position - 1: [(pieces[token], share) for token, share in guessed] for position, _, guessed in blanks
        }
        shown.append(MaskedCaption(words=words[1:-1], guesses=guesses, frames=examples.clips[row]))
    return shown[:NUM_MASKED]


def corpus_ceilings(manifest: str) -> dict[str, float]:
    """Return the scores of reference scorers on this corpus, as `test/oracle` and so on, from the corpus.json beside
    its manifest; empty without that file. The embedded corpus has one."""
    ceilings = summary_beside(manifest).get("ceilings", {})
    return {
        f"{split}/{scorer}": float(values[metric])
        for scorer, values in ceilings.items()
        for split, metric in HEADLINES.items()
        if metric in values
    }
