"""The driver of a pre-training run: hold its lease, start its workers, report on it, and stop it on SIGTERM."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import itertools
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from cluster import run as cluster_run
from cluster import worker_lines
from cluster.connection import connected_ray, num_concurrent, spans_machines
from cluster.rank_datasets import grows
from cluster.run import last_line
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.launch import lease, preflight
from jobs.launch.manifest_version import with_version
from jobs.reports import run_results
from jobs.run import run_files
from jobs.run.config import TASK_FILES, DataConfig, Placement, PretrainConfig, TaskConfig, TextConfig
from jobs.run.fields import as_dict, config_hash, flat
from jobs.run.run_identity import identity, in_steps, with_decoder
from jobs.tasks.retrieval import RetrievalOptions
from jobs.tasks.task import TaskInputs, task_type
from jobs.tasks.text import TextProcessor
from jobs.tracking import journal, machine, mlflow_runs, patient_tracker, voice
from jobs.tracking.machine import hardware
from jobs.tracking.mlflow_runs import Tracker
from jobs.training import trainer
from jobs.training.job import Job, datasets, make_plan, make_sources, with_absolute_weights, workers
from jobs.training.requests import STOP_FILE
from jobs.training.step import DivergedError, RunError
from pipeline import storage
from pipeline.corpus.listing import Listing, Rows
from pipeline.stream.source import split_clips
from pipeline.text.config import UNRANKED, MaskingConfig
from pipeline.text.significance import SignificantWords, mine_significant_words
from pipeline.text.tokenizer import Tokenizer, train_wordpiece
from snps3_model.loss_table import load_extra

MAX_CAPTIONED = 1_000_000
"""Most training clips whose captions are counted to make a missing vocabulary or a missing table of words."""


def pretrain(
    config: PretrainConfig,
    *,
    on_rank: Callable[[Job, cluster_run.Runtime], None] = trainer.pretrain_rank,
    watchers: Sequence[Any] = (),
    tags: Mapping[str, str] = MappingProxyType({}),
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train or resume a run and return its results, or {} if it is stopped on request.

    `on_rank` runs on every rank; a measurement may wrap it. `watchers` observe the reports of the ranks to Ray Train.
    `tags` go to the MLflow run. `is_stopped`: whether a stop was requested before the run began.
    """
    placement = config.placement
    mlflow_runs.refuse_unreachable(placement.storage)
    run_folder = storage.join(storage.absolute(placement.storage), config.name)
    data, manifest = with_version(config.data, config.name, run_folder, voice.say)
    config = dataclasses.replace(config, data=data)
    with lease.held(run_folder) as held:
        config, run_hash = claim_folder(config, manifest, run_folder)
        voice.keep_log_in(run_folder)
        if storage.exists(f"{run_folder}/results.json"):
            voice.show(f"{config.name} is finished: {run_folder}/report.html")
            return run_files.read_json(f"{run_folder}/results.json")
        params = flat(as_dict(config)) | {"manifest_hash": manifest.hash}
        with tracked_run(placement, run_folder, run_hash, params, tags, held) as tracker:
            tracker.log_dataset(manifest.corpus, manifest.hash, storage.absolute(config.data.manifest))
            job = make_job(config, manifest, run_folder, tracker)
            clean(run_folder)
            if is_stopped():  # `clean` may have removed the stop file
                request_stop(run_folder)
            ray_connection = connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True)
            with ray_connection, stop_on_signal(run_folder):
                refuse_scattered_metrics(placement.storage)
                cluster_run.run(
                    on_rank,
                    job,
                    storage=storage_of(placement.storage, run_folder, held.owner.id),
                    name=config.name,
                    datasets=datasets(job),
                    workers=workers(placement),
                    on_loss=functools.partial(report_losses, run_folder),
                    watchers=watchers,
                )
            if not has_ended(run_folder):
                return {}
            held.check()
            return finish(job, config.task, tracker, manifest_hash=manifest.hash, run_hash=run_hash)


