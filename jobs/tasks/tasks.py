"""What a run is trained for, and how it is measured: the only place where the tasks differ.

| task | a clip comes with | network | measured by |
|---|---|---|---|
| captions | one of its captions | `Pretraining`: the losses of `objective` | retrieval in both directions |
| question_answering | some of its questions | `Answering` | accuracy, by sort of question |
| multiple_choice | its caption and four wrong ones | `Choosing` | accuracy, by sort of choice |

All of them read the same clips in the same order; what is asked about a clip is looked up by its id on the rank.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic

import numpy as np
import torch

from jobs.run.config import TASK_FILES, PretrainConfig
from pipeline import storage
from pipeline.corpus.manifest import Manifest, read_manifest
from pipeline.corpus.questions import (
    NUM_OPTIONS,
    Asked,
    AskedClips,
    Choice,
    ClipNames,
    Question,
    answer_list,
    asked_clips,
    known_answers,
    outside,
    read_choices,
    read_questions,
)
from pipeline.records import IGNORED_LABEL, Batch, ChoiceBatch, ClipRows, QuestionBatch
from pipeline.stream.collate import collate
from pipeline.stream.loader import ClipSource, split_rows
from pipeline.stream.randomness import Purpose, clip_rng
from pipeline.stream.transforms import normalise
from pipeline.text.config import MaskingConfig
from pipeline.text.significance import SignificantWords
from pipeline.text.tokenizer import Tokenizer
from snps3_model.downstream import Answering, Choosing
from snps3_model.gather import Gather
from snps3_model.metrics import bootstrap_intervals
from snps3_model.objective import Pretraining
from snps3_model.snps3 import SNPS3

ROWS_AT_ONCE = 1024
"""Questions, or options, of one cross pass during evaluation."""


Network = Pretraining | Answering | Choosing
"""The network with what it is trained on: `model`, and the `weights` of its losses."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """How captions become tokens in this run."""

    tokenizer: Tokenizer
    table: SignificantWords
    config: PretrainConfig

    @staticmethod
    def load(folder: str, config: PretrainConfig) -> Language:
        """That of the run in `folder`, for `config`."""
        tokenizer = Tokenizer.load(f"{folder}/tokenizer.json")
        table = SignificantWords.from_json(storage.read_bytes(f"{folder}/significant_words.json").decode())
        return Language(tokenizer=tokenizer, table=table, config=config)

    def network(self) -> SNPS3:
        """The network for these tokens, with random weights."""
        special = self.tokenizer.special
        return SNPS3(
            self.config.model,
            vocabulary_size=self.tokenizer.vocabulary_size,
            pad_id=special.pad,
            separator_id=special.sep,
        )

    def batch(self, rows: ClipRows, masking: MaskingConfig | None = None) -> Batch:
        """Clips and their captions as the network sees them, masked as the run does or by `masking`."""
        config = self.config
        return collate(
            rows,
            tokenizer=self.tokenizer,
            table=self.table,
            masking=masking or config.masking,
            num_words=config.text.num_words,
            seed=config.seed,
            max_tokens=config.text.max_tokens,
            most_length_groups=config.placement.length_groups,
        )

    def tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (N, L) and mask of texts; a long one keeps its beginning."""
        rows = self.tokenizer.encode(texts, self.config.text.max_tokens)
        ids = torch.full((len(rows), max(map(len, rows))), self.tokenizer.special.pad)
        for row, found in enumerate(rows):
            ids[row, : len(found)] = torch.from_numpy(found)
        return ids, ids != self.tokenizer.special.pad


