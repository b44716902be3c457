"""Every evaluation of a checkpoint into one table: `ray job submit -- python jobs/evaluate_all.py RUN`.

    zero-shot     retrieval on each corpus that is at hand, and MSR-VTT's multiple choice
    fine-tuned    each recipe of jobs/finetune.py whose corpus is at hand, and its score; MSRVTT-MC once more

As many at a time as the cluster has room for. What is finished already is read; what is not at hand is "not run".
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from cluster.connection import connected_ray
from cluster.run import WORKER_ENVIRONMENT
from jobs import ROOT
from jobs.command_line import parsing
from jobs.evaluation import leaderboard
from jobs.evaluation.cards import hash_of_questions, read_card
from jobs.launch import driver
from jobs.run import run_files
from jobs.run.config import TASK_FILES, Placement, PretrainConfig
from jobs.run.fields import flat
from jobs.run.recipes import CHOICES, MSRVTT_FULL, RECIPES, embedded_folder
from jobs.run.run_identity import config_of
from pipeline import storage
from pipeline.corpus.manifest import read_manifest
from pipeline.synthetic.corpus import SUMMARY_NAME

CORPORA = ("embedded", "msrvtt", "didemo", "msvd", "lsmdc", "activitynet", "vatex")
"""Those whose captions ask for their clips."""


@dataclass(frozen=True, kw_only=True)
class EvaluateAllConfig:
    """Whose evaluations, on what, and how many at a time."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of the pre-trained run."""
    corpora: str = "corpora"
    """Folder or bucket with NAME/manifest.parquet of each corpus, and its files of questions."""
    rerank: int | None = None
    """Clips of each text that the cross encoder orders anew; None: all."""
    is_zero_shot_only: bool = False
    """Fine-tune nothing."""
    num_at_once: int | None = None
    """Evaluations at a time; None: as many as the cluster has room for now."""
    out: str = "table.md"
    """File of the table."""
    placement: Placement = field(default_factory=Placement)
    """Of each evaluation; `storage` holds the fine-tuned runs."""

    def __post_init__(self) -> None:
        if self.num_at_once is not None and self.num_at_once < 1:
            raise ValueError(f"num_at_once must be at least 1, got {self.num_at_once}")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A score, and the commands that lead to it."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    """Words after `python jobs/`."""
    needs: tuple[str, ...]
    """Files without which it is not run."""
    folder: str
    """Of the run that is scored."""
    card: str
    """The card that it writes."""
    rerank: int | None = None
    """With which it is scored."""
    after: str = ""
    """The evaluation whose fine-tuning it needs."""
    refused: str = ""
    """Why this run cannot be fine-tuned so."""

    def obstacles(self) -> list[str]:
        """Why it is not run: files that are not there, or the run itself."""
        missing = [f"{path} is not there" for path in self.needs if not storage.exists(path)]
        return [self.refused, *missing] if self.refused else missing

    def is_done(self) -> bool:
        """Its card is there, and is that of the run's weights on manifest and questions as they are now, re-ranked as
        wanted."""
        if not (self.card and storage.exists(self.card) and storage.exists(run_files.best_weights(self.folder))):
            return False
        card = read_card(self.card)
        if card.weights != run_files.weights_hash(self.folder) or card.protocol.rerank != self.rerank:
            return False
        if card.questions_hash and card.questions_hash != hash_of_questions(card.protocol):
            return False
        return card.manifest_hash == read_manifest(card.protocol.manifest).hash


def evaluations(config: EvaluateAllConfig) -> list[Evaluation]:
    """All of them, whether their data is at hand or not. ValueError for a folder that holds no run."""
    run_folder, corpora = storage.absolute(config.run), storage.absolute(config.corpora)
    run = config_of(run_folder)
    found = [retrieval(config, run_folder, corpora, name) for name in CORPORA]
    found.append(choices(config, run_folder, corpora, needs=()))
    if config.is_zero_shot_only:
        return found
    for name, recipe in RECIPES.items():
        try:
            made = recipe(run, run_folder)
        except ValueError as error:
            found.append(Evaluation(name=name, commands=(), needs=(), folder="", card="", refused=str(error)))
        else:
            found.append(tuned(config, run_folder, corpora, name, made))
    best = next(one for one in found if one.name == "msrvtt_retrieval")
    once_more = choices(config, best.folder, corpora, needs=best.needs)
    return [*found, dataclasses.replace(once_more, after=best.name, refused=best.refused)]


def retrieval(config: EvaluateAllConfig, run_folder: str, corpora: str, corpus: str) -> Evaluation:
    """Retrieval on a corpus, with the run as it is."""
    manifest = manifest_of(corpora, corpus)
    out = f"{run_folder}/evaluation/{corpus}-retrieval"
    words = ["evaluate.py", run_folder, "--task", "retrieval", "--manifest", manifest, "--split", "test", "--out", out]
    return Evaluation(
        name=f"{corpus} retrieval, zero-shot",
        commands=(with_options(config, words, rerank=config.rerank),),
        needs=(manifest,),
        folder=run_folder,
        card=f"{out}/card.json",
        rerank=config.rerank,
    )


def choices(config: EvaluateAllConfig, run_folder: str, corpora: str, needs: tuple[str, ...]) -> Evaluation:
    """MSRVTT-MC by the matching score of a run that was not trained on choices."""
    manifest, questions = manifest_of(corpora, MSRVTT_FULL), f"{corpora}/{MSRVTT_FULL}/{CHOICES}"
    out = f"{run_folder}/evaluation/msrvtt-choices"
    words = ["evaluate.py", run_folder, "--task", "multiple_choice", "--manifest", manifest, "--questions", questions]
    return Evaluation(
        name=f"MSRVTT-MC with {run_folder.rsplit('/', 1)[-1]}",
        commands=(with_options(config, [*words, "--split", "test", "--out", out]),),
        needs=(manifest, questions, *needs),
        folder=run_folder,
        card=f"{out}/card.json",
    )


def tuned(config: EvaluateAllConfig, run_folder: str, corpora: str, recipe: str, made: PretrainConfig) -> Evaluation:
    """A recipe on the run, and its score."""

    def moved(path: str) -> str:
        return f"{corpora}/{path.removeprefix('corpora/')}" if path.startswith("corpora/") else storage.absolute(path)

    name = f"{run_folder.rsplit('/', 1)[-1]}-{made.name}"
    folder = storage.absolute(f"{config.placement.storage}/{name}")
    files = {f"--task.{key}": moved(path) for key in TASK_FILES if (path := getattr(made.task, key))}
    files |= {"--data.manifest": moved(made.data.manifest)}
    train = ["finetune.py", recipe, "--run", run_folder, "--name", name]
    train += [word for option in files.items() for word in option]
    out = f"{folder}/evaluation/{recipe}"
    rerank = config.rerank if made.task.kind == "captions" else None
    return Evaluation(
        name=recipe,
        commands=(
            with_options(config, train),
            with_options(config, ["evaluate.py", folder, "--out", out], rerank=rerank),
        ),
        needs=(*files.values(), *embedded_corpus(recipe, files["--data.manifest"])),
        folder=folder,
        card=f"{out}/card.json",
        rerank=rerank,
    )


def embedded_corpus(recipe: str, manifest: str) -> tuple[str, ...]:
    """What tells that the run's own corpus is the embedded one, for whose sake some recipes are there."""
    return (f"{embedded_folder(manifest)}/{SUMMARY_NAME}",) if recipe.startswith("tiny_") else ()


