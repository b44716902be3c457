"""Questions about clips with their answers, and choices among five captions, for the downstream tasks.

    JSON lines, as in the published code · JSON lists, CSV and Parquet of the data sets  ──►  Question | Choice
    + the manifest's clips by name  ──►  questions by clip, and those whose clip is missing

Each file names clips differently (`video9770`, `vid12`, `videos/test/0.mp4`, 9770); the manifest names them by path.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import pyarrow as pa

from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.clip_rows import WrongRow, is_nothing, items_of
from pipeline.corpus.names import PREFIXES, folded
from pipeline.corpus.parquet_rows import is_parquet, parquet_rows
from pipeline.corpus.tables import csv_rows, delimiter_of
from pipeline.corpus.text_files import json_lines, read_text

NUM_OPTIONS = 5
"""Options of a choice, as in the common multiple-choice data sets."""
MAPPING = "youtube_mapping.txt"
MAX_NAMED = 20
"""Number of wrong records that an error message lists."""
NUMBERED = ("{}", "video{}", "vid{}")
"""Names of a clip that a file gives by number: unchanged, in MSR-VTT, in MSVD."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """An open question about a clip."""

    question_id: str
    clip_name: str
    text: str
    answers: tuple[str, ...]
    """The right answers; more than one in multi-label sets."""
    kind: str = ""
    """Type of the question, if the file has it; accuracy is also reported per type."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Five captions, of which one belongs to the clip."""

    question_id: str
    clip_name: str
    options: tuple[str, ...]
    answer: int
    """Position of the correct option, from 0."""
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


AnyQuestion = TypeVar("AnyQuestion", Question, Choice)


def read_questions(path: str) -> list[Question]:
    """Read the questions of a file. ValueError, with file and line, for malformed ones and for an empty file."""
    return _all(path, _question)


def read_choices(path: str) -> list[Choice]:
    """Read the choices of a file. ValueError, with file and line, for malformed ones and for an empty file."""
    return _all(path, _choice)


FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "clip_name": ("clip_name", "video_id", "video", "gif_name", "video_name", "vid", "vid_id", "video_path"),
        "question": ("question", "caption", "query"),
        "answer": ("label", "answer", "answers"),
        "options": ("options", "choices", "candidates", "caption"),
        "question_id": ("question_id", "qid", "id", "key"),
        "kind": ("question_type", "difficulty", "type", "task_type"),
    }
)
"""Meaning → names of the field in the published code and the data sets; the first that a record has is used."""
OPTION_COLUMN = re.compile(r"(?:a|option|opt|choice|answer)[_ ]?(\d|[A-Ea-e])")
"""Matches columns that hold one option each: NExT-QA's a0 to a4, TGIF-QA's a1 to a5."""
LETTERS = "ABCDE"
MEDIA_KINDS = frozenset({"video", "image"})
"""Values of `type` in the published code's files that are media types, not types of question."""


def _question(record: Mapping[str, Any], where: str) -> Question:
    label = _field(record, "answer")
    answers = label if isinstance(label, list) else [label]
    answers = [answer["answer"] if isinstance(answer, Mapping) else answer for answer in answers]
    if not answers:
        raise ValueError("a question needs an answer, its list of them is empty")
    if not is_nothing(more := record.get("additional_ref_answer")):  # NExT-OE
        answers.append(more)
    return Question(
        question_id=str(_field(record, "question_id", where)),
        clip_name=_text(_field(record, "clip_name"), "the name of a clip"),
        text=_text(_field(record, "question"), "a question"),
        answers=tuple(_text(answer, "an answer") for answer in answers),
        kind=_kind(record),
    )


def _choice(record: Mapping[str, Any], where: str) -> Choice:
    columns = sorted(name for name in record if OPTION_COLUMN.fullmatch(name))
    options = [record[name] for name in columns] if len(columns) > 1 else items_of(_field(record, "options"))
    answer = str(_field(record, "answer"))
    if not isinstance(options, list):
        raise ValueError(f"options must be a list of captions, got {str(options)[:60]!r}")
    texts = tuple(_text(option, "an option") for option in options)
    return Choice(
        question_id=str(_field(record, "question_id", where)),
        clip_name=_text(_field(record, "clip_name"), "the name of a clip"),
        options=texts,
        answer=_position(answer, texts),
        kind=_kind(record),
    )


