"""The protocol of a task, which defines network, batches and metrics of a run, and the tasks by name.

| `task.kind` | a clip comes with | network | measured by |
|---|---|---|---|
| captions | one of its captions | `Pretraining`: the losses of `objective` | retrieval in both directions |
| question_answering | some of its questions | `Answering` | accuracy, by kind of question |
| multiple_choice | its caption and four wrong ones | `Choosing` | accuracy, by kind of choice |

A task of another package is a subclass of `Task`, named as `package.module:Name` or by an entry point of the group
`snps3.tasks`. All tasks read the same clips in the same order; each rank looks up the questions of a clip by its id.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from cluster.world import World
from jobs.run import run_files
from jobs.run.config import TaskConfig
from jobs.tasks.network import Network, NetworkOptions
from jobs.tasks.retrieval import RetrievalOptions
from jobs.tasks.text import TextProcessor
from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import checksum
from pipeline.nearest import did_you_mean
from pipeline.records import Batch, ClipRows
from snps3_model.config import ObjectiveConfig
from snps3_model.loss_table import Loss, attribute
from snps3_model.snps3 import SNPS3

if TYPE_CHECKING:  # the loader imports Ray, which preflight must not
    from pipeline.stream.loader import ClipSource

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "captions": "jobs.tasks.captions:CaptionTask",
        "question_answering": "jobs.tasks.questions:QuestionTask",
        "multiple_choice": "jobs.tasks.choices:ChoiceTask",
    }
)
"""`task.kind` → class of each task of this project."""
GROUP = "snps3.tasks"
"""Group of entry points that name tasks of other packages."""


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """The inputs of `Task.create`, from the driver or from an evaluation."""

    config: TaskConfig
    files: Mapping[str, str]
    """Files of questions, by dataset: train, validation, test or temporal."""
    objective: ObjectiveConfig
    extra: Mapping[Loss, float] = field(default_factory=dict)
    """Losses of other packages with their weights; only for training."""
    retrieval: RetrievalOptions
    manifest: Listing
    sources: Mapping[str, ClipSource]
    """Clips, by dataset."""
    seed: int
    run_folder: str
    """Folder with the files of `Task.run_files`, if the run was started before."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A dataset to evaluate, with network and text processor. All ranks take part, each with its share of the clips."""

    name: str
    """validation, test or temporal."""
    batches: Iterable[Batch]
    """This rank's share; may be an iterator that can be read only once."""
    source: ClipSource
    network: Network
    text: TextProcessor
    world: World
    alive: Callable[[], None] = lambda: None
    """Called after each part of a long evaluation, for the watchdog."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The scores of a protocol card, and the clips and queries that they are over."""

    ids_hash: str
    """Hash of the clip ids and the query texts or question ids, in order."""
    num_videos: int
    num_queries: int
    num_missing: int | None
    """Questions about clips that are not in the split; None for a task without files of questions."""
    num_undecoded: int
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Scored pairs of a dataset for the report of a run."""

    captions: Sequence[str]
    clips: Mapping[int, UInt8[np.ndarray, "T h w 3"]]
    """Column → thumbnails, of the clips that a report shows."""
    relevant: Bool[np.ndarray, "Q C"]
    scores: Mapping[str, Float[np.ndarray, "Q C"]]
    """By name; the report ranks by the first."""
    groups: Int[np.ndarray, " Q"] | None
    filled: Sequence[Sequence[tuple[int, int, Sequence[tuple[int, float]]]]]
    """Masked positions of the captions of the first clips: (position, true id, [(guessed id, probability), …])."""
    token_ids: Int[np.ndarray, "b L"]
    """Masked tokens of those captions."""


@dataclass(frozen=True, kw_only=True)
class SavedScores:
    """The results of a finished run on a dataset."""

    metrics: Mapping[str, float]
    measured: Measured
    examples: Examples | None = None


class Task(abc.ABC):
    """The task of a run: a frozen dataclass that is pickled to every rank."""

    score_name: ClassVar[str]
    """Name of the task in `evaluate.py --task` and on protocol cards."""
    scores_all_pairs: ClassVar[bool] = False
    """Whether the cost of evaluation is quadratic in the clips, so that `data.max_evaluation_clips` applies."""
    reads_questions: ClassVar[bool] = False
    """Whether `evaluate.py` needs a file of questions."""
    needs_own_head: ClassVar[bool] = True
    """Whether only a run that was trained for this task can be scored on it."""

    @classmethod
    @abc.abstractmethod
    def create(cls, inputs: TaskInputs) -> Self:
        """Return the task after reading its files. ValueError for files that do not fit the clips."""

    @classmethod
    @abc.abstractmethod
    def metric_names(cls, rerank: int | None) -> list[str]:
        """Return the higher-is-better metrics of the validation split."""

    @abc.abstractmethod
    def network(self, model: SNPS3, options: NetworkOptions) -> Network:
        """Return `model` with the heads and losses of this task."""

    @abc.abstractmethod
    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Evaluate a dataset and return its metrics, whose names begin with the dataset's name."""

    def batch(self, rows: ClipRows, text: TextProcessor) -> Batch:
        """Return a training batch; by default with one caption per clip."""
        return text.batch(rows)

    def run_files(self) -> dict[str, Any]:
        """Return the files to keep in the run's folder for resumption and evaluation: name → JSON value."""
        return {}

    def training_facts(self) -> dict[str, float]:
        """Return counts of the training questions, and of those that cannot be learned."""
        return {}

    def summary(self, metrics: Mapping[str, float]) -> str:
        """Return the validation metrics as a short text; by default only their number."""
        return f"{len(metrics)} validation metrics"

    def score(self, evaluation: Evaluation, folder: str) -> Measured:
        """Return the results of a dataset for its protocol card. May write raw scores to `folder`."""
        return self.saved(evaluation).measured

    def save_scores(self, evaluation: Evaluation, folder: str) -> None:
        """Evaluate a dataset; the first rank writes the results to `folder`, for `read_scores`."""
        saved = self.saved(evaluation)
        if evaluation.world.is_first:
            content = {"metrics": saved.metrics, "measured": asdict(saved.measured)}
            run_files.write_json(f"{folder}/{evaluation.name}.json", content)

    def read_scores(self, name: str, source: ClipSource, folder: str) -> SavedScores | None:
        """Return the results of `save_scores` for the dataset `name`; None if the task does not evaluate it."""
        saved = run_files.read_json(f"{folder}/{name}.json")
        return SavedScores(metrics=saved["metrics"], measured=Measured(**saved["measured"]))

    def saved(self, evaluation: Evaluation) -> SavedScores:
        """Evaluate a dataset and return its metrics, with the clips that they are over."""
        seen: list[tuple[Tensor, Tensor]] = []

        def noted() -> Iterator[Batch]:
            for batch in evaluation.batches:
                seen.append((batch.clip_ids, batch.weight))
                yield batch

        metrics = self.measure(dataclasses.replace(evaluation, batches=noted()))
        usable = [clip_id for clip_ids, weight in seen for clip_id in clip_ids[weight > 0.5].tolist()]
        clip_ids = sorted(evaluation.world.gather_objects(usable))
        return SavedScores(metrics=metrics, measured=measured(clip_ids, (), evaluation.source, metrics))