@contextlib.contextmanager
def tracked_run(
    placement: Placement,
    run_folder: str,
    run_hash: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    held: lease.Lease,
) -> Iterator[Tracker]:
    """Keep the MLflow run open; end it as FINISHED, as KILLED after a stop, or as FAILED after an error.

    A driver that has lost its lease does not end the MLflow run.
    """
    tracker = mlflow_runs.open_run(
        placement.storage,
        experiment=placement.experiment,
        name=run_folder.rpartition("/")[2],
        identity_hash=run_hash,
        params=params,
        tags=tags,
    )
    try:
        yield tracker
    except mlflow_runs.SilentServerError:
        raise  # the status cannot be sent either
    except BaseException:
        held.check()
        tracker.finish("FAILED")
        raise
    held.check()
    tracker.finish("FINISHED" if run_files.is_finished(run_folder) else "KILLED")


def report_losses(run_folder: str, causes: Mapping[int, Exception]) -> None:
    """Record lost ranks and their errors in the run's journal and print them. Ray calls this where it restarts them."""
    journal.note_losses(run_folder, causes)
    name, (first, *_) = run_folder.rpartition("/")[2], causes.values()
    ranks = f"rank{'s' * (len(causes) > 1)} {', '.join(map(str, sorted(causes)))}"
    worker_lines.say(
        f"{name}: {ranks} lost: {last_line(first)}; a new group of workers goes on from the last checkpoint"
    )


def has_ended(run_folder: str) -> bool:
    """Return True if the ranks trained to the end, False if they were stopped. RunError if they failed for good."""
    if storage.exists(f"{run_folder}/{run_files.FAILURE}"):
        reason = run_files.read_json(f"{run_folder}/{run_files.FAILURE}")
        raise (DivergedError if reason["has_diverged"] else RunError)(reason["error"])
    if run_files.is_finished(run_folder):
        return True
    name, step = run_folder.rpartition("/")[2], run_files.committed_step(run_folder)
    voice.show(f"{name} was stopped at step {step}; the same command resumes it")
    return False


def storage_of(storage_path: str, run_folder: str, owner_id: str) -> cluster_run.Storage:
    """Return the storage of the run for Ray Train. Checkpoints are uploaded with our client, because it retries."""
    filesystem, inner = storage.arrow_filesystem(storage_path)
    upload = functools.partial(upload_checkpoint, run_folder, owner_id)
    return cluster_run.Storage(path=inner, filesystem=filesystem, upload=upload)


def upload_checkpoint(run_folder: str, owner_id: str, folder: str, name: str) -> None:
    """Upload the files of `folder` to the folder `name` of the run; runs on a rank of the driver `owner_id`.

    Raise LeaseLostError when another driver has the run.
    """
    lease.refuse_other_owner(run_folder, owner_id)
    storage.upload_folder(folder, f"{run_folder}/{name}")


def refuse_scattered_metrics(storage_path: str) -> None:
    """Raise ValueError if the cluster has or will have several machines, but metrics go to a local file of one."""
    if spans_machines() or grows():
        mlflow_runs.refuse_local(storage_path)


def runs_at_once(num_runs: int | None, placement: Placement) -> int:
    """Return the number of concurrent runs: `num_runs`, or as many as fit on the connected cluster.
    ValueError if there will never be room for `num_runs`."""
    num_gpus = placement.most_workers if placement.use_gpu else 0
    return num_concurrent(num_runs, preflight.num_cpus(placement), num_gpus, grows=grows())


def clean(run_folder: str) -> None:
    """Remove leftovers of an earlier attempt: stop request, failure report, uncommitted checkpoints."""
    for name in (STOP_FILE, run_files.FAILURE):
        storage.remove(f"{run_folder}/{name}")
    for name in run_files.remove_uncommitted_checkpoints(run_folder):
        voice.show(f"removed {name}, which was uploaded but never committed")