class CaptionTask:
    """Captions and clips that belong together: pre-training, and retrieval."""

    def network(self, model: SNPS3, config: PretrainConfig, gather: Gather, rank: int, mask_id: int) -> Network:
        """The network with its objectives."""
        rows_at_once = config.placement.rows_at_once
        return Pretraining(model, config.objective, gather, rank, mask_id=mask_id, rows_at_once=rows_at_once)

    def batch(self, rows: ClipRows, language: Language) -> Batch:
        """Training clips with a caption each."""
        return language.batch(rows)

    def summary(self, results: Mapping[str, float]) -> str:
        """Validation in half a line."""
        keys = {name: f"validation/t2v/{name}_r1" for name in ("dual", "cross")}
        parts = ", ".join(f"{name} {results[key]:.3f}" for name, key in keys.items() if key in results)
        return f"validation R@1 {results['validation/t2v/r1']:.3f} ({parts})"


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What was answered."""

    question_id: str
    clip_id: int
    kind: str
    given: str
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class AskingTask(Generic[Asked]):
    """Questions, or choices, about clips."""

    asked: Mapping[str, AskedClips[Asked]]
    """By dataset: train, validation, test, temporal."""
    is_video_hidden: bool = False

    def shown(self, batch: Batch) -> Batch:
        """With black frames where the baseline that sees none is wanted."""
        return dataclasses.replace(batch, frames=torch.zeros_like(batch.frames)) if self.is_video_hidden else batch

    def drawn(self, rows: ClipRows, seed: int, most: int) -> list[list[Asked]]:
        """So many of each training clip's questions at most, drawn anew in each epoch."""
        by_clip = self.asked["train"].by_clip
        found: list[list[Asked]] = []
        for clip_id, weight in zip(rows.clip_ids.tolist(), rows.weight.tolist(), strict=True):
            some = list(by_clip.get(clip_id, ())) if weight > 0 else []
            order = clip_rng(seed, rows.epoch, clip_id, Purpose.CAPTION).permutation(len(some))
            found.append([some[place] for place in order[:most].tolist()])
        return found

    @torch.no_grad()
    def predictions(self, network: Any, batches: Iterable[Batch], language: Language, name: str) -> Iterator[Predicted]:
        """What is answered to all questions about these clips, each of which is encoded once."""
        network.eval()
        by_clip = self.asked[name].by_clip
        for batch in batches:
            batch, usable = self.shown(batch), batch.weight > 0.5
            if not usable.any():  # a rank's share of the last step may hold no clip, which not every encoder takes
                continue
            video = network.model.encode_video(normalise(batch.frames[usable]), batch.frame_pad_mask[usable])
            pairs = [
                (row, clip_id, one)
                for row, clip_id in enumerate(batch.clip_ids[usable].tolist())
                for one in by_clip.get(clip_id, ())
            ]
            for start in range(0, len(pairs), ROWS_AT_ONCE):
                rows, clip_ids, some = zip(*pairs[start : start + ROWS_AT_ONCE], strict=True)
                tokens = video.tokens[torch.tensor(rows, device=video.tokens.device)]
                given = self.given(network, some, tokens, language)
                for clip_id, one, (text, is_right) in zip(clip_ids, some, given, strict=True):
                    yield Predicted(
                        question_id=one.question_id, clip_id=clip_id, kind=one.kind, given=text, is_right=is_right
                    )

    def results(self, predicted: Sequence[Predicted], name: str) -> dict[str, float]:
        """Accuracies of the dataset `name`, and of how many questions."""
        asked = self.asked[name]
        counts = {"num_asked": len(predicted), "num_missing": len(asked.missing)}
        counts["num_undecoded"] = asked.num_asked - len(predicted)
        return accuracies(predicted, name) | {f"{name}/{key}": float(count) for key, count in counts.items()}

    def in_vain(self) -> dict[str, float]:
        """How much is asked for training, and how much of the file teaches nothing; empty without such a file."""
        if not (asked := self.asked.get("train")):
            return {}
        return {"train/num_asked": float(asked.num_asked), "train/num_missing": float(len(asked.missing))}

    def summary(self, results: Mapping[str, float]) -> str:
        """Validation in half a line."""
        return f"validation accuracy {results['validation/accuracy']:.3f}"

    def given(
        self, network: Any, asked: Sequence[Asked], frame_tokens: torch.Tensor, language: Language
    ) -> list[tuple[str, bool]]:
        """The answer to each question, and whether it is right."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class QuestionTask(AskingTask[Question]):
    """Video question answering over a list of answers."""

    answers: tuple[str, ...]
    is_multi_label: bool = False

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Of each answer, its place in the list."""
        return {answer: number for number, answer in enumerate(self.answers)}

    def num_outside_list(self, name: str) -> float:
        """Questions about the clips of the dataset `name` of which no right answer is in the list."""
        return float(len(outside([one for some in self.asked[name].by_clip.values() for one in some], self.answers)))

    def in_vain(self) -> dict[str, float]:
        """With the training questions that have no answer in the list."""
        return super().in_vain() | {"train/num_outside_list": self.num_outside_list("train")}

    def results(self, predicted: Sequence[Predicted], name: str) -> dict[str, float]:
        """With the questions that count as wrong since their answer is not in the list."""
        return super().results(predicted, name) | {f"{name}/num_outside_list": self.num_outside_list(name)}

    def network(self, model: SNPS3, config: PretrainConfig, gather: Gather, rank: int, mask_id: int) -> Network:
        """The network with a score per answer."""
        del rank, mask_id
        return Answering(
            model,
            len(self.answers),
            is_multi_label=self.is_multi_label,
            gather=gather,
            rows_at_once=config.placement.rows_at_once,
        )

    def batch(self, rows: ClipRows, language: Language) -> QuestionBatch:
        """Training clips with some of their questions; one without a known answer gets weight 0, and so does a clip
        without any other."""
        most = language.config.task.questions_per_clip
        drawn = [some + [None] * (most - len(some)) for some in self.drawn(rows, language.config.seed, most)]
        texts = [[one.text if one else "" for one in some] for some in drawn]
        right = [[known_answers(one, self.numbers) if one else [] for one in some] for some in drawn]
        known = np.array([[bool(numbers) for numbers in some] for some in right], np.float32)
        weight = rows.weight * known.max(1)
        asked = dataclasses.replace(rows, captions=[first for first, *_ in texts], weight=weight)
        batch = self.shown(language.batch(asked))
        ids, mask = language.tokens([text for some in texts for text in some])
        width = max([1, *(len(numbers) for some in right for numbers in some)])
        padded = [[numbers + [IGNORED_LABEL] * (width - len(numbers)) for numbers in some] for some in right]
        return QuestionBatch(
            **_columns(batch),
            question_ids=ids.unflatten(0, (-1, most)),
            question_mask=mask.unflatten(0, (-1, most)),
            question_weight=torch.from_numpy(weight[:, None] * known),
            answers=torch.tensor(padded),
        )

    def given(
        self, network: Any, asked: Sequence[Question], frame_tokens: torch.Tensor, language: Language
    ) -> list[tuple[str, bool]]:
        """The answer with the highest score."""
        ids, mask = (tensor.to(frame_tokens.device) for tensor in language.tokens([one.text for one in asked]))
        best = network.logits(ids, mask, frame_tokens).argmax(1).tolist()
        texts = [self.answers[number] for number in best]
        return [(text, text in one.answers) for text, one in zip(texts, asked, strict=True)]


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(AskingTask[Choice]):
    """Multiple choice among captions."""

    others: tuple[str, ...] = ()
    """Captions of the training split, from which wrong options are drawn where no file has them."""
    captions: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """All of each training clip: none of them is a wrong option for it."""

    def network(self, model: SNPS3, config: PretrainConfig, gather: Gather, rank: int, mask_id: int) -> Network:
        """The network with its matching score."""
        del rank, mask_id
        return Choosing(model, gather=gather, rows_at_once=config.placement.rows_at_once)

    def batch(self, rows: ClipRows, language: Language) -> ChoiceBatch:
        """Training clips with five options each: those of the file, or the clip's caption among captions of others."""
        drawn: list[Choice | None]
        if "train" in self.asked:
            drawn = [some[0] if some else None for some in self.drawn(rows, language.config.seed, 1)]
        else:
            drawn = [self.made(rows, row, language.config.seed) for row in range(len(rows.captions))]
        options = [one.options if one else ("",) * NUM_OPTIONS for one in drawn]
        has_choice = np.array([one is not None for one in drawn], np.float32)
        batch = self.shown(language.batch(dataclasses.replace(rows, weight=rows.weight * has_choice)))
        ids, mask = language.tokens([text for some in options for text in some])
        return ChoiceBatch(
            **_columns(batch),
            option_ids=ids.unflatten(0, (-1, NUM_OPTIONS)),
            option_mask=mask.unflatten(0, (-1, NUM_OPTIONS)),
            answer=torch.tensor([one.answer if one else 0 for one in drawn]),
        )

    def made(self, rows: ClipRows, row: int, seed: int) -> Choice | None:
        """A choice for a training clip: its caption at a random place among four of other clips."""
        if rows.weight[row] < 0.5:
            return None
        clip_id = int(rows.clip_ids[row])
        rng = clip_rng(seed, rows.epoch, clip_id, Purpose.WORDS)
        return drawn_choice(clip_id, rows.captions[row], self.captions, self.others, rng)

    def given(
        self, network: Any, asked: Sequence[Choice], frame_tokens: torch.Tensor, language: Language
    ) -> list[tuple[str, bool]]:
        """The option with the highest matching score."""
        ids, mask = language.tokens([text for one in asked for text in one.options])
        ids, mask = (t.to(frame_tokens.device).unflatten(0, (-1, NUM_OPTIONS)) for t in (ids, mask))
        best = network.logits(ids, mask, frame_tokens).argmax(1).tolist()
        return [(one.options[place], place == one.answer) for place, one in zip(best, asked, strict=True)]


