"""Pre-train one model and report on it: `ray job submit -- python jobs/pretrain.py PRESET --name NAME …`.

The same command again goes on from the last checkpoint. SIGTERM (as from `ray job stop`) asks the run to write a
checkpoint and end.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cluster import run as cluster_run
from cluster.connection import at_once, connected_ray, spans_machines
from jobs.launch import preflight
from jobs.reports import run_results
from jobs.run import run_files
from jobs.run.config import Placement, PretrainConfig, TextConfig, in_steps, with_decoder
from jobs.run.fields import as_dict, config_hash, flat
from jobs.run.run_identity import identity
from jobs.tasks.tasks import AskingTask, Language, QuestionTask, make_task
from jobs.tracking import journal, machine, mlflow_runs
from jobs.tracking.machine import hardware
from jobs.tracking.mlflow_runs import Tracker
from jobs.training import trainer
from jobs.training.job import Job, datasets, make_plan, make_sources, with_absolute_weights, workers
from jobs.training.step import DivergedError, RunError
from pipeline import storage
from pipeline.corpus.manifest import read_manifest
from pipeline.stream.loader import split_rows
from pipeline.text.config import UNRANKED, MaskingConfig
from pipeline.text.significance import SignificantWords, mine_significant_words
from pipeline.text.tokenizer import Tokenizer, train_wordpiece


def pretrain(
    config: PretrainConfig,
    *,
    on_rank: Callable[[Job, cluster_run.Runtime], None] = trainer.pretrain_rank,
    watchers: Sequence[Any] = (),
    tags: Mapping[str, str] = MappingProxyType({}),
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """The results of the run, which is continued if it was begun before. Stopped on request: no results yet.

    `on_rank` is what every rank does; a measurement may want to look on. `watchers` are told of what the ranks report,
    by Ray Train. `tags` are those of the MLflow run. `is_stopped`: whether somebody has asked for a stop meanwhile.
    """
    run_folder = storage.join(storage.absolute(config.placement.storage), config.name)
    manifest = read_manifest(config.data.manifest)
    manifest_hash, config = manifest.hash, with_decoder(config, manifest.fastest_decoder)
    run_hash = claim_folder(config, run_folder, manifest_hash)
    config = in_steps(config, make_plan(config).first_step)
    if storage.exists(f"{run_folder}/results.json"):
        print(f"{config.name} is finished: {run_folder}/report.html")
        return run_files.read_json(f"{run_folder}/results.json")
    params = flat(as_dict(config)) | {"manifest_hash": manifest_hash}
    tracker = mlflow_runs.open_run(
        config.placement.storage,
        experiment=config.placement.experiment,
        name=config.name,
        identity_hash=run_hash,
        params=params,
        tags=tags,
    )
    tracker.log_dataset(manifest.corpus, manifest_hash, storage.absolute(config.data.manifest))
    status = "FAILED"
    try:
        job = make_job(config, run_folder, tracker)
        clean(run_folder)
        if is_stopped():  # the request may have been among what is gone
            ask_to_stop(run_folder)
        watched = connected_ray(worker_environment=cluster_run.WORKER_ENVIRONMENT, is_watched=True)
        with watched, stopping_on_signal(run_folder):
            refuse_scattered_metrics(config.placement.storage)
            cluster_run.run(
                on_rank,
                job,
                storage=storage_of(config, run_folder),
                name=config.name,
                datasets=datasets(job),
                workers=workers(config),
                on_loss=functools.partial(journal.note_losses, run_folder),
                watchers=watchers,
            )
        if storage.exists(f"{run_folder}/{run_files.FAILURE}"):
            raise failure(run_folder)
        if not run_files.is_finished(run_folder):
            status = "KILLED"
            print(f"{config.name} was stopped at step {run_files.committed_step(run_folder)}; run it again to go on")
            return {}
        found = finish(job, tracker, manifest_hash=manifest_hash, run_hash=run_hash)
        status = "FINISHED"
        return found
    finally:
        tracker.finish(status)


def storage_of(config: PretrainConfig, run_folder: str) -> cluster_run.Storage:
    """Where the run's folder lies, for Ray Train; checkpoints go there with our own client and its patience."""
    filesystem, inner = storage.arrow_filesystem(config.placement.storage)
    upload = functools.partial(upload_checkpoint, run_folder)
    return cluster_run.Storage(path=inner, filesystem=filesystem, upload=upload)


