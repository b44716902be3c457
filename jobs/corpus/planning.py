"""Plan a corpus from its annotations and the names of its files, before any file is opened."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pipeline import storage
from pipeline.corpus import annotations
from pipeline.corpus.annotations import ParsedAnnotations
from pipeline.corpus.clip_rows import Annotation, WrongRow, is_outside, without_queries
from pipeline.corpus.manifest import clip_id
from pipeline.corpus.media import kind_of, name_of
from pipeline.corpus.sources import Layout, Source
from pipeline.corpus.splits import split_of_folder
from pipeline.records import Reason, Rejected, Stage

NUM_SAMPLES = 3
MAX_NAMED = 5
TABLES = (".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz")
MAX_NEAREST = 100
"""Most missing clips whose nearest name is searched: each is compared with every name."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Clips, where their files are, and the rows that could not be read."""

    clips: tuple[Annotation, ...]
    source: Source
    wrong: tuple[WrongRow, ...]
    unassigned: tuple[str, ...] = ()
    """Names of clips without any indication of their split."""

    @property
    def missing(self) -> list[Annotation]:
        """Return the clips whose file is not in the source."""
        return [clip for clip in self.clips if self.source.name(clip.relative_path) not in self.source.places]

    def rejected(self, corpus: str) -> list[Rejected]:
        """Return the wrong rows for the ledger."""
        return wrong_rows(self.wrong, corpus)


def wrong_rows(rows: Iterable[WrongRow], corpus: str) -> list[Rejected]:
    """Return wrong rows for the ledger."""
    return [
        Rejected(
            clip_id=clip_id(corpus, row.where),
            uri=without_queries(row.where),
            stage=Stage.PREPARE,
            reason=Reason.WRONG_ROW,
            detail=without_queries(row.reason),
        )
        for row in rows
    ]


def make_plan(reading: ParsedAnnotations, source: Source) -> Plan:
    """Match the clips of `reading` with the files of `source`.

    Clips with the same file and times are merged. A path outside the root that matches no file is a wrong row.
    ValueError if merged clips differ in split, group or kind.
    """
    clips = [replace(clip, relative_path=_below(clip.relative_path, source.root)) for clip in reading.clips]
    source = source.match(clip.relative_path for clip in clips)
    wrong = list(reading.wrong)
    by_place: dict[tuple[str, float | None, float | None], Annotation] = {}
    unassigned: list[str] = []
    for given, clip in zip(reading.clips, clips, strict=True):
        name = source.name(clip.relative_path)
        if is_outside(clip.relative_path) and name not in source.places:
            where = reading.places.get((given.relative_path, given.start_seconds, given.end_seconds), "")
            reason = f"{where}: {annotations.outside_root_message(clip)}, and no file there is called so"
            wrong.append(WrongRow(where=where, reason=reason))
            continue
        if name != clip.relative_path:
            kind = kind_of(name) or clip.kind
            path = name if is_outside(clip.relative_path) else clip.relative_path
            clip = replace(clip, kind=kind, relative_path=path)
        try:
            split = clip.split or split_of_folder(name)
        except ValueError as error:
            wrong.append(WrongRow(where=name, reason=str(error)))
            continue
        if split is None:
            unassigned.append(name)
        clip = replace(clip, split=split or annotations.DEFAULT_SPLIT)
        key = (name, clip.start_seconds, clip.end_seconds)
        by_place[key] = annotations.merged(by_place[key], clip, clip.relative_path) if key in by_place else clip
    return Plan(clips=tuple(by_place.values()), source=source, wrong=tuple(wrong), unassigned=tuple(unassigned))


def _below(path: str, root: str) -> str:
    """Return a path or URL relative to `root` if it lies below `root`, else unchanged."""
    root = root.rstrip("/") + "/"
    return path[len(root) :] if path.startswith(root) else path


