"""One record per data set: format of its captions, recipes of fine-tuning, test sets.

To add one: a reader in pipeline/corpus/caption_formats.py if its caption format is new, an entry here, and published
scores in jobs/evaluation/published_scores.json. From outside this tree: a `Dataset` as entry point of the group
`snps3.datasets`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.run.recipes import Recipe
from pipeline.corpus.caption_formats import Format, installed_datasets

QA_FILES = {"train": "train_qa.json", "validation": "val_qa.json", "test": "test_qa.json"}
MSRVTT_FULL = "msrvtt_full"
"""Corpus of MSR-VTT with the authors' split (6,513, 497 and 2,990 videos), which MSRVTT-QA and MC use. The corpus of
retrieval, `msrvtt`, tests on 1,000 of these test videos and has another training split."""
CHOICES = "msrvtt_multi_choice_qa.jsonl"
"""File of MSRVTT-MC beside that corpus's manifest."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A test set whose scores are compared with published ones."""

    __test__ = False  # not a test of pytest's

    title: str
    """Heading of its table, and its key among the published scores."""
    task: str = "retrieval"
    sizes: tuple[int, ...] = ()
    """Test videos of retrieval, questions of other tasks; several for several versions. Empty: unknown."""
    min_train: int = 0
    """Fewest training clips for this test set, where a data set has several of one task."""
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Published scores in per cent by method, beside those of published_scores.json."""

    def caveat(self, num_videos: int, num_queries: int) -> str:
        """Return why a score over this many videos or queries is not comparable with published ones, or ""."""
        count, unit = (num_videos, "videos") if self.task == "retrieval" else (num_queries, "questions")
        if count in self.sizes or not self.sizes:
            return ""
        return f"{count} of {' or '.join(f'{size:,}' for size in self.sizes)} {unit}: another test set than theirs"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A published data set."""

    name: str
    """Folder below `corpora/`. A corpus whose name contains it counts as this data set."""
    format: str | Format
    """Format of its captions, as in `jobs/prepare.py --format`."""
    manifest: str = "manifest.parquet"
    """Path of the manifest in the folder."""
    recipes: tuple[Recipe, ...] = ()
    tests: tuple[TestSet, ...] = ()

    def test_of(self, task: str, num_train: int) -> TestSet | None:
        """Return the test set of a task for a corpus with `num_train` training clips; None if there is none."""
        fitting = [test for test in self.tests if test.task == task and test.min_train <= num_train]
        return max(fitting, key=lambda test: test.min_train, default=None)


def embedded_files(folder: str) -> dict[str, str]:
    """Return the question files of the embedded corpus, by dataset of a run."""
    files = {"train": "train", "validation": "val", "test": "test", "temporal": "temporal"}
    return {dataset: f"{folder}/{file}.jsonl" for dataset, file in files.items()}


def retrieval(corpus: str, title: str, **schedule: Any) -> Recipe:
    """Return the recipe of retrieval on a published corpus."""
    return Recipe(name=f"{corpus}_retrieval", title=title, corpus=corpus, **schedule)


