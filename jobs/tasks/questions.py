"""Questions about clips: the base of all tasks that ask about a clip, and open-ended question answering."""

from __future__ import annotations

import abc
import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from jobs.run import run_files
from jobs.tasks.network import Network, NetworkOptions
from jobs.tasks.task import Evaluation, Measured, SavedScores, Task, TaskInputs, hash_of_ids
from jobs.tasks.text import TextProcessor
from pipeline import storage
from pipeline.corpus.listing import Listing
from pipeline.corpus.questions import (
    MAPPING,
    AnyQuestion,
    ClipNames,
    ClipQuestions,
    Question,
    answer_list,
    group_by_clip,
    known_answers,
    read_questions,
    unanswerable,
)
from pipeline.records import IGNORED_LABEL, Batch, ClipRows, QuestionBatch
from pipeline.stream.randomness import Purpose, clip_rng
from pipeline.stream.transforms import normalise
from snps3_model.downstream import Answering
from snps3_model.metrics import with_intervals
from snps3_model.snps3 import SNPS3

if TYPE_CHECKING:
    from pipeline.stream.loader import ClipSource

ROWS_AT_ONCE = 1024
"""Questions, or options, of one cross pass during evaluation."""
COUNTS = ("num_missing", "num_undecoded", "num_asked")
"""Counts among the metrics, which a protocol card shows beside its scores."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """An answer of the network to a question."""

    question_id: str
    clip_id: int
    kind: str
    given: str
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class AskingTask(Task, Generic[AnyQuestion]):
    """The base of tasks with questions or choices about clips."""

    reads_questions: ClassVar[bool] = True

    questions: Mapping[str, ClipQuestions[AnyQuestion]]
    """By dataset: train, validation, test, temporal."""
    is_video_hidden: bool = False

    @classmethod
    def metric_names(cls, rerank: int | None) -> list[str]:
        """Return the accuracy."""
        return ["validation/accuracy"]

    def shown(self, batch: Batch) -> Batch:
        """Return the batch, with black frames if `is_video_hidden`."""
        return dataclasses.replace(batch, frames=torch.zeros_like(batch.frames)) if self.is_video_hidden else batch

    def drawn(self, rows: ClipRows, seed: int, max_per_clip: int) -> list[list[AnyQuestion]]:
        """Draw at most `max_per_clip` questions of each training clip, others in each epoch."""
        by_clip = self.questions["train"].by_clip
        drawn: list[list[AnyQuestion]] = []
        for clip_id, weight in zip(rows.clip_ids.tolist(), rows.weight.tolist(), strict=True):
            questions = list(by_clip.get(clip_id, ())) if weight > 0 else []
            order = clip_rng(seed, rows.epoch, clip_id, Purpose.CAPTION).permutation(len(questions))
            drawn.append([questions[place] for place in order[:max_per_clip].tolist()])
        return drawn

    @torch.no_grad()
    def predictions(self, evaluation: Evaluation) -> list[Predicted]:
        """Answer all questions about this rank's clips, and encode each clip once. No batch is kept, and the host waits
        for the device a fixed number of times."""
        network: Any = evaluation.network
        network.eval()
        parts = []
        for batch in map(self.shown, evaluation.batches):
            video = network.model.encode_video(normalise(batch.frames), batch.frame_pad_mask)
            parts.append((batch.clip_ids, batch.weight, video.tokens))
        if not parts:
            return []
        clip_ids, weight, tokens = (torch.cat(column) for column in zip(*parts, strict=True))
        asked = self.asked(evaluation.name, clip_ids.tolist(), weight.tolist())
        chosen = []
        for start in range(0, len(asked), ROWS_AT_ONCE):
            rows, _, questions = zip(*asked[start : start + ROWS_AT_ONCE], strict=True)
            clips = tokens[torch.tensor(rows).to(tokens.device)]
            chosen.append(self.choose(network, questions, clips, evaluation.text))
            evaluation.alive()
        numbers = torch.cat(chosen).tolist() if chosen else []
        return [
            Predicted(
                question_id=question.question_id,
                clip_id=clip_id,
                kind=question.kind,
                given=self.answer(question, number),
                is_right=self.is_right(question, number),
            )
            for (_, clip_id, question), number in zip(asked, numbers, strict=True)
        ]

    def asked(self, name: str, clip_ids: Sequence[int], weight: Sequence[float]) -> list[tuple[int, int, AnyQuestion]]:
        """Return (row, clip id, question) of each question about the usable clips."""
        by_clip = self.questions[name].by_clip
        return [
            (row, clip_id, question)
            for row, (clip_id, share) in enumerate(zip(clip_ids, weight, strict=True))
            if share > 0.5
            for question in by_clip.get(clip_id, ())
        ]

    @abc.abstractmethod
    def choose(
        self, network: Any, questions: Sequence[AnyQuestion], frame_tokens: Tensor, text: TextProcessor
    ) -> Int64[Tensor, " Q"]:
        """Return the number of the answer to each question, on the device."""

    @abc.abstractmethod
    def answer(self, question: AnyQuestion, number: int) -> str:
        """Return the answer with this number, as text."""

    @abc.abstractmethod
    def is_right(self, question: AnyQuestion, number: int) -> bool:
        """Return whether the answer with this number is right."""

    def results(self, predicted: Sequence[Predicted], name: str) -> dict[str, float]:
        """Return the accuracies of the dataset `name`, and the numbers of asked, missing and undecoded questions."""
        questions = self.questions[name]
        counts = {"num_asked": len(predicted), "num_missing": len(questions.missing)}
        counts["num_undecoded"] = questions.num_questions - len(predicted)
        return accuracies(predicted, name) | {f"{name}/{key}": float(count) for key, count in counts.items()}

    def all_predictions(self, evaluation: Evaluation) -> list[Predicted]:
        """Return the answers to the questions about all ranks' clips."""
        return evaluation.world.gather_objects(self.predictions(evaluation))

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Return accuracies and counts."""
        return self.results(self.all_predictions(evaluation), evaluation.name)

    def saved(self, evaluation: Evaluation) -> SavedScores:
        """Answer all questions and return the results, with those for the protocol card."""
        return self.saved_of(self.all_predictions(evaluation), evaluation.name)

    def saved_of(self, predicted: Sequence[Predicted], name: str) -> SavedScores:
        """Return the results of the answers to the questions about the dataset `name`."""
        metrics = self.results(predicted, name)
        return SavedScores(metrics=metrics, measured=measured(predicted, metrics, name))

    def save_scores(self, evaluation: Evaluation, folder: str) -> None:
        """Write all answers to `folder`/NAME.json, if the dataset has questions."""
        if evaluation.name not in self.questions:
            for _ in evaluation.batches:  # reading puts clips that cannot be decoded into the ledger
                pass
            return
        predicted = self.all_predictions(evaluation)
        if evaluation.world.is_first:
            run_files.write_json(f"{folder}/{evaluation.name}.json", [asdict(answer) for answer in predicted])

    def read_scores(self, name: str, source: ClipSource, folder: str) -> SavedScores | None:
        """Return the metrics of the answers in `folder`/NAME.json; None without questions about the dataset."""
        if name not in self.questions:
            return None
        answers = run_files.read_json(f"{folder}/{name}.json")
        return self.saved_of([Predicted(**answer) for answer in answers], name)

    def training_facts(self) -> dict[str, float]:
        """Return the numbers of training questions, and of those about clips missing in the split."""
        if not (questions := self.questions.get("train")):
            return {}
        return {"train/num_asked": float(questions.num_questions), "train/num_missing": float(len(questions.missing))}

    def summary(self, metrics: Mapping[str, float]) -> str:
        """Return the accuracy."""
        return f"validation accuracy {metrics['validation/accuracy']:.3f}"


@dataclass(frozen=True, kw_only=True)
class QuestionTask(AskingTask[Question]):
    """Video question answering, as classification over a list of answers."""

    score_name: ClassVar[str] = "question_answering"

    answers: tuple[str, ...]
    is_multi_label: bool = False
    questions_per_clip: int = 1

    @classmethod
    def create(cls, inputs: TaskInputs) -> Self:
        """Return the task with the answers saved in the run's folder, by whose numbers its head was trained, or else
        with those of the training questions. ValueError for fewer than two answers."""
        config, path = inputs.config, f"{inputs.run_folder}/{run_files.ANSWERS}"
        questions = {name: read_questions(path) for name, path in inputs.files.items()}
        saved = run_files.read_json(path) if "train" not in questions or storage.exists(path) else None
        answers = tuple(saved or answer_list(questions["train"], config.num_answers))
        if len(answers) < 2:
            raise ValueError(
                f"{config.train}: question answering needs two answers at least, its questions have {answers}"
            )
        return cls(
            questions=by_clips(inputs, questions),
            is_video_hidden=config.is_video_hidden,
            answers=answers,
            is_multi_label=config.is_multi_label,
            questions_per_clip=config.questions_per_clip,
        )

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Return the number of each answer in the list."""
        return {answer: number for number, answer in enumerate(self.answers)}

    def run_files(self) -> dict[str, Any]:
        """Return the list of answers as a file."""
        return {run_files.ANSWERS: self.answers}

    def num_outside_list(self, name: str) -> float:
        """Return the number of questions of a dataset without a right answer in the list."""
        questions = [question for of_clip in self.questions[name].by_clip.values() for question in of_clip]
        return float(len(unanswerable(questions, self.answers)))

    def training_facts(self) -> dict[str, float]:
        """Add the number of training questions without an answer in the list."""
        return super().training_facts() | {"train/num_outside_list": self.num_outside_list("train")}

    def results(self, predicted: Sequence[Predicted], name: str) -> dict[str, float]:
        """Add the number of questions that count as wrong because their answer is not in the list."""
        return super().results(predicted, name) | {f"{name}/num_outside_list": self.num_outside_list(name)}

    def network(self, model: SNPS3, options: NetworkOptions) -> Network:
        """Return the network with a score per answer."""
        network = Answering(
            model,
            len(self.answers),
            is_multi_label=self.is_multi_label,
            gather=options.gather,
            rows_at_once=options.rows_at_once,
        )
        return cast(Network, network)

    def batch(self, rows: ClipRows, text: TextProcessor) -> QuestionBatch:
        """Return training clips with some of their questions. A question without a known answer has weight 0, and so
        has a clip with no other questions."""
        num_questions = self.questions_per_clip
        drawn = [
            questions + [None] * (num_questions - len(questions))
            for questions in self.drawn(rows, text.seed, num_questions)
        ]
        texts = [[question.text if question else "" for question in of_clip] for of_clip in drawn]
        right = [[known_answers(question, self.numbers) if question else [] for question in row] for row in drawn]
        known = np.array([[bool(numbers) for numbers in of_clip] for of_clip in right], np.float32)
        weight = rows.weight * known.max(1)
        first = dataclasses.replace(rows, captions=[first for first, *_ in texts], weight=weight)
        batch = self.shown(text.batch(first))
        ids, mask = text.tokens([question for of_clip in texts for question in of_clip])
        width = max([1, *(len(numbers) for of_clip in right for numbers in of_clip)])
        padded = [[numbers + [IGNORED_LABEL] * (width - len(numbers)) for numbers in of_clip] for of_clip in right]
        return QuestionBatch(
            **vars(batch),
            question_ids=ids.unflatten(0, (-1, num_questions)),
            question_mask=mask.unflatten(0, (-1, num_questions)),
            question_weight=torch.from_numpy(weight[:, None] * known),
            answers=torch.tensor(padded),
        )

    def choose(
        self, network: Any, questions: Sequence[Question], frame_tokens: Tensor, text: TextProcessor
    ) -> Int64[Tensor, " Q"]:
        """Return the number of the answer with the highest score for each question."""
        ids, mask = text.tokens([question.text for question in questions])
        return network.logits(ids.to(frame_tokens.device), mask.to(frame_tokens.device), frame_tokens).argmax(1)

    def answer(self, question: Question, number: int) -> str:
        """Return an answer of the list."""
        return self.answers[number]

    def is_right(self, question: Question, number: int) -> bool:
        """Return whether the answer is one of the question's answers."""
        return self.answers[number] in question.answers


