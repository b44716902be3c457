"""What a run is trained for and how that is measured: the protocol of a task, and the tasks by their names.

| `task.kind` | a clip comes with | network | measured by |
|---|---|---|---|
| captions | one of its captions | `Pretraining`: the losses of `objective` | retrieval in both directions |
| question_answering | some of its questions | `Answering` | accuracy, by kind of question |
| multiple_choice | its caption and four wrong ones | `Choosing` | accuracy, by kind of choice |

A task of your own is a subclass of `Task` and is named `package.module:Name`, or by an entry point of the group
`snps3.tasks`. All tasks read the same clips in the same order; what is asked about a clip is looked up by its id on
the rank.
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

if TYPE_CHECKING:  # the loader imports Ray, and preflight reads the names of metrics without it
    from pipeline.stream.loader import ClipSource

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "captions": "jobs.tasks.captions:CaptionTask",
        "question_answering": "jobs.tasks.questions:QuestionTask",
        "multiple_choice": "jobs.tasks.choices:ChoiceTask",
    }
)
"""Where each task of this project is defined, by `task.kind`."""
GROUP = "snps3.tasks"
"""Entry points that name tasks of other packages."""


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """What the driver makes a task from."""

    config: TaskConfig
    files: Mapping[str, str]
    """Files of questions, by dataset: train, validation, test or temporal."""
    objective: ObjectiveConfig
    extra: Mapping[Loss, float] = field(default_factory=dict)
    """Losses of other packages with their weights; only where a run trains."""
    retrieval: RetrievalOptions
    manifest: Listing
    sources: Mapping[str, ClipSource]
    """Clips, by dataset."""
    seed: int
    run_folder: str
    """Where the files of `Task.run_files` lie, if the run has been started before."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A dataset to be measured, and what it is measured with. All ranks take part, each with its share of the clips."""

    name: str
    """validation, test or temporal."""
    batches: Iterable[Batch]
    """This rank's share, which may come from a stream that is read once."""
    source: ClipSource
    network: Network
    text: TextProcessor
    world: World
    alive: Callable[[], None] = lambda: None
    """To be called after each part of a long measurement."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The scores of a protocol card, and what they were measured on."""

    ids_hash: str
    """Of the ids of the clips and the texts that queried, in order."""
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
    """Pictures of the columns that a report shows."""
    relevant: Bool[np.ndarray, "Q C"]
    scores: Mapping[str, Float[np.ndarray, "Q C"]]
    """By name; the report ranks by the first."""
    groups: Int[np.ndarray, " Q"] | None
    filled: Sequence[Sequence[tuple[int, int, Sequence[tuple[int, float]]]]]
    """For the caption of each of the first clips its masked positions: (position, true id, [(guessed id, probability),
    …])."""
    token_ids: Int[np.ndarray, "b L"]
    """Of those captions."""


@dataclass(frozen=True, kw_only=True)
class SavedScores:
    """What a finished run has measured on a dataset."""

    metrics: Mapping[str, float]
    measured: Measured
    examples: Examples | None = None


class Task(abc.ABC):
    """What a run is trained for. A frozen dataclass that is pickled to every rank."""

    score_name: ClassVar[str]
    """What `evaluate.py --task` and protocol cards call it."""
    scores_all_pairs: ClassVar[bool] = False
    """Measuring costs the square of the clips: a run takes at most `data.max_evaluation_clips`."""
    reads_questions: ClassVar[bool] = False
    """`evaluate.py` needs a file of questions."""
    needs_own_head: ClassVar[bool] = True
    """Only a run that was trained for this task can be scored on it."""

    @classmethod
    @abc.abstractmethod
    def create(cls, inputs: TaskInputs) -> Self:
        """Return the task with its files read. ValueError for files that do not belong to the clips."""

    @classmethod
    @abc.abstractmethod
    def metric_names(cls, rerank: int | None) -> list[str]:
        """Return the metrics of the validation split that are higher for a better model."""

    @abc.abstractmethod
    def network(self, model: SNPS3, options: NetworkOptions) -> Network:
        """Return `model` with the heads and losses of this task."""

    @abc.abstractmethod
    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the metrics of a dataset, under names that begin with its name."""

    def batch(self, rows: ClipRows, text: TextProcessor) -> Batch:
        """Return training clips as the network reads them; by default with one caption each."""
        return text.batch(rows)

    def run_files(self) -> dict[str, Any]:
        """Return what the run's folder has to keep for a resumed run and for evaluation, as JSON by file name."""
        return {}

    def training_facts(self) -> dict[str, float]:
        """Return counts of what the training files ask, and of what in them cannot be learned."""
        return {}

    def summary(self, metrics: Mapping[str, float]) -> str:
        """Return the validation metrics in half a line; by default nothing but the count."""
        return f"{len(metrics)} validation metrics"

    def score(self, evaluation: Evaluation, folder: str) -> Measured:
        """Return what a protocol card says of a dataset. May write raw scores to `folder`."""
        return self.saved(evaluation).measured

    def save_scores(self, evaluation: Evaluation, folder: str) -> None:
        """Write what `read_scores` reads to `folder`, on the first rank."""
        saved = self.saved(evaluation)
        if evaluation.world.is_first:
            content = {"metrics": saved.metrics, "measured": asdict(saved.measured)}
            run_files.write_json(f"{folder}/{evaluation.name}.json", content)

    def read_scores(self, name: str, source: ClipSource, folder: str) -> SavedScores | None:
        """Return what `save_scores` wrote for the dataset `name`; None if it is not measured."""
        saved = run_files.read_json(f"{folder}/{name}.json")
        return SavedScores(metrics=saved["metrics"], measured=Measured(**saved["measured"]))

    def saved(self, evaluation: Evaluation) -> SavedScores:
        """Return the metrics of a dataset with what they were measured on."""
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
    """Return the card's part about these clips of `source`, which were decoded and searched by `texts`."""
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

    Imports its module, so `kind` must come from the user or from code, never from a file of somebody else. ValueError
    for a name that is no task.
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
        found = attribute(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the task {kind} cannot be imported: {error}; install its package, or mend the name"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"{kind} is no subclass of jobs.tasks.task.Task")
    return found


def own_type(kind: str) -> type[Task] | None:
    """Return the task of this project that `kind` names; None for one of somebody else, which is not imported."""
    return task_type(kind) if kind in TASKS else None


def score_name(kind: str) -> str:
    """Return what protocol cards call the task `kind`; one of somebody else is called by its name."""
    task = own_type(kind)
    return task.score_name if task else kind


def scored_kind(name: str) -> str:
    """Return the `task.kind` whose protocol cards say `name`."""
    return next((kind for kind in TASKS if score_name(kind) == name), name)


def hash_of_ids(ids: Iterable[Any]) -> str:
    """Return 32 hex digits of ids in their order."""
    return checksum(json.dumps(list(ids), ensure_ascii=False).encode())