DATASETS = (
    Dataset(
        name="embedded",
        format="json_lines",
        manifest="manifest/manifest.parquet",  # jobs/local.py writes it to a subfolder
        recipes=(
            Recipe(
                name="tiny_retrieval",
                title="Retrieval on the embedded corpus.",
                num_steps=240,
                lr=1e-3,
                num_evaluations=2,
            ),
            Recipe(
                name="tiny_qa",
                title="Question answering on the embedded corpus.",
                task="question_answering",
                files=embedded_files("questions"),
                task_fields={"questions_per_clip": 5},
                num_steps=720,
                lr=4e-3,
                num_evaluations=3,
            ),
            Recipe(
                name="tiny_multiple_choice",
                title="Multiple choice on the embedded corpus, trained with options that differ in one attribute.",
                task="multiple_choice",
                files=embedded_files("multiple_choice"),
                num_steps=480,
                lr=2e-3,
                num_evaluations=3,
            ),
        ),
    ),
    Dataset(
        name="msrvtt",
        format="msrvtt_json",  # its test split 1K-A: msrvtt_csv
        recipes=(
            retrieval(
                "msrvtt", "Retrieval on MSR-VTT; its 7K or 9K training split is what the manifest has as `train`."
            ),
            Recipe(
                name="msrvtt_qa",
                title="Question answering on MSRVTT-QA over 1,500 answers.",
                task="question_answering",
                corpus=MSRVTT_FULL,
                files=QA_FILES,
                task_fields={"num_answers": 1500},
            ),
            # With MSR-VTT's schedule: the paper does not fine-tune for it, but scores its retrieval checkpoints.
            Recipe(
                name="msrvtt_multiple_choice",
                title="Multiple choice on MSRVTT-MC, which has a test file only: training and validation draw captions "
                "of other clips.",
                task="multiple_choice",
                corpus=MSRVTT_FULL,
                files={"test": CHOICES},
            ),
        ),
        tests=(
            TestSet(title="MSR-VTT 7K, text to video", sizes=(1000,)),
            TestSet(title="MSR-VTT 9K, text to video", sizes=(1000,), min_train=8001),
            TestSet(title="MSRVTT-QA", task="question_answering", sizes=(72_821,)),
            TestSet(title="MSRVTT-MC", task="multiple_choice", sizes=(2990,)),
        ),
    ),
    Dataset(
        name="didemo",
        format="didemo",
        recipes=(
            retrieval(
                "didemo", "Retrieval of DiDeMo's videos by paragraphs, which need more than 30 tokens.", max_tokens=64
            ),
        ),
        tests=(TestSet(title="DiDeMo, paragraph to video", sizes=(1003, 1004)),),
    ),
    Dataset(
        name="msvd",
        format="msvd",
        recipes=(
            retrieval(
                "msvd", "Retrieval on MSVD, at a tenth of the rate.", num_steps=16_000, decay_step=8_000, lr=1e-6
            ),
            Recipe(
                name="msvd_qa",
                title="Question answering on MSVD-QA over 1,000 answers.",
                task="question_answering",
                corpus="msvd",
                files=QA_FILES,
                task_fields={"num_answers": 1000},
                num_steps=18_000,
                decay_step=10_000,
            ),
        ),
        tests=(
            TestSet(title="MSVD, text to video", sizes=(670,)),
            TestSet(title="MSVD-QA", task="question_answering", sizes=(13_157,)),
        ),
    ),
    # The paper has no schedule for the next three: ActivityNet takes DiDeMo's, the others MSR-VTT's.
    Dataset(
        name="lsmdc",
        format="lsmdc",
        recipes=(retrieval("lsmdc", "Retrieval on LSMDC, with MSR-VTT's schedule: the paper has none for it."),),
        tests=(TestSet(title="LSMDC, text to video", sizes=(1000,)),),
    ),
    Dataset(
        name="activitynet",
        format="activitynet",
        recipes=(
            retrieval(
                "activitynet",
                "Retrieval of ActivityNet's videos by paragraphs, with DiDeMo's schedule: the paper has none for it.",
                max_tokens=128,
            ),
        ),
        tests=(TestSet(title="ActivityNet, paragraph to video", sizes=(4917,)),),
    ),
    Dataset(
        name="vatex",
        format="vatex",
        recipes=(retrieval("vatex", "Retrieval on VATEX, with MSR-VTT's schedule: the paper has none for it."),),
        tests=(TestSet(title="VATEX, text to video", sizes=(1500,)),),
    ),
)


@functools.cache
def known_datasets() -> tuple[Dataset, ...]:
    """Return the data sets of this file and of installed plug-ins. ValueError if a plug-in is not a `Dataset`."""
    plugins = installed_datasets()
    for name, plugin in plugins.items():
        if not isinstance(plugin, Dataset):
            raise ValueError(f"the entry point {name!r} of the group snps3.datasets is no Dataset of jobs.run.datasets")
    return (*DATASETS, *plugins.values())


def known_recipes() -> dict[str, Recipe]:
    """Return the recipes of all data sets by name."""
    return {recipe.name: recipe for dataset in known_datasets() for recipe in dataset.recipes}


def published_test_set(corpus: str, task: str, num_train: int) -> TestSet | None:
    """Return the published test set of `task` for a corpus with this name and number of training clips, or None."""

    def plain(name: str) -> str:
        return name.lower().replace("-", "").replace("_", "")

    fitting = [dataset for dataset in known_datasets() if plain(dataset.name) in plain(corpus)]
    return next((test for dataset in fitting if (test := dataset.test_of(task, num_train))), None)