def _position(answer: str, options: Sequence[str]) -> int:
    """Return the position of the correct option, given as a number from 0, a letter from A, or the option itself."""
    if answer.isdecimal():
        return int(answer)
    if len(answer) == 1 and answer in LETTERS:
        return LETTERS.index(answer)
    if options.count(answer.strip()) == 1:
        return options.index(answer.strip())
    raise ValueError(
        f"the answer of a choice is the position of an option, got {answer!r}; its letter or its words do too"
    )


def _kind(record: Mapping[str, Any]) -> str:
    kind = str(_field(record, "kind", ""))
    return "" if kind in MEDIA_KINDS else kind


def _field(record: Mapping[str, Any], meaning: str, default: Any = None) -> Any:
    """Return the field with a meaning, or `default`. KeyError if both are missing."""
    names = FIELDS[meaning]
    name = next((name for name in names if name in record), None)
    if name is None and default is None:
        raise KeyError(meaning)
    return default if name is None else record[name]


def _text(value: Any, what: str) -> str:
    """Convert a text or number to text: files contain both. ValueError for anything else, and for NaN."""
    is_text = isinstance(value, str | int | float) and not isinstance(value, bool)
    if not is_text or str(value).strip().lower() in ("", "nan"):
        raise ValueError(f"{what} must be a text that is not empty, got {value!r}")
    return str(value).strip()


def _all(path: str, read: Callable[[Mapping[str, Any], str], AnyQuestion]) -> list[AnyQuestion]:
    names, questions, wrong = mapped_names(path), [], []
    for number, record in _with_answers(_records(path), path):
        try:
            question = _read(f"{path}:{number}", number, read, record)
        except ValueError as error:
            wrong.append(str(error))
            continue
        name = names.get(question.clip_name) or names.get(f"vid{question.clip_name}")
        questions.append(replace(question, clip_name=name) if name else question)
    if wrong:
        more = f"\n… and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        raise ValueError("\n".join(wrong[:MAX_NAMED]) + more)
    if not questions:
        raise ValueError(f"{path} asks nothing: name a file with a question in each line, or a list of them")
    return questions


def mapped_names(path: str) -> dict[str, str]:
    """Read number → name of a clip from the youtube_mapping.txt beside a file of questions; empty without one.

    MSVD-QA refers to `vid1`, but MSVD's files have other names.
    """
    beside = storage.join(posixpath.dirname(path) or ".", MAPPING)
    if not storage.exists(beside):
        return {}
    pairs = [line.split() for line in read_text(beside).splitlines() if line.strip()]
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def _records(path: str) -> Iterator[tuple[str, Any]]:
    """Yield (number, value) for each line, item or row of JSON lines, a JSON list, a CSV table or Parquet."""
    if is_parquet(path):
        yield from ((where.rpartition(" ")[2], row) for where, row in parquet_rows(path))
        return
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}: begins as a JSON list and is none ({error})") from error
        yield from ((str(number), record) for number, record in enumerate(records))
    elif text.lstrip()[:1] not in ("{", '"', "") and delimiter_of(text.lstrip().splitlines()[0]):
        yield from ((where.rpartition(":")[2], row) for where, row in csv_rows(text, path))
    else:
        yield from ((where.rpartition(":")[2], record) for where, record in json_lines(text, path))


def _with_answers(records: Iterable[tuple[str, Any]], path: str) -> Iterator[tuple[str, Any]]:
    """Yield `records`; those of ActivityNet-QA's NAME_q.json get the answers of NAME_a.json beside it.

    ValueError if questions have no answers and there is no such file.
    """
    rows = list(records)
    is_asked = [isinstance(row, Mapping) and "question_id" in row for _, row in rows]
    if not rows or not all(is_asked) or any(name in row for _, row in rows for name in FIELDS["answer"]):
        yield from rows
        return
    beside = re.sub(r"_q(\.\w+)$", r"_a\1", path)
    if beside == path or not storage.exists(beside):
        raise ValueError(
            f"{path} has questions without answers: ActivityNet-QA has them in another file; keep the two beside one "
            "another as NAME_q.json and NAME_a.json, and name the first"
        )
    answers = {str(row["question_id"]): row for _, row in _records(beside)}
    for number, row in rows:
        yield number, {**answers.get(str(row["question_id"]), {}), **row}