def by_clips(
    inputs: TaskInputs, questions: Mapping[str, Sequence[AnyQuestion]]
) -> dict[str, ClipQuestions[AnyQuestion]]:
    """Return the questions of each dataset by clip. ValueError for a file about a dataset that is not read, or about
    none of its clips."""
    for name in questions.keys() - inputs.sources.keys():
        raise ValueError(f"task.{name} asks about a split that is not read: set data.{name}_split, or leave it out")
    return {
        name: of_split(inputs.manifest, inputs.sources[name], inputs.files[name], asked)
        for name, asked in questions.items()
    }


def of_split(
    manifest: Listing, source: ClipSource, path: str, questions: Sequence[AnyQuestion]
) -> ClipQuestions[AnyQuestion]:
    """Return the questions of the file `path` by clip. ValueError if they are about none of the clips of `source`."""
    rows = manifest.split(source.split) if source.plan else source.rows()  # training reads images too
    by_clip = group_by_clip(questions, ClipNames(rows, manifest.root))
    if not by_clip.by_clip:
        examples = ", ".join(repr(question.clip_name) for question in questions[:3])
        is_numbered = all(question.clip_name.removeprefix("vid").isdigit() for question in questions)
        numbers = f"; if these are MSVD's numbers, put its {MAPPING} beside the questions" if is_numbered else ""
        raise ValueError(
            f"{path} asks about {examples}, …, and none of them is a clip of the split {source.split!r} of "
            f"{manifest.corpus} in {manifest.root}; name the file of this split, or a manifest with these clips"
            f"{numbers}"
        )
    return by_clip