def drawn_choice(
    clip_id: int,
    own: str,
    captions: Mapping[int, frozenset[str]],
    others: Sequence[str],
    rng: np.random.Generator,
) -> Choice:
    """A caption of a clip at a random place among four of `others`, none of which is a caption of the clip."""
    wrong: dict[str, None] = {}
    while len(wrong) < NUM_OPTIONS - 1:
        other = others[int(rng.integers(len(others)))]
        if other not in captions[clip_id]:
            wrong[other] = None
    options, place = list(wrong), int(rng.integers(NUM_OPTIONS))
    options.insert(place, own)
    return Choice(question_id="", clip_name=str(clip_id), options=tuple(options), answer=place)


def drawn_choices(source: ClipSource, seed: int) -> AskedClips[Choice]:
    """A choice about each video of an evaluation split, the same in every evaluation: its first caption, and others."""
    rows = source.rows()
    texts = dict(zip(rows["clip_id"].to_pylist(), rows["captions"].to_pylist(), strict=True))
    captions = {clip_id: frozenset(some) for clip_id, some in texts.items()}
    others = every_caption(captions, "task.validation")
    drawn = {
        clip_id: (drawn_choice(clip_id, some[0], captions, others, clip_rng(seed, 0, clip_id, Purpose.WORDS)),)
        for clip_id, some in texts.items()
    }
    return AskedClips(by_clip=drawn, missing=())


