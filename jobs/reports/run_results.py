"""From the scores that a run left in its folder to its results and its report."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import safetensors.torch

from jobs.evaluation import cards
from jobs.reports.run_report import Blank, MaskedCaption, Ranking, ReportData, render_report
from jobs.run import run_files
from jobs.tasks import retrieval
from jobs.tasks.tasks import AskingTask, Predicted
from jobs.tracking.journal import read_journals
from jobs.tracking.mlflow_runs import OF_THE_MACHINE, Tracker
from jobs.training.job import Job
from pipeline import storage
from pipeline.corpus.ledger import count_by_reason, read_ledger

NUM_MASKED = 9


def conclude(job: Job, tracker: Tracker, facts: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Flat results of the run, and its report as a page."""
    best = run_files.read_json(f"{job.run_folder}/best/{run_files.PROGRESS}")
    seconds = run_files.read_json(f"{job.run_folder}/{run_files.SECONDS}")
    num_steps = run_files.committed_step(job.run_folder)
    found: dict[str, Any] = {"num_steps": num_steps, "best_step": best["step"], "name": job.config.name}
    found |= facts | {f"seconds/{name}": value for name, value in seconds.items()}
    rankings: dict[str, Ranking] = {}
    masked: list[MaskedCaption] = []
    for name in ("test", "temporal"):
        if isinstance(job.task, AskingTask):
            if name in job.sources and name in job.task.asked:
                answers = [
                    Predicted(**answer) for answer in run_files.read_json(f"{job.run_folder}/evaluation/{name}.json")
                ]
                scores = job.task.results(answers, name)
                found |= scores
                if name == "test":
                    write_own_card(job, cards.of_answers(answers, scores), facts)
        elif name in job.sources:
            saved = load_evaluation(f"{job.run_folder}/evaluation/{name}.npz")
            scores = measured(saved, name, job.config.selection.rerank)
            found |= scores
            rankings[name] = ranking(saved, name, job.config.selection.rerank)
            if name == "test":
                masked = masked_captions(saved, job)
                seen = cards.of_retrieval(saved["clip_ids"].tolist(), saved["captions"], job.sources[name], scores)
                write_own_card(job, seen, facts)
    if isinstance(job.task, AskingTask):
        found |= job.task.in_vain()
    rejected = read_ledger(f"{job.run_folder}/ledger.parquet")
    ceilings = corpus_ceilings(job)
    found |= {"num_parameters": num_parameters(job.run_folder)} | most_memory(job.run_folder)
    found |= {f"ceiling/{name}": value for name, value in ceilings.items()} | {"num_rejected": len(rejected)}
    numbers = {key: value for key, value in found.items() if isinstance(value, int | float)}
    train, validation = histories(tracker)
    page = render_report(
        ReportData(
            name=job.config.name,
            date=facts["date"],
            hardware=facts["hardware"],
            commit=facts["commit"],
            config_hash=facts["config_hash"],
            manifest_hash=facts["manifest_hash"],
            train_history=train,
            validation_history=validation,
            results=numbers,
            ceilings=ceilings,
            test=rankings.get("test"),
            temporal=rankings.get("temporal"),
            masked_captions=masked,
            num_clips={name: len(source.rows()) for name, source in job.sources.items() if name != "train"},
            ledger={str(reason): count for reason, count in count_by_reason(rejected).items()},
            timings=seconds,
            protocols=list(cards.read_cards(job.run_folder).values()),
        )
    )
    return found, page


def num_parameters(run_folder: str) -> int:
    """Of the network with its heads, without what only lies in queues."""
    weights = safetensors.torch.load(storage.read_bytes(run_files.best_weights(run_folder)))
    return sum(tensor.numel() for name, tensor in weights.items() if not name.startswith("queues."))


def most_memory(run_folder: str) -> dict[str, float]:
    """The most that a rank has held, in MiB of the process and of its GPU."""
    lines = [line for line in read_journals(run_folder) if line["event"] == "step"]
    names = ("memory_mib", "gpu_memory_mib")
    return {name: max(values) for name in names if (values := [line[name] for line in lines if line.get(name)])}