def measured(predicted: Sequence[Predicted], results: Mapping[str, float], name: str) -> Measured:
    """Return the results of a dataset for its protocol card."""
    scores = {key: value for key, value in results.items() if key.startswith(f"{name}/")}
    counts = {count: int(scores.pop(f"{name}/{count}")) for count in COUNTS}
    ids = sorted((answer.clip_id, answer.question_id) for answer in predicted)
    return Measured(
        ids_hash=hash_of_ids(ids),
        num_videos=len({clip_id for clip_id, _ in ids}),
        num_queries=counts["num_asked"],
        num_missing=counts["num_missing"],
        num_undecoded=counts["num_undecoded"],
        scores=scores,
    )


def accuracies(predicted: Sequence[Predicted], prefix: str) -> dict[str, float]:
    """Return `{prefix}/accuracy` with `_low` and `_high`, and the same for each kind, as `{prefix}/accuracy/{kind}`.

    The interval is a bootstrap over clips, because the answers about one clip are correlated.
    """
    if not predicted:
        raise ValueError(f"no question of {prefix} could be asked: no clip that its file names is there")
    groups: dict[str, list[Predicted]] = defaultdict(list)
    for answer in predicted:
        groups[f"{prefix}/accuracy"].append(answer)
        if answer.kind:
            groups[f"{prefix}/accuracy/{answer.kind}"].append(answer)
    results: dict[str, float] = {}
    for key, answers in groups.items():
        clip_ids = np.array([answer.clip_id for answer in answers])
        results |= with_intervals({key: np.array([answer.is_right for answer in answers], float)}, clip_ids)
    return results