def every_caption(captions: Mapping[int, frozenset[str]], field_name: str) -> tuple[str, ...]:
    """What wrong options are drawn from. ValueError if there are too few for any clip."""
    others = tuple(sorted({text for some in captions.values() for text in some}))
    most = max(map(len, captions.values()), default=0)
    if len(others) < NUM_OPTIONS - 1 + most:
        raise ValueError(
            f"four wrong options cannot be drawn from {len(others)} captions, of which one clip has {most}; name a "
            f"file of choices: {field_name}"
        )
    return others


def make_task(
    config: PretrainConfig, sources: Mapping[str, ClipSource], answers: Sequence[str] | None = None
) -> CaptionTask | QuestionTask | ChoiceTask:
    """The task of a run, with its files read.

    `answers`: those of a run that goes on, whose numbers its head has learned; None: those of the training questions.
    ValueError for a file that asks about no clip of its split or about a split that is not read, and for an answer
    list that the training questions cannot fill.
    """
    task = config.task
    if task.kind == "captions":
        return CaptionTask()
    files = {name: path for name in TASK_FILES if (path := getattr(task, name))}
    for name in files.keys() - sources.keys():
        raise ValueError(f"task.{name} asks about a split that is not read: set data.{name}_split, or leave it out")
    manifest = read_manifest(config.data.manifest)
    if task.kind == "multiple_choice":
        asked = {name: asked_of(manifest, sources[name], path, read_choices(path)) for name, path in files.items()}
        if "validation" not in asked:
            asked["validation"] = drawn_choices(sources["validation"], config.seed)
        captions = {} if "train" in asked else captions_of(sources["train"])
        others = () if "train" in asked else every_caption(captions, "task.train")
        return ChoiceTask(asked=asked, is_video_hidden=task.is_video_hidden, others=others, captions=captions)
    questions = {name: read_questions(path) for name, path in files.items()}
    answers = tuple(answers or answer_list(questions["train"], task.num_answers))
    if len(answers) < 2:
        raise ValueError(f"{task.train}: question answering needs two answers at least, its questions have {answers}")
    return QuestionTask(
        asked={name: asked_of(manifest, sources[name], files[name], some) for name, some in questions.items()},
        is_video_hidden=task.is_video_hidden,
        answers=answers,
        is_multi_label=task.is_multi_label,
    )


