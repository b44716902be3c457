"""What a clip is asked in training and in evaluation, and how the answers are counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from toy import run_of

from cluster.world import World
from jobs.launch.preflight import metric_problems
from jobs.run import run_files
from jobs.run.config import TaskConfig
from jobs.run.datasets import known_recipes
from jobs.run.presets import tiny
from jobs.run.recipes import fine_tuning
from jobs.tasks.choices import ChoiceTask, all_captions, drawn_choices
from jobs.tasks.questions import Predicted, QuestionTask, accuracies
from jobs.tasks.retrieval import RetrievalOptions
from jobs.tasks.task import Evaluation, TaskInputs
from jobs.tasks.text import TextProcessor
from jobs.training.job import make_sources
from pipeline.corpus.manifest import open_manifest
from pipeline.corpus.questions import Choice, ClipQuestions, Question
from pipeline.records import IGNORED_LABEL, Batch, ClipRows
from pipeline.text.significance import mine_significant_words
from pipeline.text.tokenizer import train_wordpiece

CAPTIONS = [f"a {colour} {shape} moves" for colour in ("red", "blue", "green") for shape in ("ring", "star", "cross")]
ANSWERS = ("red", "blue")


@pytest.fixture(scope="module")
def text() -> TextProcessor:
    tokenizer = train_wordpiece([*CAPTIONS, "what colour is it ?"], 100)
    table = mine_significant_words(CAPTIONS, tokenizer.pieces)
    return TextProcessor(tokenizer=tokenizer, table=table, text=tiny().text, masking=tiny().masking, seed=0)


def rows(count: int, *, epoch: int = 0, rejected: tuple[int, ...] = ()) -> ClipRows:
    weight = np.array([float(row not in rejected) for row in range(count)], np.float32)
    frames = np.full((count, 2, 8, 8, 3), 200, np.uint8)
    return ClipRows(
        clip_ids=np.arange(count),
        weight=weight,
        epoch=epoch,
        captions=[CAPTIONS[row] for row in range(count)],
        frames=frames,
        frame_pad_mask=np.zeros(frames.shape[:4], bool),
        num_frames=np.full(count, 2),
    )


def question(clip: int, answer: str, text: str = "what colour is it ?") -> Question:
    return Question(question_id=f"{clip}-{answer}", clip_name=str(clip), text=text, answers=(answer,), kind="colour")


def asking(**by_clip: Any) -> QuestionTask:
    clips = {int(name[1:]): tuple(some) for name, some in by_clip.items()}
    asked = ClipQuestions(by_clip=clips, missing=())
    return QuestionTask(questions={"train": asked, "test": asked}, answers=ANSWERS)


def test_a_clip_without_a_known_answer_teaches_nothing(text: TextProcessor) -> None:
    task = asking(c0=[question(0, "red")], c1=[question(1, "pink")], c2=[question(2, "blue")])
    batch = task.batch(rows(5, rejected=(2,)), text)
    assert batch.weight.tolist() == [1, 0, 0, 0, 0]
    assert batch.answers[0].tolist() == [[0]]
    assert (batch.answers[1:] == IGNORED_LABEL).all()
    assert text.tokenizer.model.decode(batch.token_ids[0].tolist()) == "what colour is it?"


def test_another_question_is_drawn_in_another_epoch_and_the_same_one_twice(text: TextProcessor) -> None:
    task = asking(c0=[question(0, "red", f"is it a {colour} one ?") for colour in ("red", "blue", "green")])
    drawn = [task.drawn(rows(1, epoch=epoch), 0, 1)[0] for epoch in range(12)]
    again = [task.drawn(rows(1, epoch=epoch), 0, 1)[0] for epoch in range(12)]
    assert drawn == again
    assert len({one.text for (one,) in drawn}) == 3


def test_several_questions_are_asked_about_a_clip_that_is_shown_once(text: TextProcessor) -> None:
    asks = [question(0, answer, f"is it a {answer} one ?") for answer in ("red", "pink", "blue")]
    task = asking(c0=asks, c1=[question(1, "pink")], c2=[question(2, "blue")])
    batch = dataclasses.replace(task, questions_per_clip=4).batch(rows(4), text)
    assert batch.weight.tolist() == [1, 0, 1, 0]
    assert batch.question_weight.sum(1).tolist() == [2, 0, 1, 0]
    asked = {
        text.tokenizer.model.decode(ids.tolist()): answers.tolist()
        for ids, answers, weight in zip(batch.question_ids[0], batch.answers[0], batch.question_weight[0], strict=True)
        if weight
    }
    assert asked == {"is it a red one?": [0], "is it a blue one?": [1]}


def evaluation(network: Any, batch: Batch, text: TextProcessor) -> Evaluation:
    world, source = World(0, 1, torch.device("cpu")), None
    return Evaluation(name="test", batches=[batch], source=source, network=network, text=text, world=world)  # type: ignore[arg-type]


class Fixed:
    """Always gives the second answer, and shows what it saw."""

    def __init__(self) -> None:
        self.model, self.seen = self, []

    def eval(self) -> None:
        """It is no other in training."""

    def encode_video(self, frames: torch.Tensor, pad_mask: torch.Tensor) -> Any:
        self.seen.append(frames)
        return type("Video", (), {"tokens": torch.zeros(len(frames), 1, 4)})

    def logits(self, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 1.0]]).repeat(len(ids), 1)


def test_every_question_about_a_usable_clip_is_asked_and_known_or_not_it_counts(text: TextProcessor) -> None:
    task = asking(c0=[question(0, "red"), question(0, "blue")], c1=[question(1, "pink")], c2=[question(2, "blue")])
    batch = text.batch(rows(3, rejected=(2,)))
    predicted = task.predictions(evaluation(Fixed(), batch, text))
    assert [(one.question_id, one.is_right) for one in predicted] == [
        ("0-red", False),
        ("0-blue", True),
        ("1-pink", False),
    ]
    results = task.results(predicted, "test")
    assert results["test/accuracy"] == pytest.approx(1 / 3)
    assert (results["test/num_asked"], results["test/num_undecoded"], results["test/num_missing"]) == (3, 1, 0)
    assert results["test/num_outside_list"] == 1  # pink
    assert task.training_facts() == {"train/num_asked": 4, "train/num_missing": 0, "train/num_outside_list": 1}


def test_a_share_without_a_usable_clip_asks_nothing_of_the_network(text: TextProcessor) -> None:
    network, batch = Fixed(), text.batch(rows(2, rejected=(0, 1)))
    network.logits = None  # type: ignore[assignment]
    assert asking(c0=[question(0, "red")]).predictions(evaluation(network, batch, text)) == []


def test_the_blind_baseline_sees_black_frames(text: TextProcessor) -> None:
    seeing, blind = asking(c0=[question(0, "red")]), dataclasses.replace(asking(), is_video_hidden=True)
    blind = dataclasses.replace(blind, questions=seeing.questions)
    assert seeing.batch(rows(1), text).frames.float().mean() == 200
    assert blind.batch(rows(1), text).frames.max() == 0
    for task in (seeing, blind):
        network = Fixed()
        task.predictions(evaluation(network, text.batch(rows(1)), text))
        assert len(network.seen[0].unique()) == 3  # one value per channel
    assert not torch.equal(network.seen[0], torch.zeros_like(network.seen[0]))


def test_made_choices_hold_the_own_caption_at_a_random_place_among_others(text: TextProcessor) -> None:
    own = {clip: (CAPTIONS[clip], CAPTIONS[clip + 1]) for clip in range(3)}
    task = ChoiceTask(questions={}, others=tuple(CAPTIONS), captions=own)
    places = set()
    for epoch in range(30):
        choice = task.choice_for(rows(3, epoch=epoch), 1, seed=0)
        assert choice
        assert choice.options[choice.answer] == CAPTIONS[1]
        assert len(set(choice.options)) == 5
        assert CAPTIONS[2] not in choice.options  # another caption of the same clip
        places.add(choice.answer)
    assert places == set(range(5))
    batch = task.batch(rows(3, rejected=(0,)), text)
    assert batch.option_ids.shape[:2] == (3, 5)
    right = batch.option_ids[torch.arange(3), batch.answer]
    width = min(right.shape[1], batch.token_ids.shape[1])
    assert torch.equal(right[1:, :width], batch.token_ids[1:, :width])
    assert batch.weight.tolist() == [0, 1, 1]


class Split:
    """Two captions a clip, of which the next clip has the second too."""

    def rows(self) -> pa.Table:
        captions = [[CAPTIONS[row], CAPTIONS[row + 1]] for row in range(8)]
        return pa.table({"clip_id": list(range(8)), "captions": captions})


def test_validation_without_a_file_draws_one_choice_a_clip_and_the_same_ones_again() -> None:
    found, again, other = (drawn_choices(Split(), seed) for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert found == again != other
    for clip, (choice,) in found.by_clip.items():
        assert choice.options[choice.answer] == CAPTIONS[clip]
        assert len({*choice.options, CAPTIONS[clip + 1]}) == 6
    with pytest.raises(ValueError, match=r"name a file of choices: task\.train"):
        all_captions({0: CAPTIONS[:2], 1: CAPTIONS[2:5]}, "task.train")


def test_msrvtt_mc_is_trained_with_its_test_file_alone() -> None:
    config = fine_tuning(known_recipes()["msrvtt_multiple_choice"], tiny(), "/runs/tiny")
    assert config.task.test == "corpora/msrvtt_full/msrvtt_multi_choice_qa.jsonl"
    assert (config.task.train, config.task.validation, config.data.num_frames) == (None, None, 16)
    assert metric_problems(config.task.kind, config.selection) == []


def test_choices_of_a_file_are_taken_as_they_are(text: TextProcessor) -> None:
    choice = Choice(question_id="m", clip_name="1", options=tuple(CAPTIONS[:5]), answer=1)
    asked = ClipQuestions(by_clip={1: (choice,)}, missing=())
    batch = ChoiceTask(questions={"train": asked}).batch(rows(2), text)
    assert batch.weight.tolist() == [0, 1]
    assert [text.tokenizer.model.decode(ids.tolist()) for ids in batch.option_ids[1]] == CAPTIONS[:5]


def test_the_interval_of_an_accuracy_counts_clips_and_not_questions() -> None:
    def answers(per_clip: int) -> list[Predicted]:
        return [
            Predicted(question_id=f"{clip}-{n}", clip_id=clip, kind="", given="", is_right=clip % 2 == 0)
            for clip in range(40)
            for n in range(per_clip)
        ]

    one, ten = accuracies(answers(1), "x"), accuracies(answers(10), "x")
    assert one == ten
    assert one["x/accuracy"] == 0.5
    assert 0.25 < one["x/accuracy_low"] < 0.45


ASKED = '{"question": "what rises ?", "video": "%s", "answer": "%s", "question_id": "%s"}\n'


def task_inputs(folder: Path, **files: str) -> TaskInputs:
    """Inputs of question answering on the toy corpus, with files of questions by dataset."""
    config = run_of(folder)
    paths = {name: str(folder / f"{name}.jsonl") for name in files}
    for name, text in files.items():
        Path(paths[name]).write_text(text)
    (folder / "run").mkdir()
    return TaskInputs(
        config=TaskConfig(kind="question_answering", train="train.jsonl", validation="val.jsonl", test="test.jsonl"),
        files=paths,
        objective=config.objective,
        retrieval=RetrievalOptions(),
        manifest=open_manifest(config.data.manifest),
        sources=make_sources(config.data, config.placement, config.optim.global_batch, config.seed),
        seed=0,
        run_folder=str(folder / "run"),
    )


TRAINING = ASKED % ("train/9.mp4", "square", 1) + ASKED % ("train/8", "ring", 2)


def test_questions_belong_to_clips_and_a_run_keeps_its_answers(tmp_path: Path) -> None:
    inputs = task_inputs(tmp_path, train=TRAINING, test=ASKED % ("test/0", "square", 3) + ASKED % ("gone", "ring", 4))
    task = QuestionTask.create(inputs)
    assert task.answers == ("ring", "square")
    assert (task.questions["test"].num_questions, len(task.questions["test"].missing)) == (1, 1)
    run_files.write_json(str(tmp_path / "run" / run_files.ANSWERS), ["square", "ring", "cross"])
    assert QuestionTask.create(inputs).answers == ("square", "ring", "cross")  # whose numbers its head has learned


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train": ASKED % ("train/9", "square", 1)},
            r"question answering needs two answers at least, its questions have \('square',\)",
        ),
        (
            {"train": TRAINING, "test": ASKED % ("film", "ring", 3)},
            r"test\.jsonl asks about 'film', …, and none of them is a clip of the split 'test' of toy in /videos; name",
        ),
        (
            {"train": TRAINING, "test": ASKED % ("vid17", "ring", 3)},
            "if these are MSVD's numbers, put its youtube_mapping.txt beside the questions",
        ),
        (
            {"train": TRAINING, "temporal": ASKED % ("temporal/1", "ring", 3)},
            r"task\.temporal asks about a split that is not read: set data\.temporal_split, or leave it out",
        ),
    ],
)
def test_questions_that_fit_no_clip_of_their_split_are_refused(tmp_path: Path, files, message: str) -> None:
    inputs = task_inputs(tmp_path, **files)
    sources = {name: source for name, source in inputs.sources.items() if name != "temporal"}
    with pytest.raises(ValueError, match=message):
        QuestionTask.create(dataclasses.replace(inputs, sources=sources))


def test_the_answers_of_a_finished_run_are_read_as_they_were_measured(text: TextProcessor, tmp_path: Path) -> None:
    task = asking(c0=[question(0, "red"), question(0, "blue")], c1=[question(1, "blue")])
    asked = evaluation(Fixed(), text.batch(rows(2)), text)
    task.save_scores(asked, str(tmp_path))
    saved = task.read_scores("test", asked.source, str(tmp_path))
    assert saved == task.saved(asked)
    assert saved
    assert saved.metrics == task.measure(asked)
    assert (saved.measured.num_videos, saved.measured.num_queries) == (2, 3)
    batches = iter([*asked.batches])
    unasked = dataclasses.replace(asked, name="temporal", batches=batches)
    task.save_scores(unasked, str(tmp_path))
    assert next(batches, None) is None  # read all the same, for the ledger
    assert task.read_scores("temporal", asked.source, str(tmp_path)) is None
    with pytest.raises(ValueError, match="no question of test could be asked"):
        accuracies([], "test")