@dataclass
class Outline:
    """Counts over plans, with a few examples of each."""

    notes: list[str] = field(default_factory=list)
    """How the annotations were interpreted."""
    splits: Counter[str] = field(default_factory=Counter)
    """Clips by split."""
    counts: Counter[str] = field(default_factory=Counter)
    """Renamed, silent, missing, wrong and unassigned clips and rows."""
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    list_hashes: Counter[str] = field(default_factory=Counter)
    """Sum of `hash_of_clip` over the clips of each split."""

    def add(self, plan: Plan) -> None:
        """Add the clips of a plan."""
        self.splits.update(clip.split for clip in plan.clips)
        for clip in plan.clips:
            self.list_hashes[clip.split] += hash_of_clip(clip)
        missing = plan.missing
        self._note("renamed", [f"{name} is {place}" for name, place in plan.source.matched.items()])
        self._note("silent", [clip.relative_path for clip in plan.clips if not clip.captions])
        shown = [_missed(plan, clip.relative_path) for clip in missing[: MAX_NAMED - len(self.examples["missing"])]]
        self._note("missing", shown, len(missing))
        self._note("wrong", [row.reason for row in plan.wrong])
        self._note("unassigned", plan.unassigned)
        self._note("sample", [_shown(clip) for clip in plan.clips[:NUM_SAMPLES]])

    def _note(self, sort: str, items: Sequence[str], count: int | None = None) -> None:
        self.counts[sort] += len(items) if count is None else count
        self.examples[sort] += items[: MAX_NAMED - len(self.examples[sort])]

    def refuse(self, source: Source, layout_names: Sequence[str]) -> None:
        """Raise ValueError without any clip or wrong row, or if no clip has captions but a table may have them.

        `layout_names`: names of files below the root, among them all tables.
        """
        if not self.splits and not self.counts["wrong"]:
            raise ValueError(
                f"no clip and no caption is in {source.root}: name the files with the captions, --annotations"
            )
        tables = [name for name in layout_names if name.lower().endswith(TABLES) and not kind_of(name)]
        if tables and source.layout == Layout.FILES and self.counts["silent"] == self.splits.total():
            named = f"--annotations {storage.join(source.root, tables[0])}"
            raise ValueError(f"no clip below {source.root} has captions; if {tables[0]} has them: {named}")


def hash_of_clip(clip: Annotation) -> int:
    """Return a 48-bit hash of a clip's path, and of its times if it is a part of a file. The sum of the hashes
    identifies a list of clips, whatever its order."""
    times = [time for time in (clip.start_seconds, clip.end_seconds) if time is not None]
    text = " ".join([clip.relative_path, *map(str, times)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def describe_outline(outline: Outline) -> str:
    """Return the outline as text: how annotations were read, clips by split, problems, and three sample clips."""
    counts, examples = outline.counts, outline.examples
    notes = list(outline.notes)
    if 0 < counts["unassigned"] < outline.splits.total():
        notes.append(
            f"no split is named for {counts['unassigned']} clips, which are in train, as {examples['unassigned'][0]}"
        )
    lines = [f"captions  {line}" for line in _joined(notes)]
    splits = ", ".join(f"{split} {count}" for split, count in sorted(outline.splits.items()))
    lines.append(f"clips     {splits or 'none'}")
    for sort, what in _SORTS.items():
        more = "; …" if counts[sort] > MAX_NAMED else ""
        lines += [f"{sort:<9} {counts[sort]} {what}: {'; '.join(examples[sort])}{more}"] if counts[sort] else []
    lines += [f"sample    {line}" for line in examples["sample"][:NUM_SAMPLES]]
    return without_queries("\n".join(lines))


_SORTS = {
    "renamed": "by name alone",
    "silent": "without captions",
    "missing": "not there",
    "wrong": "rows that cannot be read",
}


def _joined(notes: Sequence[str]) -> list[str]:
    """Return the notes, with equal notes about several files merged into one line."""
    files: dict[str, list[str]] = {}
    for note in notes:
        file, _, text = note.partition(": ")
        files.setdefault(text, []).append(file)
    return [
        f"{', '.join(names[:MAX_NAMED])}{', …' if len(names) > MAX_NAMED else ''}{': ' if text else ''}{text}"
        for text, names in files.items()
    ]


def _missed(plan: Plan, path: str) -> str:
    nearest = plan.source.nearest(path)
    return f"{path} ({nearest})" if nearest else path


def _shown(clip: Annotation) -> str:
    ends = ["" if time is None else f"{time:g}" for time in (clip.start_seconds, clip.end_seconds)]
    times = f"  {'–'.join(ends)} s" if any(ends) else ""
    return f"{clip.relative_path}  {clip.split}{times}  {' | '.join(clip.captions)[:100]!r}"


def with_nearest(rejected: Iterable[Rejected], plan: Plan) -> list[Rejected]:
    """Return `rejected`, and add the most similar existing name to the details of missing clips."""
    named, count = [], 0
    for sample in rejected:
        if sample.reason == Reason.MISSING and count < MAX_NEAREST:
            count += 1
            if nearest := plan.source.nearest(name_of(sample.uri, plan.source.root)):
                sample = replace(sample, detail=f"{sample.detail}; {nearest}")
        named.append(sample)
    return named