def write_own_card(job: Job, measured: cards.Measured, facts: dict[str, str]) -> None:
    """The card of what the run measured at its end is in its folder."""
    config = job.config
    protocol = cards.own_protocol(config, job.run_folder)
    scored, chosen, trained = (
        (protocol.manifest, getattr(config.data, f"{name}_split")) for name in ("test", "validation", "train")
    )
    card = cards.make_card(
        protocol,
        measured,
        config,
        is_selected_on_test=cards.num_shared(scored, chosen) > 0,
        num_trained_on=cards.num_shared(scored, trained),
        weights=run_files.weights_hash(job.run_folder),
        run_hash=facts["config_hash"],
        **{name: facts[name] for name in ("manifest_hash", "date", "hardware", "commit")},
    )
    cards.write_card(card, f"{cards.card_folder(job.run_folder, protocol, protocol)}/card.json")


def load_evaluation(path: str) -> dict[str, Any]:
    """The arrays and texts that the workers saved."""
    with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays | {name: json.loads(str(arrays[name])) for name in ("captions", "filled")}


def measured(saved: dict[str, Any], name: str, rerank: int | None = None) -> dict[str, float]:
    """The metrics of a split: retrieval over all clips, or within groups for the temporal test."""
    scored = retrieval.Scored(clip_ids=saved["clip_ids"], dual=saved["dual"], cross=saved["cross"])
    if name == "temporal":
        return retrieval.group_results(scored, saved["groups"], name)
    return retrieval.retrieval_results(scored, saved["relevant"], name, rerank=rerank)


def ranking(saved: dict[str, Any], name: str, rerank: int | None = None) -> Ranking:
    """The scores of a split for the report's pictures."""
    scored = retrieval.Scored(clip_ids=saved["clip_ids"], dual=saved["dual"], cross=saved["cross"])
    scores = {"fused": scored.fused, "dual": scored.dual, "cross": scored.cross}
    if name == "temporal":
        scores = {"cross": scored.cross, "dual": scored.dual}
    elif rerank:
        scores = {"fused": retrieval.reranked(scored, rerank), "dual": scored.dual}
    return Ranking(
        captions=saved["captions"],
        clips=saved["thumbnails"],
        relevant=saved["relevant"],
        scores=scores,
        groups=saved["groups"] if name == "temporal" else None,
    )


def masked_captions(saved: dict[str, Any], job: Job) -> list[MaskedCaption]:
    """A few captions with their masked words and what the model filled in."""
    pieces, special = job.language.tokenizer.pieces, job.language.tokenizer.special
    shown = []
    for row, blanks in enumerate(saved["filled"]):
        ids = [token for token in saved["token_ids"][row].tolist() if token != special.pad]
        words = [pieces[token] for token in ids]
        for position, true_id, _ in blanks:
            words[position] = pieces[true_id]
        guessed = [
            Blank(position=position - 1, guesses=[(pieces[token], share) for token, share in guesses])
            for position, _, guesses in blanks
        ]
        if guessed:
            shown.append(MaskedCaption(words=words[1:-1], blanks=guessed, frames=saved["thumbnails"][row]))
    return shown[:NUM_MASKED]


def corpus_ceilings(job: Job) -> dict[str, float]:
    """What scorers with stated knowledge reach on this corpus, where the corpus says so (the embedded one does)."""
    folder = job.config.data.manifest.rsplit("/", 1)[0]
    for path in (f"{folder}/corpus.json", f"{folder}/../corpus.json"):
        if storage.exists(path):
            return flat_ceilings(run_files.read_json(path).get("ceilings", {}))
    return {}


def flat_ceilings(ceilings: dict[str, Any]) -> dict[str, float]:
    """`{scorer: {metric: value}}` for the two headline metrics, as `test/oracle` and so on."""
    wanted = {"test": "test/t2v/r1", "temporal": "temporal/t2v/group_r1"}
    return {
        f"{split}/{scorer}": float(values[metric])
        for scorer, values in ceilings.items()
        for split, metric in wanted.items()
        if metric in values
    }


def histories(tracker: Tracker) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Logged rows by step: of training, and of the validation split."""
    train: dict[int, dict[str, float]] = {}
    validation: dict[int, dict[str, float]] = {}
    for name in tracker.metric_names():
        rows = validation if name.startswith("validation/") else train
        if name.startswith(("test/", "temporal/", "seconds/", "ceiling/", OF_THE_MACHINE)):
            continue
        for step, value in tracker.history(name):
            rows.setdefault(step, {"step": step})[name] = value
    return [train[step] for step in sorted(train)], [validation[step] for step in sorted(validation)]
