"""What a corpus would be made of, read from its annotations and the names of its files before any file is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline import storage
from pipeline.corpus import annotations
from pipeline.corpus.annotations import Reading
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
"""Missing clips whose nearest name is looked for: each is compared with every name."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Clips, where they lie, and what could not be read."""

    clips: tuple[Annotation, ...]
    source: Source
    wrong: tuple[WrongRow, ...]
    notes: tuple[str, ...]
    """What was taken for what."""

    @property
    def missing(self) -> list[Annotation]:
        """Clips that no file was listed for."""
        return [clip for clip in self.clips if self.source.name(clip.relative_path) not in self.source.places]

    @property
    def renamed(self) -> dict[str, str]:
        """Clip as annotations call it → the file that was taken for it, where their paths differ."""
        return dict(self.source.matched)

    def rejected(self, corpus: str) -> list[Rejected]:
        """Return the wrong rows for the ledger."""
        return [
            Rejected(
                clip_id=clip_id(corpus, row.where),
                uri=without_queries(row.where),
                stage=Stage.PREPARE,
                reason=Reason.WRONG_ROW,
                detail=without_queries(row.reason),
            )
            for row in self.wrong
        ]


def make_plan(reading: Reading, source: Source) -> Plan:
    """Return the clips of `reading` with the files of `source` that they mean.

    Clips that mean one file are one clip. A path outside the root of which no file there is the end is a wrong row.
    ValueError: one file is in two splits.
    """
    clips = [replace(clip, relative_path=_below(clip.relative_path, source.root)) for clip in reading.clips]
    source = source.match(clip.relative_path for clip in clips)
    wrong = list(reading.wrong)
    by_place: dict[tuple[str, float | None, float | None], Annotation] = {}
    unsaid: list[str] = []
    for given, clip in zip(reading.clips, clips, strict=True):
        name = source.name(clip.relative_path)
        if is_outside(clip.relative_path) and name not in source.places:
            where = reading.places.get((given.relative_path, given.start_seconds, given.end_seconds), "")
            reason = f"{where}: {annotations.outside(clip)}, and no file there is called so"
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
            unsaid.append(name)
        clip = replace(clip, split=split or annotations.DEFAULT_SPLIT)
        key = (name, clip.start_seconds, clip.end_seconds)
        by_place[key] = annotations.merged(by_place[key], clip, clip.relative_path) if key in by_place else clip
    if not by_place and not wrong:
        raise ValueError(f"no clip and no caption is in {source.root}: name the files with the captions, --annotations")
    refuse_uncaptioned(by_place.values(), source)
    notes = list(reading.notes)
    if unsaid and len(unsaid) < len(by_place):
        notes.append(f"no split is named for {len(unsaid)} clips, which are in train, as {unsaid[0]}")
    return Plan(clips=tuple(by_place.values()), source=source, wrong=tuple(wrong), notes=tuple(notes))


def refuse_uncaptioned(clips: Collection[Annotation], source: Source) -> None:
    """Raise ValueError if no clip has captions, and files that may have them lie among the videos."""
    tables = [name for name in source.places if name.lower().endswith(TABLES) and not kind_of(name)]
    if tables and source.layout == Layout.FILES and not any(clip.captions for clip in clips):
        named = storage.join(source.root, tables[0])
        raise ValueError(f"no clip below {source.root} has captions; if {tables[0]} has them: --annotations {named}")


def _below(path: str, root: str) -> str:
    """Return an absolute path or a URL as one below the root, if it is."""
    root = root.rstrip("/") + "/"
    return path[len(root) :] if path.startswith(root) else path


def describe_plan(plan: Plan) -> str:
    """Return what was taken for what, counts by split, what is wrong or missing, and three clips, for people."""
    splits = Counter(clip.split for clip in plan.clips)
    lines = [f"captions  {line}" for line in _joined(plan.notes)]
    lines.append("clips     " + (", ".join(f"{split} {count}" for split, count in sorted(splits.items())) or "none"))
    renamed = [f"{name} is {place}" for name, place in plan.renamed.items()]
    missing = plan.missing
    silent = [clip.relative_path for clip in plan.clips if not clip.captions]
    lines += _listed("renamed", "by name alone", renamed)
    lines += _listed("silent", "without captions", silent)
    lines += _listed(
        "missing", "not there", [_missed(plan, clip.relative_path) for clip in missing[:MAX_NAMED]], len(missing)
    )
    lines += _listed("wrong", "rows that cannot be read", [row.reason for row in plan.wrong])
    lines += [f"sample    {_shown(clip)}" for clip in plan.clips[:NUM_SAMPLES]]
    return without_queries("\n".join(lines))


def _joined(notes: Sequence[str]) -> list[str]:
    """Return the notes, those that say the same of several files as one line."""
    files: dict[str, list[str]] = {}
    for note in notes:
        file, _, text = note.partition(": ")
        files.setdefault(text, []).append(file)
    return [
        f"{', '.join(names[:MAX_NAMED])}{', …' if len(names) > MAX_NAMED else ''}{': ' if text else ''}{text}"
        for text, names in files.items()
    ]


def _listed(word: str, what: str, items: Sequence[str], count: int | None = None) -> list[str]:
    count = len(items) if count is None else count
    more = "; …" if count > MAX_NAMED else ""
    return [f"{word:<9} {count} {what}: {'; '.join(items[:MAX_NAMED])}{more}"] if count else []


def _missed(plan: Plan, path: str) -> str:
    nearest = plan.source.nearest(path)
    return f"{path} ({nearest})" if nearest else path


def _shown(clip: Annotation) -> str:
    ends = ["" if time is None else f"{time:g}" for time in (clip.start_seconds, clip.end_seconds)]
    times = f"  {'–'.join(ends)} s" if any(ends) else ""
    return f"{clip.relative_path}  {clip.split}{times}  {' | '.join(clip.captions)[:100]!r}"


def with_nearest(rejected: Iterable[Rejected], plan: Plan) -> list[Rejected]:
    """Return `rejected`, of missing clips with the name that is most like theirs."""
    named, count = [], 0
    for sample in rejected:
        if sample.reason == Reason.MISSING and count < MAX_NEAREST:
            count += 1
            if nearest := plan.source.nearest(name_of(sample.uri, plan.source.root)):
                sample = replace(sample, detail=f"{sample.detail}; {nearest}")
        named.append(sample)
    return named
