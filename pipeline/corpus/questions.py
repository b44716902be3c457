"""Questions about clips with their answers, and choices among five captions, for the downstream tasks.

    JSON lines, as the published code has them · JSON lists of MSRVTT-QA and MSVD-QA  ──►  Question | Choice
    + the manifest's clips by name  ──►  asked questions by clip, and those whose clip is not there

A file names clips in its own way (`video9770`, `vid12`, `videos/test/0.mp4`, 9770); the manifest knows them by path.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa

from pipeline.corpus import media
from pipeline.corpus.text_files import json_lines, read_text

NUM_OPTIONS = 5
"""Options of a choice: what the field's multiple-choice sets have."""
NUMBERED = ("{}", "video{}", "vid{}")
"""What a clip that a file gives by number is called: as it stands, in MSR-VTT, in MSVD."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """An open question about a clip."""

    question_id: str
    clip_name: str
    text: str
    answers: tuple[str, ...]
    """The right answers; more than one in multi-label sets."""
    kind: str = ""
    """Sort of question, where the file has it; accuracy is shown for each."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Five captions, of which one belongs to the clip."""

    question_id: str
    clip_name: str
    options: tuple[str, ...]
    answer: int
    """Position of the right one."""
    kind: str = ""

    def __post_init__(self) -> None:
        if len(self.options) != NUM_OPTIONS:
            raise ValueError(
                f"a choice must have {NUM_OPTIONS} options, {self.question_id} of {self.clip_name} has "
                f"{len(self.options)}; leave it out of the file"
            )
        if not 0 <= self.answer < NUM_OPTIONS:
            raise ValueError(
                f"the answer of a choice is the position of an option, 0 to {NUM_OPTIONS - 1}, "
                f"{self.question_id} of {self.clip_name} has {self.answer}"
            )


Asked = TypeVar("Asked", Question, Choice)


def read_questions(path: str) -> list[Question]:
    """Return the questions of a file. ValueError with file and line for what is none, and for a file without any."""
    return _all(path, _question)


def read_choices(path: str) -> list[Choice]:
    """Return the choices of a file. ValueError with file and line for what is none, and for a file without any."""
    return _all(path, _choice)


def _question(record: Mapping[str, Any], where: str) -> Question:
    label = _first(record, "label", "answer")
    answers = label if isinstance(label, list) else [label]
    if not answers:
        raise ValueError("a question needs an answer, its list of them is empty")
    return Question(
        question_id=str(record.get("question_id", record.get("id", where))),
        clip_name=_text(_first(record, "clip_name", "video_id"), "the name of a clip"),
        text=_text(_first(record, "caption", "question"), "a question"),
        answers=tuple(_text(answer, "an answer") for answer in answers),
        kind=str(record.get("question_type", "")),
    )


def _choice(record: Mapping[str, Any], where: str) -> Choice:
    options, answer = record["options"], str(record["answer"])
    if not isinstance(options, list):
        raise ValueError(f"options must be a list of captions, got {str(options)[:60]!r}")
    if not answer.isdecimal():
        raise ValueError(f"the answer of a choice is the position of an option, got {answer!r}")
    return Choice(
        question_id=str(record.get("qid", where)),
        clip_name=_text(_first(record, "clip_name", "video_id"), "the name of a clip"),
        options=tuple(_text(option, "an option") for option in options),
        answer=int(answer),
        kind=str(record.get("difficulty", "")),
    )


def _first(record: Mapping[str, Any], ours: str, theirs: str) -> Any:
    """Return the field that the published code calls `ours` and the authors of the sets `theirs`."""
    return record[ours] if ours in record else record[theirs]