def claim_folder(config: PretrainConfig, manifest: Listing, run_folder: str) -> tuple[PretrainConfig, str]:
    """Return the config with decoder and steps resolved from the corpus, and its identity hash.

    The run's folder holds both. ValueError if it holds another identity.
    """
    config = dataclasses.replace(config, data=with_decoder(config.data, manifest.fastest_decoder))
    fields, path = identity(config, manifest.hash), f"{run_folder}/{run_files.IDENTITY}"
    if refusal := preflight.identity_refusal(config.name, fields, run_folder):
        raise ValueError(refusal)
    run_hash = config_hash(fields)
    if not storage.exists(path):
        run_files.write_json(path, {"hash": run_hash, "fields": fields})
    plan = make_plan(config.data, config.optim.global_batch, config.seed)
    config = dataclasses.replace(config, optim=in_steps(config.optim, plan.first_step))
    run_files.write_json(f"{run_folder}/{run_files.CONFIG}", as_dict(config) | {"commit": machine.git_commit()})
    return config, run_hash


def make_job(config: PretrainConfig, manifest: Listing, run_folder: str, tracker: Tracker) -> Job:
    """Return the job of the ranks. Vocabulary, significant words and the task's files are kept in the run's folder."""
    data, text, seed = config.data, config.text, config.seed
    captions = functools.cache(functools.partial(TrainingCaptions, data))
    tokenizer = ensure_tokenizer(text, run_folder, captions)
    table = ensure_word_table(text, run_folder, captions, tokenizer)
    refuse_too_few_words(config.masking, table)
    task_class = task_type(config.task.kind)
    max_clips = data.max_evaluation_clips if task_class.scores_all_pairs else None
    failures = f"{run_folder}/{run_files.UNDECODED}"
    sources = make_sources(
        data, config.placement, config.optim.global_batch, seed, max_clips=max_clips, failures=failures
    )
    task = task_class.create(
        TaskInputs(
            config=config.task,
            files={name: path for name in TASK_FILES if (path := getattr(config.task, name))},
            objective=config.objective,
            extra=load_extra(config.objective) if config.task.kind == "captions" else {},
            retrieval=RetrievalOptions(rerank=config.selection.rerank),
            manifest=manifest,
            sources=sources,
            seed=seed,
            run_folder=run_folder,
        )
    )
    for name, value in task.run_files().items():
        run_files.write_json(f"{run_folder}/{name}", value)
    show_questions(task.training_facts())
    length_groups = config.placement.length_groups
    return Job(
        name=config.name,
        seed=seed,
        run_folder=run_folder,
        text=TextProcessor(
            tokenizer=tokenizer, table=table, text=text, masking=config.masking, seed=seed, length_groups=length_groups
        ),
        task=task,
        model=with_absolute_weights(config.model),
        sources=sources,
        data=data,
        optim=config.optim,
        selection=config.selection,
        placement=config.placement,
        config_json=storage.read_bytes(f"{run_folder}/{run_files.CONFIG}"),
        tracking_uri=tracker.uri,
        tracking_run_id=tracker.run_id,
    )


def show_questions(facts: Mapping[str, float]) -> None:
    """Print the number of training questions per kind, if the task has any."""
    counts = [f"{name.split('/')[1]} {count:.0f}" for name, count in facts.items()]
    if counts:
        voice.show(f"training questions: {', '.join(counts)}")


def ensure_tokenizer(text: TextConfig, run_folder: str, captions: Callable[[], Iterable[str]]) -> Tokenizer:
    """Return the vocabulary in the run's folder. A new run first writes the configured one, or trains one."""
    path = f"{run_folder}/tokenizer.json"
    if not storage.exists(path):
        given = text.vocabulary
        tokenizer = Tokenizer.load(given) if given else train_wordpiece(captions(), text.vocabulary_size)
        storage.write_bytes_atomic(path, tokenizer.to_json().encode())
    return Tokenizer.from_json(storage.read_bytes(path).decode())


def ensure_word_table(
    text: TextConfig, run_folder: str, captions: Callable[[], Iterable[str]], tokenizer: Tokenizer
) -> SignificantWords:
    """Return the significant words in the run's folder. A new run first writes the configured ones, or mines them."""
    path = f"{run_folder}/significant_words.json"
    if not storage.exists(path):
        if text.significant_words:
            table = SignificantWords.load(text.significant_words, text.word_families)
            table.refuse_other_vocabulary(tokenizer.pieces)
        else:
            table = mine_significant_words(captions(), tokenizer.pieces)
        table.save(path)
    return SignificantWords.from_json(storage.read_bytes(path).decode())