def upload_checkpoint(run_folder: str, folder: str, name: str) -> None:
    """The files of `folder` in the folder `name` of the run."""
    storage.upload_folder(folder, f"{run_folder}/{name}")


def refuse_scattered_metrics(storage_path: str) -> None:
    """ValueError if the connected cluster has several machines, or will, and metrics would go to a file of one."""
    if spans_machines() or cluster_run.grows():
        mlflow_runs.refuse_local(storage_path)


def runs_at_once(wanted: int | None, placement: Placement) -> int:
    """How many runs go at a time in the connected cluster: as many as are `wanted`, or there is room for. ValueError
    if there will never be room for those wanted."""
    num_gpus = placement.most_workers if placement.use_gpu else 0
    return at_once(wanted, preflight.num_cpus(placement), num_gpus, grows=cluster_run.grows())


def failure(run_folder: str) -> RunError:
    """Why the run stopped for good, as its ranks left word."""
    told = run_files.read_json(f"{run_folder}/{run_files.FAILURE}")
    return (DivergedError if told["has_diverged"] else RunError)(told["error"])


def clean(run_folder: str) -> None:
    """What an earlier try has left in the run's folder and nobody is to read is gone."""
    for name in (trainer.STOP_FILE, run_files.FAILURE):
        storage.remove(f"{run_folder}/{name}")
    for name in run_files.sweep(run_folder):
        print(f"removed {name}, which was uploaded but never committed")


def claim_folder(config: PretrainConfig, run_folder: str, manifest_hash: str) -> str:
    """The hash of the run's identity, after its folder was seen to be new or to hold the same identity."""
    if refused := preflight.identity_refusal(config, run_folder, manifest_hash):
        raise ValueError(refused)
    fields = identity(config, manifest_hash)
    path = f"{run_folder}/{run_files.IDENTITY}"
    if not storage.exists(path):
        run_files.write_json(path, {"hash": config_hash(fields), "fields": fields})
    run_files.write_json(f"{run_folder}/config.json", as_dict(config))
    return config_hash(fields)


def make_job(config: PretrainConfig, run_folder: str, tracker: Tracker) -> Job:
    """Vocabulary, significant words and sources of the run; the first two are kept in its folder."""
    config = with_absolute_weights(config)
    rows = split_rows(config.data.manifest, config.data.train_split)
    captions = [text for table in rows.values() for texts in table["captions"].to_pylist() for text in texts]
    tokenizer = kept_tokenizer(config, run_folder, captions)
    table = kept_table(config.text, run_folder, captions, tokenizer)
    refuse_more_words_than_there_are(config.masking, table)
    sources, answers = make_sources(config), f"{run_folder}/{run_files.ANSWERS}"
    task = make_task(config, sources, run_files.read_json(answers) if storage.exists(answers) else None)
    if isinstance(task, QuestionTask):
        run_files.write_json(answers, task.answers)
    if isinstance(task, AskingTask) and (asked := task.in_vain()):
        print("training questions: " + ", ".join(f"{name.split('/')[1]} {count:.0f}" for name, count in asked.items()))
    return Job(
        config=config,
        run_folder=run_folder,
        language=Language(tokenizer=tokenizer, table=table, config=config),
        task=task,
        sources=sources,
        tracking_uri=tracker.uri,
        tracking_run_id=tracker.run_id,
    )


