"""All evaluations of a checkpoint in one table: zero-shot, and fine-tuned by each recipe whose data set is
available."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from cluster.connection import connected_ray
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.evaluation import leaderboard
from jobs.evaluation.cards import hash_of_questions, read_card
from jobs.evaluation.scoring import EvaluateConfig, evaluate
from jobs.experiments.child_runs import StoppedError, StopRequest, run_child
from jobs.launch import driver, preflight
from jobs.reports.run_report import refresh_protocols
from jobs.run import run_files
from jobs.run.config import TASK_FILES, Placement, PretrainConfig
from jobs.run.datasets import CHOICES, MSRVTT_FULL, known_datasets, known_recipes
from jobs.run.fields import as_dict
from jobs.run.recipes import CORPORA, Recipe, corpus_folder, fine_tuning
from jobs.run.run_identity import config_of, with_values
from jobs.tracking import mlflow_runs
from pipeline import storage
from pipeline.corpus.manifest import open_manifest
from pipeline.synthetic.corpus import SUMMARY_NAME


@dataclass(frozen=True, kw_only=True)
class EvaluateAllConfig:
    """The run to evaluate, the corpora, and the number of concurrent evaluations."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of the pre-trained run."""
    corpora: str = CORPORA
    """Folder or bucket with NAME/manifest.parquet of each corpus, and its files of questions."""
    rerank: int | None = None
    """Clips per text that the cross encoder re-ranks; None: all."""
    is_zero_shot_only: bool = False
    """Fine-tune nothing."""
    num_at_once: int | None = None
    """Concurrent evaluations; None: as many as fit on the cluster now."""
    out: str = "table.md"
    """File of the table."""
    placement: Placement = field(default_factory=Placement)
    """Placement of each evaluation; `storage` holds the fine-tuned runs."""

    def __post_init__(self) -> None:
        if self.num_at_once is not None and self.num_at_once < 1:
            raise ValueError(f"num_at_once must be at least 1, got {self.num_at_once}")

    @property
    def fixed_placement(self) -> Placement:
        """The placement with a fixed number of workers."""
        return dataclasses.replace(self.placement, num_workers=self.placement.most_workers)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scoring of an existing run, or of one that another evaluation creates."""

    name: str
    scoring: EvaluateConfig
    needs: tuple[str, ...] = ()
    """Required files; the evaluation is skipped without them."""
    after: str = ""
    """Name of the evaluation whose fine-tuned run it scores."""
    refused: str = ""
    """Why the run cannot be fine-tuned by this recipe."""

    @property
    def folder(self) -> str:
        """The folder of the scored run; empty for a refused fine-tuning."""
        return self.scoring.run

    @property
    def card(self) -> str:
        """The path of the card that it writes."""
        return f"{self.scoring.out}/card.json"

    def obstacles(self) -> list[str]:
        """Return why the evaluation is skipped: missing files, or a run that cannot be fine-tuned."""
        missing = [f"{path} is not there" for path in self.needs if not storage.exists(path)]
        return [self.refused, *missing] if self.refused else missing

    def is_done(self) -> bool:
        """Return whether a card exists for the run's present weights, manifest and questions, with the same
        re-ranking."""
        weights = run_files.best_weights(self.folder)
        if self.refused or not (storage.exists(self.card) and storage.exists(weights)):
            return False
        card = read_card(self.card)
        if card.weights != run_files.weights_hash(self.folder) or card.protocol.rerank != self.scoring.rerank:
            return False
        if card.questions_hash and card.questions_hash != hash_of_questions(card.protocol):
            return False
        return card.manifest_hash == open_manifest(card.protocol.manifest).hash


@dataclass(frozen=True, kw_only=True)
class FineTuned(Evaluation):
    """A fine-tuning and the scoring of its result."""

    start: str
    """Folder of the run from whose weights it starts."""
    recipe: Recipe
    values: Mapping[str, Any]
    """Fields that differ from the recipe."""

    def training(self) -> PretrainConfig:
        """Return the config of the fine-tuning. Raise ValueError if the recipe does not fit the run."""
        training = fine_tuning(self.recipe, config_of(self.start), self.start)
        return with_values(training, self.values, name=self.folder.rsplit("/", 1)[-1])


def evaluations(config: EvaluateAllConfig) -> list[Evaluation]:
    """Return all evaluations, with or without their data. Raise ValueError for a folder that holds no run."""
    run_folder, corpora = storage.absolute(config.run), storage.absolute(config.corpora)
    config_of(run_folder)
    planned = [zero_shot(config, run_folder, dataset.name, dataset.manifest) for dataset in known_datasets()]
    planned.append(choices(config, run_folder, corpora))
    if config.is_zero_shot_only:
        return planned
    for name, recipe in known_recipes().items():
        try:
            planned.append(tuned(config, run_folder, recipe))
        except ValueError as error:
            planned.append(Evaluation(name=name, scoring=EvaluateConfig(), refused=str(error)))
    best = next(evaluation for evaluation in planned if evaluation.name == "msrvtt_retrieval")
    once_more = choices(config, best.folder, corpora, needs=best.needs)
    return [*planned, dataclasses.replace(once_more, after=best.name, refused=best.refused)]


def zero_shot(config: EvaluateAllConfig, run_folder: str, corpus: str, manifest: str) -> Evaluation:
    """Return zero-shot retrieval on a corpus; `manifest`: path in the folder of the corpus."""
    scoring = EvaluateConfig(
        run=run_folder,
        task="retrieval",
        manifest=f"{storage.absolute(config.corpora)}/{corpus}/{manifest}",
        split="test",
        rerank=config.rerank,
        out=f"{run_folder}/evaluation/{corpus}-retrieval",
        placement=config.fixed_placement,
    )
    return Evaluation(name=f"{corpus} retrieval, zero-shot", scoring=scoring, needs=(str(scoring.manifest),))


def choices(config: EvaluateAllConfig, run_folder: str, corpora: str, needs: tuple[str, ...] = ()) -> Evaluation:
    """Return MSRVTT-MC with the matching score of a run that was not trained on multiple choice."""
    manifest, questions = f"{corpora}/{MSRVTT_FULL}/manifest.parquet", f"{corpora}/{MSRVTT_FULL}/{CHOICES}"
    scoring = EvaluateConfig(
        run=run_folder,
        task="multiple_choice",
        manifest=manifest,
        questions=questions,
        split="test",
        out=f"{run_folder}/evaluation/msrvtt-choices",
        placement=config.fixed_placement,
    )
    name = f"MSRVTT-MC with {run_folder.rsplit('/', 1)[-1]}"
    return Evaluation(name=name, scoring=scoring, needs=(manifest, questions, *needs))


def tuned(config: EvaluateAllConfig, run_folder: str, recipe: Recipe) -> FineTuned:
    """Return the fine-tuning of the run by a recipe, and its scoring. Raise ValueError if the recipe does not fit."""
    training = fine_tuning(recipe, config_of(run_folder), run_folder)
    paths = {f"task.{name}": path for name in TASK_FILES if (path := getattr(training.task, name))}
    paths |= {"data.manifest": training.data.manifest}
    corpora = storage.absolute(config.corpora)
    files = {  # recipes name corpora below the default folder; replace it by the folder of the command
        name: path.replace(CORPORA, corpora, 1) if path.startswith(f"{CORPORA}/") else storage.absolute(path)
        for name, path in paths.items()
    }
    name = f"{run_folder.rsplit('/', 1)[-1]}-{training.name}"
    folder = storage.absolute(f"{config.placement.storage}/{name}")
    embedded = () if recipe.corpus else (f"{corpus_folder(training.data.manifest)}/{SUMMARY_NAME}",)
    return FineTuned(
        name=recipe.name,
        start=run_folder,
        recipe=recipe,
        # the whole placement: otherwise fine-tuning would take over the run's
        values={**files, "placement": as_dict(config.fixed_placement)},
        scoring=EvaluateConfig(
            run=folder,
            rerank=config.rerank if recipe.task == "captions" else None,
            out=f"{folder}/evaluation/{recipe.name}",
            placement=config.fixed_placement,
        ),
        needs=(*files.values(), *embedded),
    )


def evaluate_all(config: EvaluateAllConfig) -> list[str]:
    """Run all missing evaluations and write their table to `config.out`; return a line per failure.

    Raise StoppedError after a stop request: running fine-tunings have written a checkpoint.
    """
    planned, to_do = evaluations(config), []
    for evaluation in planned:
        obstacles, is_done = evaluation.obstacles(), evaluation.is_done()
        state = f"not run, {obstacles[0]}" if obstacles else "done" if is_done else "to do"
        print(f"{evaluation.name}: {state}")
        if not obstacles and not is_done:
            to_do.append(evaluation)
    failed = run_all(to_do, config) if to_do else []
    folders = dict.fromkeys(evaluation.folder for evaluation in planned if evaluation.is_done())
    for folder in folders:
        refresh_protocols(folder)
    text = leaderboard.table(leaderboard.TableConfig(runs=tuple(folders)))
    storage.write_bytes_atomic(storage.absolute(config.out), text.encode())
    print(f"table: {storage.absolute(config.out)}")
    return failed


def run_all(to_do: Sequence[Evaluation | FineTuned], config: EvaluateAllConfig) -> list[str]:
    """Run evaluations concurrently, as many as fit; return a line per failure."""
    mlflow_runs.refuse_unreachable(config.placement.storage)
    stop, failed = StopRequest(), []
    with connected_ray(worker_environment=WORKER_ENVIRONMENT, is_watched=True), stop.on_signals():
        driver.refuse_scattered_metrics(config.placement.storage)
        with ThreadPoolExecutor(driver.runs_at_once(config.num_at_once, config.placement)) as pool:
            for wave in (False, True):  # second: evaluations that need the fine-tuned run of another
                evaluations = [evaluation for evaluation in to_do if bool(evaluation.after) == wave]
                failed += pool.map(functools.partial(run_evaluation, stop=stop), evaluations)
    if stop.is_made:
        raise StoppedError
    return [line for line in failed if line]


def run_evaluation(evaluation: Evaluation | FineTuned, stop: StopRequest) -> str:
    """Run an evaluation, after its fine-tuning if it has one. Return why it failed, or an empty text."""
    if evaluation.after and not storage.exists(f"{evaluation.folder}/results.json"):
        return f"{evaluation.name} was not run: {evaluation.after} has not ended well"
    if isinstance(evaluation, FineTuned):
        training = evaluation.training()
        if problems := preflight.survey(training).problems:
            return f"{evaluation.name} failed: {'; '.join(problems)}"
        if error := run_child(training, stop=stop).error:
            return f"{evaluation.name} failed: {error}"
    if stop.is_made:
        return ""
    try:
        evaluate(evaluation.scoring)
    except Exception as error:  # any error: the other evaluations continue
        return f"{evaluation.name} failed: {error}"
    print(f"{evaluation.name}: done", flush=True)
    return ""