def manifest_of(corpora: str, corpus: str) -> str:
    """Path of the manifest of a corpus; jobs/local.py keeps that of the embedded one in a folder of its own."""
    return f"{corpora}/{corpus}/{'manifest/' if corpus == 'embedded' else ''}manifest.parquet"


def with_options(config: EvaluateAllConfig, words: list[str], *, rerank: int | None = None) -> tuple[str, ...]:
    """A command with where it runs: all of it, since fine-tuning would begin with what the run had."""
    more = ["--rerank", str(rerank)] if rerank else []
    fields = flat(dataclasses.asdict(config.placement)) | {"num_workers": config.placement.most_workers}
    options = [word for name, value in fields.items() for word in parsing.option(f"placement.{name}", value)]
    return (*words, *more, *options)


def evaluate_all(config: EvaluateAllConfig) -> list[str]:
    """What went wrong, a line each; the table of the rest is in `config.out`."""
    wanted = evaluations(config)
    to_do: list[Evaluation] = []
    for one in wanted:
        obstacles, is_done = one.obstacles(), one.is_done()
        print(f"{one.name}: {f'not run, {obstacles[0]}' if obstacles else 'done' if is_done else 'to do'}")
        if not obstacles and not is_done:
            to_do.append(one)
    failed: list[str] = []
    if to_do:
        with (
            connected_ray(worker_environment=WORKER_ENVIRONMENT),
            ThreadPoolExecutor(driver.runs_at_once(config.num_at_once, config.placement)) as pool,
        ):
            for wave in (False, True):  # those that need another's fine-tuning come after it
                some = [one for one in to_do if bool(one.after) == wave]
                failed += pool.map(run_commands, some)
    folders = dict.fromkeys(one.folder for one in wanted if one.is_done())
    text = leaderboard.table(leaderboard.TableConfig(runs=tuple(folders)))
    storage.write_bytes_atomic(storage.absolute(config.out), text.encode())
    print(f"table: {storage.absolute(config.out)}")
    return [line for line in failed if line]


def run_commands(one: Evaluation) -> str:
    """Runs the commands of an evaluation until one fails. Why it did; empty if none did."""
    if one.after and not storage.exists(f"{one.folder}/results.json"):
        return f"{one.name} was not run: {one.after} has not ended well"
    for words in one.commands:
        command = [sys.executable, str(ROOT / "jobs" / words[0]), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{one.name} failed: {' '.join(command)}\n" + "\n".join(last_lines(done.stderr or done.stdout))
    print(f"{one.name}: done", flush=True)
    return ""


def last_lines(text: str, count: int = 15) -> Iterator[str]:
    """The end of what a command printed, indented."""
    yield from (f"    {line}" for line in text.splitlines()[-count:])