def captions_of(source: ClipSource) -> dict[int, frozenset[str]]:
    """All captions of each clip of a split."""
    rows = split_rows(source.manifest_path, source.split)
    return {
        clip_id: frozenset(captions)
        for table in rows.values()
        for clip_id, captions in zip(table["clip_id"].to_pylist(), table["captions"].to_pylist(), strict=True)
    }


def asked_of(manifest: Manifest, source: ClipSource, path: str, asked: Sequence[Asked]) -> AskedClips[Asked]:
    """The questions of the file `path` by clip. ValueError if they are about none of the clips of `source`."""
    rows = manifest.split(source.split) if source.plan else source.rows()  # training shows pictures too
    found = asked_clips(asked, ClipNames(rows, manifest.root))
    if not found.by_clip:
        examples = ", ".join(repr(one.clip_name) for one in asked[:3])
        raise ValueError(
            f"{path} asks about {examples}, …, and none of them is a clip of the split {source.split!r} of "
            f"{manifest.corpus} in {manifest.root}; name the file of this split, or a manifest with these clips"
        )
    return found


def accuracies(predicted: Sequence[Predicted], prefix: str) -> dict[str, float]:
    """`{prefix}/accuracy` with `_low` and `_high`, and the same for each sort, as `{prefix}/accuracy/{kind}`.

    The interval is a bootstrap over clips, since the questions about one clip stand or fall together.
    """
    if not predicted:
        raise ValueError(f"no question of {prefix} could be asked: no clip that its file names is there")
    groups: dict[str, list[Predicted]] = defaultdict(list)
    for one in predicted:
        groups[f"{prefix}/accuracy"].append(one)
        if one.kind:
            groups[f"{prefix}/accuracy/{one.kind}"].append(one)
    found: dict[str, float] = {}
    for key, some in groups.items():
        right = np.array([one.is_right for one in some], float)
        _, clip = np.unique([one.clip_id for one in some], return_inverse=True)
        totals, sizes = np.bincount(clip, weights=right), np.bincount(clip).astype(float)
        low, high = bootstrap_intervals(totals[:, None], sizes)[:, 0]
        found |= {key: float(right.mean()), f"{key}_low": float(low), f"{key}_high": float(high)}
    return found


def _columns(batch: Batch) -> dict[str, Any]:
    return {field.name: getattr(batch, field.name) for field in dataclasses.fields(Batch)}