def measured(
    clip_ids: Sequence[int], texts: Sequence[str], source: ClipSource, scores: Mapping[str, float]
) -> Measured:
    """Return the results for a protocol card over these decoded clips of `source` and the queries `texts`."""
    return Measured(
        ids_hash=hash_of_ids([*clip_ids, *texts]),
        num_videos=len(clip_ids),
        num_queries=len(texts or clip_ids),
        num_missing=None,
        num_undecoded=source.num_clips - len(clip_ids),
        scores=scores,
    )


def task_type(kind: str) -> type[Task]:
    """Return the task that `kind` names: one of `TASKS`, an entry point of `snps3.tasks`, or `package.module:Name`.

    Imports its module, so `kind` must come from the user or from code, never from an untrusted file. ValueError if it
    names no task.
    """
    path = TASKS.get(kind, kind)
    if ":" not in path:
        points = {point.name: point.value for point in entry_points(group=GROUP)}
        if kind not in points:
            hint = f"{did_you_mean(kind, [*TASKS, *points])} ".lstrip()
            raise ValueError(
                f"there is no task {kind!r}; {hint}choose one of {', '.join([*TASKS, *points])}, or name a class of "
                "yours as package.module:Name"
            )
        path = points[kind]
    try:
        task_class = attribute(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the task {kind} cannot be imported: {error}; install its package, or mend the name"
        ) from error
    if not (isinstance(task_class, type) and issubclass(task_class, Task)):
        raise ValueError(f"{kind} is no subclass of jobs.tasks.task.Task")
    return task_class


def own_type(kind: str) -> type[Task] | None:
    """Return the task of this project that `kind` names; None for a third-party task, which is not imported."""
    return task_type(kind) if kind in TASKS else None


def score_name(kind: str) -> str:
    """Return the name of the task `kind` on protocol cards; for a third-party task, `kind` itself."""
    task = own_type(kind)
    return task.score_name if task else kind


def scored_kind(name: str) -> str:
    """Return the `task.kind` whose name on protocol cards is `name`."""
    return next((kind for kind in TASKS if score_name(kind) == name), name)


def hash_of_ids(ids: Iterable[Any]) -> str:
    """Return a hash (32 hex digits) of the ids, which depends on their order."""
    return checksum(json.dumps(list(ids), ensure_ascii=False).encode())
