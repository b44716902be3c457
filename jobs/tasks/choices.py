"""Multiple choice: which of five captions belongs to the clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

from jobs.tasks.network import Network, NetworkOptions
from jobs.tasks.questions import AskingTask, by_clips
from jobs.tasks.task import TaskInputs
from jobs.tasks.text import TextProcessor
from pipeline.corpus.questions import NUM_OPTIONS, Choice, ClipQuestions, read_choices
from pipeline.records import ChoiceBatch, ClipRows
from pipeline.stream.randomness import Purpose, clip_rng
from snps3_model.downstream import Choosing
from snps3_model.snps3 import SNPS3

if TYPE_CHECKING:
    from pipeline.stream.loader import ClipSource


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(AskingTask[Choice]):
    """Multiple choice among captions."""

    score_name: ClassVar[str] = "multiple_choice"
    needs_own_head: ClassVar[bool] = False

    others: tuple[str, ...] = ()
    """Captions of the training split, from which wrong options are drawn if no file has them."""
    captions: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """All captions of each training clip: none of them is a wrong option for it."""

    @classmethod
    def create(cls, inputs: TaskInputs) -> Self:
        """Return the task. Without a file of choices for training or validation, draw them."""
        questions = by_clips(inputs, {name: read_choices(path) for name, path in inputs.files.items()})
        if "validation" in inputs.sources and "validation" not in questions:
            questions["validation"] = drawn_choices(inputs.sources["validation"], inputs.seed)
        captions: dict[int, Sequence[str]] = {}
        if "train" in inputs.sources and "train" not in questions:
            captions = captions_of(inputs.manifest.split(inputs.sources["train"].split))
        others = all_captions(captions, "task.train") if captions else ()
        hidden = inputs.config.is_video_hidden
        return cls(questions=questions, is_video_hidden=hidden, others=others, captions=captions)

    def network(self, model: SNPS3, options: NetworkOptions) -> Network:
        """Return the network with its loss over the options' matching scores."""
        return cast(Network, Choosing(model, gather=options.gather, rows_at_once=options.rows_at_once))

    def batch(self, rows: ClipRows, text: TextProcessor) -> ChoiceBatch:
        """Return training clips with five options each: from the file, or their caption and four of other clips."""
        choices: list[Choice | None]
        if "train" in self.questions:
            choices = [drawn[0] if drawn else None for drawn in self.drawn(rows, text.seed, 1)]
        else:
            choices = [self.choice_for(rows, row, text.seed) for row in range(len(rows.captions))]
        options = [choice.options if choice else ("",) * NUM_OPTIONS for choice in choices]
        has_choice = np.array([choice is not None for choice in choices], np.float32)
        batch = self.shown(text.batch(dataclasses.replace(rows, weight=rows.weight * has_choice)))
        ids, mask = text.tokens([option for of_clip in options for option in of_clip])
        return ChoiceBatch(
            **vars(batch),
            option_ids=ids.unflatten(0, (-1, NUM_OPTIONS)),
            option_mask=mask.unflatten(0, (-1, NUM_OPTIONS)),
            answer=torch.tensor([choice.answer if choice else 0 for choice in choices]),
        )

    def choice_for(self, rows: ClipRows, row: int, seed: int) -> Choice | None:
        """Draw a choice for a training clip: its caption at a random place among four of other clips. Return None for a
        rejected clip."""
        if rows.weight[row] < 0.5:
            return None
        clip_id = int(rows.clip_ids[row])
        rng = clip_rng(seed, rows.epoch, clip_id, Purpose.WORDS)
        return drawn_choice(clip_id, rows.captions[row], self.captions, self.others, rng)

    def choose(
        self, network: Any, questions: Sequence[Choice], frame_tokens: Tensor, text: TextProcessor
    ) -> Int64[Tensor, " Q"]:
        """Return the number of the option with the highest matching score for each question."""
        ids, mask = text.tokens([option for choice in questions for option in choice.options])
        ids, mask = (part.to(frame_tokens.device).unflatten(0, (-1, NUM_OPTIONS)) for part in (ids, mask))
        return network.logits(ids, mask, frame_tokens).argmax(1)

    def answer(self, question: Choice, number: int) -> str:
        """Return the text of the option."""
        return question.options[number]

    def is_right(self, question: Choice, number: int) -> bool:
        """Return whether the option is the clip's caption."""
        return number == question.answer


def drawn_choice(
    clip_id: int,
    caption: str,
    captions: Mapping[int, Sequence[str]],
    others: Sequence[str],
    rng: np.random.Generator,
) -> Choice:
    """Return a choice with `caption` at a random place among four of `others` that are no captions of the clip."""
    wrong: dict[str, None] = {}
    while len(wrong) < NUM_OPTIONS - 1:
        other = others[int(rng.integers(len(others)))]
        if other not in captions[clip_id]:
            wrong[other] = None
    options, place = list(wrong), int(rng.integers(NUM_OPTIONS))
    options.insert(place, caption)
    return Choice(question_id="", clip_name=str(clip_id), options=tuple(options), answer=place)


def drawn_choices(source: ClipSource, seed: int) -> ClipQuestions[Choice]:
    """Return a choice about each video of an evaluation split, the same in every evaluation."""
    captions = captions_of(source.rows())
    others = all_captions(captions, "task.validation")
    drawn = {
        clip_id: (drawn_choice(clip_id, texts[0], captions, others, clip_rng(seed, 0, clip_id, Purpose.WORDS)),)
        for clip_id, texts in captions.items()
    }
    return ClipQuestions(by_clip=drawn, missing=())


def captions_of(rows: pa.Table) -> dict[int, Sequence[str]]:
    """Return clip id → distinct captions, of a table of clips."""
    captions = zip(rows["clip_id"].to_pylist(), rows["captions"].to_pylist(), strict=True)
    return {clip_id: tuple(dict.fromkeys(texts)) for clip_id, texts in captions}


def all_captions(captions: Mapping[int, Sequence[str]], field_name: str) -> tuple[str, ...]:
    """Return the distinct captions, from which wrong options are drawn. ValueError if any clip has too few others."""
    others = tuple(sorted({text for of_clip in captions.values() for text in of_clip}))
    most = max(map(len, captions.values()), default=0)
    if len(others) < NUM_OPTIONS - 1 + most:
        raise ValueError(
            f"four wrong options cannot be drawn from {len(others)} captions, of which one clip has {most}; name a "
            f"file of choices: {field_name}"
        )
    return others
