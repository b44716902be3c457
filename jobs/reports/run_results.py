"""From what a run left in its folder to its results and its report.

run folder, MLflow ──read_record──► Record ──results_of──► results.json
                                           └─report_data─► report.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch

from jobs.evaluation import cards
from jobs.reports.run_report import Blank, MaskedCaption, Ranking, ReportData, render_report
from jobs.run import run_files
from jobs.run.config import TaskConfig
from jobs.tasks.task import Examples, Measured, SavedScores
from jobs.tracking.journal import read_journals
from jobs.tracking.mlflow_runs import OF_THE_MACHINE, Tracker
from jobs.training.job import Job
from pipeline import storage
from pipeline.corpus.ledger import count_by_reason, read_ledger
from pipeline.records import Rejected
from pipeline.text.tokenizer import Tokenizer

NUM_MASKED = 9
"""Captions with masked words that the report shows."""
TEST_DATASETS = ("test", "temporal")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a finished run has left behind."""

    best_step: int
    num_steps: int
    seconds: Mapping[str, float]
    scores: Mapping[str, SavedScores]
    """By test dataset."""
    rejected: Sequence[Rejected]
    ceilings: Mapping[str, float]
    num_parameters: int
    memory: Mapping[str, float]


def conclude(job: Job, task: TaskConfig, tracker: Tracker, facts: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Write the protocol card of the run's own test; return its flat results, and its report as a page.

    `facts`: date, hardware, commit, config_hash, manifest_hash.
    """
    record = read_record(job)
    if "test" in record.scores:
        protocol = cards.own_protocol(
            job.run_folder,
            data=job.data,
            task=task,
            rerank=job.selection.rerank,
            scores_all_pairs=job.task.scores_all_pairs,
        )
        write_own_card(job, protocol, record.scores["test"].measured, facts)
    results = results_of(job, record, facts)
    data = report_data(job, record, results, facts, histories(tracker), list(cards.read_cards(job.run_folder).values()))
    return results, render_report(data)


def read_record(job: Job) -> Record:
    """Read what the ranks left in the run's folder."""
    folder, scores = job.run_folder, {}
    for name in TEST_DATASETS:
        source = job.sources.get(name)
        if source and (saved := job.task.read_scores(name, source, f"{folder}/evaluation")):
            scores[name] = saved
    return Record(
        best_step=run_files.read_json(f"{folder}/best/{run_files.PROGRESS}")["step"],
        num_steps=run_files.committed_step(folder),
        seconds=run_files.read_json(f"{folder}/{run_files.SECONDS}"),
        scores=scores,
        rejected=read_ledger(f"{folder}/ledger.parquet"),
        ceilings=corpus_ceilings(job.data.manifest),
        num_parameters=num_parameters(folder),
        memory=peak_memory(folder),
    )


def results_of(job: Job, record: Record, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the results of the run under flat names."""
    results: dict[str, Any] = {"num_steps": record.num_steps, "best_step": record.best_step, "name": job.name}
    results |= {**facts, **{f"seconds/{name}": value for name, value in record.seconds.items()}}
    for saved in record.scores.values():
        results |= saved.metrics
    results |= {**job.task.training_facts(), "num_parameters": record.num_parameters, **record.memory}
    ceilings = {f"ceiling/{name}": value for name, value in record.ceilings.items()}
    return results | ceilings | {"num_rejected": len(record.rejected)}


def report_data(
    job: Job,
    record: Record,
    results: Mapping[str, Any],
    facts: Mapping[str, str],
    histories: tuple[list[dict[str, float]], list[dict[str, float]]],
    protocols: Sequence[cards.Card],
) -> ReportData:
    """Return what the page shows. `histories`: logged rows of training and of validation."""
    examples = {name: saved.examples for name, saved in record.scores.items() if saved.examples}
    rankings = {name: ranking(shown) for name, shown in examples.items()}
    return ReportData(
        name=job.name,
        **facts,
        train_history=histories[0],
        validation_history=histories[1],
        results={key: value for key, value in results.items() if isinstance(value, int | float)},
        ceilings=record.ceilings,
        test=rankings.get("test"),
        temporal=rankings.get("temporal"),
        masked_captions=masked_captions(examples["test"], job.text.tokenizer) if "test" in examples else (),
        num_clips={name: len(source.rows()) for name, source in job.sources.items() if name != "train"},
        ledger={str(reason): count for reason, count in count_by_reason(record.rejected).items()},
        timings=record.seconds,
        protocols=protocols,
    )


def num_parameters(run_folder: str) -> int:
    """Return the size of the network with its heads, without its queues."""
    weights = safetensors.torch.load(storage.read_bytes(run_files.best_weights(run_folder)))
    return sum(tensor.numel() for name, tensor in weights.items() if not name.startswith("queues."))


def peak_memory(run_folder: str) -> dict[str, float]:
    """Return the most memory that a rank has held, in MiB of the process and of its GPU."""
    lines = [line for line in read_journals(run_folder) if line["event"] == "step"]
    names = ("memory_mib", "gpu_memory_mib")
    return {name: max(values) for name in names if (values := [line[name] for line in lines if line.get(name)])}


def write_own_card(job: Job, protocol: cards.Protocol, measured: Measured, facts: Mapping[str, str]) -> None:
    """Write the card of what the run measured at its end to its folder."""
    data = job.data
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
    cards.write_card(card, f"{cards.card_folder(job.run_folder, protocol, protocol)}/card.json")


def ranking(examples: Examples) -> Ranking:
    """Return the scores of a dataset for the report's pictures."""
    names = ("captions", "clips", "relevant", "scores", "groups")
    return Ranking(**{name: getattr(examples, name) for name in names})


def masked_captions(examples: Examples, tokenizer: Tokenizer) -> list[MaskedCaption]:
    """Return a few captions with their masked words and what the model filled in."""
    pieces, shown = tokenizer.pieces, []
    for row, blanks in enumerate(examples.filled):
        ids = [token for token in examples.token_ids[row].tolist() if token != tokenizer.special.pad]
        words = [pieces[token] for token in ids]
        for position, true_id, _ in blanks:
            words[position] = pieces[true_id]
        guessed = [
            Blank(position=position - 1, guesses=[(pieces[token], share) for token, share in guesses])
            for position, _, guesses in blanks
        ]
        if guessed:
            shown.append(MaskedCaption(words=words[1:-1], blanks=guessed, frames=examples.clips[row]))
    return shown[:NUM_MASKED]


def corpus_ceilings(manifest: str) -> dict[str, float]:
    """Return what scorers with stated knowledge reach on this corpus, where a file beside it says so (the embedded
    corpus has one)."""
    folder = manifest.rsplit("/", 1)[0]
    for path in (f"{folder}/corpus.json", f"{folder}/../corpus.json"):
        if storage.exists(path):
            return flat_ceilings(run_files.read_json(path).get("ceilings", {}))
    return {}


def flat_ceilings(ceilings: dict[str, Any]) -> dict[str, float]:
    """Return `{scorer: {metric: value}}` for the two headline metrics, as `test/oracle` and so on."""
    headlines = {"test": "test/t2v/r1", "temporal": "temporal/t2v/group_r1"}
    return {
        f"{split}/{scorer}": float(values[metric])
        for scorer, values in ceilings.items()
        for split, metric in headlines.items()
        if metric in values
    }


def histories(tracker: Tracker) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return logged rows by step: of training, and of the validation split."""
    train: dict[int, dict[str, float]] = {}
    validation: dict[int, dict[str, float]] = {}
    for name in tracker.metric_names():
        rows = validation if name.startswith("validation/") else train
        if name.startswith(("test/", "temporal/", "seconds/", "ceiling/", OF_THE_MACHINE)):
            continue
        for step, value in tracker.history(name):
            rows.setdefault(step, {"step": step})[name] = value
    return [train[step] for step in sorted(train)], [validation[step] for step in sorted(validation)]