def kept_tokenizer(config: PretrainConfig, run_folder: str, captions: list[str]) -> Tokenizer:
    """The vocabulary in the run's folder; first the configured one, or one trained on the captions, is put there."""
    path = f"{run_folder}/tokenizer.json"
    if not storage.exists(path):
        given = config.text.vocabulary
        made = Tokenizer.load(given) if given else train_wordpiece(captions, config.text.vocabulary_size)
        storage.write_bytes_atomic(path, made.to_json().encode())
    return Tokenizer.from_json(storage.read_bytes(path).decode())


def kept_table(text: TextConfig, run_folder: str, captions: list[str], tokenizer: Tokenizer) -> SignificantWords:
    """The significant words in the run's folder; first the configured ones, or the captions' own, are put there."""
    path = f"{run_folder}/significant_words.json"
    if not storage.exists(path):
        if text.significant_words:
            table = SignificantWords.load(text.significant_words, text.word_families)
            table.refuse_other_vocabulary(tokenizer.pieces)
        else:
            table = mine_significant_words(captions, tokenizer.pieces)
        table.save(path)
    return SignificantWords.from_json(storage.read_bytes(path).decode())


def refuse_more_words_than_there_are(masking: MaskingConfig, table: SignificantWords) -> None:
    """ValueError when more significant words are asked for than the captions hold."""
    num_words = len(table.significant_ids(UNRANKED - 1))
    if not num_words:
        raise ValueError(
            "no noun, verb or adjective of the training captions is in the vocabulary, but MSSM and LVWM need some; "
            "look at the captions, and at text.vocabulary"
        )
    if masking.top_k is not None and masking.top_k >= num_words:
        raise ValueError(
            f"masking.top_k={masking.top_k} asks for more significant words than the {num_words} that the training "
            "captions hold in this vocabulary; lower it, or set it to None for all of them"
        )


@contextlib.contextmanager
def stopping_on_signal(run_folder: str) -> Iterator[None]:
    """Within it, SIGTERM leaves a request in the run's folder, which the workers answer with a checkpoint."""

    def request(_signal: int, _frame: Any) -> None:
        print("asked to stop: waiting for the checkpoint", flush=True)
        ask_to_stop(run_folder)

    with answering_signals(request, signal.SIGTERM):
        yield


def ask_to_stop(run_folder: str) -> None:
    """The workers of the run write a checkpoint and end."""
    storage.write_bytes_atomic(f"{run_folder}/{trainer.STOP_FILE}", b"")


@contextlib.contextmanager
def answering_signals(answer: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[None]:
    """Within it, these signals are answered so; not in other threads than the first, which no signal reaches."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, answer) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(job: Job, tracker: Tracker, *, manifest_hash: str, run_hash: str) -> dict[str, Any]:
    """Results and report in the run's folder and in MLflow."""
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "commit": machine.git_commit(),
        "config_hash": run_hash,
        "manifest_hash": manifest_hash,
    }
    found, page = run_results.conclude(job, tracker, facts)
    storage.write_bytes_atomic(f"{job.run_folder}/report.html", page.encode())
    numbers = {key: value for key, value in found.items() if isinstance(value, int | float)}
    tracker.log(numbers, int(found["num_steps"]))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config.json", run_files.IDENTITY, "report.html", "significant_words.json"):
            Path(folder, name).write_bytes(storage.read_bytes(f"{job.run_folder}/{name}"))
            tracker.log_file(Path(folder, name))
        run_files.write_json(f"{folder}/results.json", found)
        tracker.log_file(Path(folder, "results.json"))
    run_files.write_json(f"{job.run_folder}/results.json", found)  # last: with it the run counts as finished
    for key in sorted(key for key in found if key.endswith(("r1", "r10"))):
        print(f"{key:34s} {found[key]:.3f}")
    print(f"report: {job.run_folder}/report.html\nresults: {job.run_folder}/results.json")
    print(f"MLflow: {mlflow_runs.without_password(tracker.uri)}")
    return found