def _text(value: Any, what: str) -> str:
    """Return words or a number as text, as the files have both. ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError(f"{what} must be a text that is not empty, got {value!r}")
    return str(value).strip()


def _all(path: str, read: Callable[[Mapping[str, Any], str], Asked]) -> list[Asked]:
    asked = [_read(f"{path}:{number}", number, read, record) for number, record in _records(path)]
    if not asked:
        raise ValueError(f"{path} asks nothing: name a file with a question in each line, or a list of them")
    return asked


def _records(path: str) -> Iterator[tuple[str, Any]]:
    """Yield (number of a line or an item, value) of a file of JSON lines, or with a JSON list."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from ((where.rpartition(":")[2], record) for where, record in json_lines(text, path))
        return
    try:
        records = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: begins as a JSON list and is none ({error})") from error
    yield from ((str(number), record) for number, record in enumerate(records))


def _read(where: str, number: str, read: Callable[[Mapping[str, Any], str], Asked], record: Any) -> Asked:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: an object is needed, got {str(record)[:60]!r}")
    try:
        return read(record, number)
    except KeyError as error:
        raise ValueError(f"{where}: lacks {error}; it has {', '.join(record)}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


# --- clips by name ----------------------------------------------------------------------------------------------------


class ClipNames:
    """The clips of a split by what annotation files call them."""

    def __init__(self, rows: pa.Table, root: str) -> None:
        """`rows`: of a manifest; `root`: what its paths begin with."""
        self.ids: dict[str, set[int]] = defaultdict(set)
        for clip_id, uri in zip(rows["clip_id"].to_pylist(), rows["uri"].to_pylist(), strict=True):
            path = media.name_of(uri, root)
            for name in {path, posixpath.splitext(path)[0], posixpath.basename(path), _stem(path)}:
                self.ids[name].add(clip_id)

    def find(self, name: str) -> int | None:
        """Return the id of the clip that is called `name`; None if there is none. ValueError if there are several.

        A name with a folder means the clip in that folder: the same file name in another one is another clip.
        """
        tried = [form.format(name) for form in NUMBERED] if name.isdigit() else [name, posixpath.splitext(name)[0]]
        for candidate in tried:
            if clip_ids := self.ids.get(candidate):
                if len(clip_ids) > 1:
                    raise ValueError(
                        f"{name!r} is the name of {len(clip_ids)} clips; name clips by their path below the root"
                    )
                return next(iter(clip_ids))
        return None


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


@dataclass(frozen=True, kw_only=True)
class AskedClips(Generic[Asked]):
    """What is asked about each clip, and what cannot be asked."""

    by_clip: Mapping[int, tuple[Asked, ...]]
    missing: tuple[Asked, ...]
    """Asked about clips that are not there: reported, not scored."""

    @property
    def num_asked(self) -> int:
        """Questions about clips that are there."""
        return sum(map(len, self.by_clip.values()))


def asked_clips(asked: Iterable[Asked], names: ClipNames) -> AskedClips[Asked]:
    """Return the questions by the clip that they are about."""
    by_clip: dict[int, list[Asked]] = defaultdict(list)
    missing: list[Asked] = []
    for question in asked:
        clip_id = names.find(question.clip_name)
        (missing if clip_id is None else by_clip[clip_id]).append(question)
    return AskedClips(by_clip={clip: tuple(asked) for clip, asked in by_clip.items()}, missing=tuple(missing))


# --- answers ----------------------------------------------------------------------------------------------------------


def answer_list(train: Iterable[Question], size: int) -> tuple[str, ...]:
    """Return the `size` most frequent answers of the training split, ties by the alphabet.

    Training questions of which no answer is among them teach nothing and are left out; test questions stay, and count
    as wrong.
    """
    counts = Counter(answer for question in train for answer in question.answers)
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:size])


def known_answers(question: Question, numbers: Mapping[str, int]) -> list[int]:
    """Return the numbers of a question's right answers, as far as they are in the list."""
    return [numbers[answer] for answer in question.answers if answer in numbers]


def outside(questions: Sequence[Question], answers: Sequence[str]) -> list[Question]:
    """Return the questions of which no right answer is in the list."""
    numbers = {answer: number for number, answer in enumerate(answers)}
    return [question for question in questions if not known_answers(question, numbers)]