class TrainingCaptions:
    """The captions of the training clips, or of a sample of `MAX_CAPTIONED` clips. Each iteration reads them again, so
    that they are never all in memory."""

    def __init__(self, data: DataConfig) -> None:
        self.clips = split_clips(data.manifest, data.train_split)
        total = sum(map(len, self.clips.values()))
        self.share = min(1.0, MAX_CAPTIONED / total)
        if self.share < 1:
            print(f"vocabulary and words: the captions of {MAX_CAPTIONED} of the {total} training clips are counted")

    def __iter__(self) -> Iterator[str]:
        for table in (table for rows in self.clips.values() for table in sample_rows(rows, self.share)):
            yield from table["captions"].combine_chunks().flatten().to_pylist()


def sample_rows(rows: Rows, share: float, run_rows: int = 1024) -> Iterator[pa.Table]:
    """Yield a share of the rows: all, or evenly spaced runs. A run is a random sample, because the ids are hashes."""
    if share >= 1:
        yield from rows.batches()
        return
    num_runs = round(len(rows) * share / run_rows)
    for run in range(num_runs):
        start = run * len(rows) // num_runs
        yield rows.range(start, start + run_rows)


def refuse_too_few_words(masking: MaskingConfig, table: SignificantWords) -> None:
    """Raise ValueError when the configuration asks for more significant words than the captions hold."""
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


def stop_on_signal(run_folder: str) -> contextlib.AbstractContextManager[None]:
    """Turn SIGTERM into a stop request within this context; the workers then write a checkpoint and end."""

    def request(*_: Any) -> None:
        voice.say("asked to stop: waiting for the checkpoint")
        request_stop(run_folder)

    return signal_handlers(request, signal.SIGTERM)


def request_stop(run_folder: str) -> None:
    """Ask the workers of the run to write a checkpoint and end."""
    storage.write_bytes_atomic(f"{run_folder}/{STOP_FILE}", b"")


@contextlib.contextmanager
def signal_handlers(handle: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[None]:
    """Handle these signals with `handle`. Do nothing outside the main thread, the only one that may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(job: Job, task: TaskConfig, tracker: Tracker, *, manifest_hash: str, run_hash: str) -> dict[str, Any]:
    """Write results and report to the run's folder and to MLflow, and return the results.

    SilentServerError if MLflow is unreachable: the run then counts as unfinished, and the same command retries this.
    """
    mlflow_runs.refuse_silent(tracker.uri, job.run_folder)
    patient_tracker.send_saved(tracker, job.run_folder)
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "commit": machine.git_commit(),
        "config_hash": run_hash,
        "manifest_hash": manifest_hash,
    }
    results, page = run_results.conclude(job, task, facts)
    storage.write_bytes_atomic(f"{job.run_folder}/report.html", page.encode())
    numbers = {key: value for key, value in results.items() if isinstance(value, int | float)}
    tracker.log(numbers, int(results["num_steps"]))
    scores = {key: value for key, value in numbers.items() if key.startswith(("test/", "temporal/", "validation/"))}
    tracker.log_checkpoint(job.name, run_files.weights_hash(job.run_folder), scores, int(results["num_steps"]))
    with tempfile.TemporaryDirectory() as folder:
        for name in (run_files.CONFIG, run_files.IDENTITY, "report.html", "significant_words.json"):
            Path(folder, name).write_bytes(storage.read_bytes(f"{job.run_folder}/{name}"))
            tracker.log_file(Path(folder, name))
        run_files.write_json(f"{folder}/results.json", results)
        tracker.log_file(Path(folder, "results.json"))
    run_files.write_json(f"{job.run_folder}/results.json", results)  # last: it marks the run as finished
    recalls = sorted(key for key in results if key.endswith(("r1", "r10")))
    for split, keys in itertools.groupby(recalls, key=lambda key: key.rpartition("/")[0]):
        values = (f"{key.rpartition('/')[2]} {results[key]:.3f}" for key in keys)
        voice.show(f"{split:13s} {'  '.join(values)}")
    voice.show(f"report: {job.run_folder}/report.html\nresults: {job.run_folder}/results.json")
    voice.show(f"MLflow: {mlflow_runs.without_password(tracker.uri)}")
    return results