def _read(where: str, number: str, read: Callable[[Mapping[str, Any], str], AnyQuestion], record: Any) -> AnyQuestion:
    if isinstance(record, WrongRow):
        raise ValueError(record.reason)
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
    """Lookup of the clips of a split by their names in annotation files."""

    def __init__(self, rows: pa.Table, root: str) -> None:
        """`rows`: of a manifest; `root`: the prefix of its uris."""
        self.ids: dict[str, set[int]] = defaultdict(set)
        self.alike: dict[str, set[int]] = defaultdict(set)
        for clip_id, uri in zip(rows["clip_id"].to_pylist(), rows["uri"].to_pylist(), strict=True):
            path = media.name_of(uri, root)
            for name in {path, posixpath.splitext(path)[0], posixpath.basename(path), _stem(path)}:
                self.ids[name].add(clip_id)
                self.alike[folded(name)].add(clip_id)

    def find(self, name: str) -> int | None:
        """Return the id of the clip called `name`; None if there is none. ValueError if there are several.

        A name with a folder matches only the clip in that folder: the same file name elsewhere is another clip.
        """
        tried = [form.format(name) for form in NUMBERED] if name.isdigit() else [name, posixpath.splitext(name)[0]]
        bare = tried[-1]
        alike = [*tried, *(bare.removeprefix(prefix) for prefix in PREFIXES), *(prefix + bare for prefix in PREFIXES)]
        for clip_ids in (*map(self.ids.get, tried), *(self.alike.get(folded(form)) for form in alike)):
            if clip_ids:
                if len(clip_ids) > 1:
                    raise ValueError(
                        f"{name!r} is the name of {len(clip_ids)} clips; name clips by their path below the root"
                    )
                return next(iter(clip_ids))
        return None


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


@dataclass(frozen=True, kw_only=True)
class ClipQuestions(Generic[AnyQuestion]):
    """Questions by clip, and those that cannot be asked."""

    by_clip: Mapping[int, tuple[AnyQuestion, ...]]
    missing: tuple[AnyQuestion, ...]
    """Questions about missing clips: reported, not scored."""

    @property
    def num_questions(self) -> int:
        """Return the number of questions about existing clips."""
        return sum(map(len, self.by_clip.values()))


def group_by_clip(questions: Iterable[AnyQuestion], names: ClipNames) -> ClipQuestions[AnyQuestion]:
    """Group the questions by clip."""
    by_clip: dict[int, list[AnyQuestion]] = defaultdict(list)
    missing: list[AnyQuestion] = []
    for question in questions:
        clip_id = names.find(question.clip_name)
        (missing if clip_id is None else by_clip[clip_id]).append(question)
    return ClipQuestions(
        by_clip={clip: tuple(questions) for clip, questions in by_clip.items()}, missing=tuple(missing)
    )


# --- answers ----------------------------------------------------------------------------------------------------------


def answer_list(train: Iterable[Question], size: int) -> tuple[str, ...]:
    """Return the `size` most frequent answers of the training split; ties are broken alphabetically.

    Training questions without an answer in the list are left out; such test questions stay, and count as wrong.
    """
    counts = Counter(answer for question in train for answer in question.answers)
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:size])


def known_answers(question: Question, numbers: Mapping[str, int]) -> list[int]:
    """Return the numbers of a question's correct answers that are in the list."""
    return [numbers[answer] for answer in question.answers if answer in numbers]


def unanswerable(questions: Sequence[Question], answers: Sequence[str]) -> list[Question]:
    """Return the questions without a correct answer in the list."""
    numbers = {answer: number for number, answer in enumerate(answers)}
    return [question for question in questions if not known_answers(question, numbers)]
