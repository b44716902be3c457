"""Score the clips of a corpus and filter its manifest by thresholds, as a Ray Data job."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from jobs.corpus.filter_page import page_of
from jobs.corpus.preparation import PrepareResult, commit, refuse_writing_over
from jobs.corpus.resumption import compute_missing, request_missing
from jobs.launch import lease
from pipeline import storage
from pipeline.corpus import ledger
from pipeline.corpus.manifest import Manifest, read_manifest
from pipeline.corpus.parts import is_in_parts
from pipeline.corpus.sorted_rows import SortedRows
from pipeline.curation.language import LANGUAGES
from pipeline.curation.scores import NAMES, SCORES, VERSION, known_scores, score_clips
from pipeline.decode import decoders
from pipeline.decode.config import Limits
from pipeline.decode.decoders import DecoderName
from pipeline.offline.kept import key_of
from pipeline.records import DecodeError, Reason, Rejected, Stage

log = logging.getLogger(__name__)

TABLE, KEPT, MATCHES, REPORT, PAGE = "scores.parquet", "scores", "matches", "filter.json", "filter.html"
MATCHED = pa.schema([("clip_id", pa.int64()), ("uri", pa.string()), ("match", pa.float64())])
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
_RULE = re.compile(r"(\w+)(>=|<=)(-?\d+(?:\.\d+)?(?:e-?\d+)?)")


class Matcher(Protocol):
    """Scores how well a clip (a row of a manifest) matches its captions. DecodeError if the clip cannot be decoded."""

    @property
    def name(self) -> str:
        """Return an identifier that differs between matchers with different scores."""
        ...

    def __call__(self, clip: Mapping[str, Any]) -> float: ...


@dataclass(frozen=True)
class Rule:
    """A condition on a clip's score. A clip without this score stays."""

    name: str
    relation: str
    threshold: float

    def keeps(self, score: float | None) -> bool:
        """Return whether a clip with this score stays."""
        if score is None:
            return True
        return score >= self.threshold if self.relation == ">=" else score <= self.threshold

    def __str__(self) -> str:
        return f"{self.name}{self.relation}{self.threshold:g}"


def rule_of(text: str) -> Rule:
    """Parse a rule such as `motion>=0.02`. ValueError for any other form, and for an unknown score."""
    match = _RULE.fullmatch(text.replace(" ", ""))
    if match is None or match[1] not in NAMES:
        raise ValueError(f"rules are SCORE>=NUMBER or SCORE<=NUMBER, with {', '.join(NAMES)} as scores, got {text!r}")
    return Rule(match[1], match[2], float(match[3]))


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which clips are scored, and which of them stay."""

    manifest: str
    """Manifest of the corpus: a file or a folder of parts. The new version has the same form."""
    out: str
    """Folder or bucket for the scores, the report, and with rules the new manifest and its ledger."""
    keep: tuple[str, ...] = ()
    """Rules such as `motion>=0.02 letterbox<=0.1`; a clip stays if it fulfils all. None: clips are only scored."""
    language: str = "en"
    """Language of the score `caption_language`, the share of a clip's captions in it: en, de, zh, …"""
    model: str | None = None
    """Folder of a run or an exported model: `match` is then the cosine of a clip and its least fitting caption."""
    splits: tuple[str, ...] = ("train",)
    """Splits that are filtered; clips of others stay."""
    decoder: DecoderName = decoders.AUTO
    subcluster: str | None = None
    """Only nodes with this value of the label `ray-subcluster` read and decode, e.g. data; by default all do."""
    limits: Limits = field(default_factory=Limits)
    """Limits of decoding one clip."""

    def __post_init__(self) -> None:
        decoders.load(self.decoder)
        if self.language not in LANGUAGES:
            raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, got {self.language!r}")
        if self.model is None and any(rule.name == "match" for rule in self.rules):
            raise ValueError("match is scored by a model: name a run, --model FOLDER")

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(map(rule_of, self.keep))


@dataclass(frozen=True, kw_only=True)
class FilterResult:
    """The result of `filter_clips`."""

    scores_path: str
    page_path: str
    num_clips: int
    num_unreadable: int
    """Clips without decodable frames; with rules, they are removed."""
    quantiles: dict[str, list[float]]
    """Of each score, at `QUANTILES`."""
    taken_out: dict[str, tuple[int, int]]
    """Rule → number of clips that it removes, and of those that no other rule removes."""
    prepared: PrepareResult | None
    """The new version, if there are rules."""


def filter_clips(config: FilterConfig, load_matcher: Callable[[str, Limits], Matcher] | None = None) -> FilterResult:
    """Write scores and report and, with rules, a new manifest of the clips that stay.

    Scores of earlier passes are reused. `load_matcher` loads `config.model`. ValueError if the manifest would be
    overwritten, or while another job writes to the same folder.
    """
    started = time.monotonic()
    path, out = storage.absolute(config.manifest), storage.absolute(config.out)
    refuse_writing_over(path, out)
    manifest = read_manifest(path)
    storage.check_writable(out)
    with lease.held(out) as held:
        scored = scores_in(manifest, config, out)
        held.check()
        scores, unreadable = ledger.split_by_reason(scored, Stage.PREPARE)
        clips = {clip["clip_id"]: clip for clip in manifest.table.to_pylist()}
        readable = scores.select(SCORES.names).sort_by("clip_id").to_pylist()
        matches = {}
        if config.model and load_matcher:
            matcher = load_matcher(config.model, config.limits)
            matches = matches_of([clips[row["clip_id"]] for row in readable], matcher, storage.join(out, MATCHES))
        rows = [
            row
            | {"split": clips[row["clip_id"]]["split"], "match": matches.get(row["clip_id"])}
            | known_scores(clips[row["clip_id"]], config.language)
            for row in readable
        ]
        removed = {rule: find_removed(rows, rule, config.splits) for rule in config.rules}
        result = FilterResult(
            scores_path=storage.join(out, TABLE),
            page_path=storage.join(out, PAGE),
            num_clips=len(manifest),
            num_unreadable=len(unreadable),
            quantiles=quantiles_of(rows),
            taken_out={
                str(rule): (len(ids), len(ids - removed_by_others(rule, removed))) for rule, ids in removed.items()
            },
            prepared=_new_version(manifest, rows, unreadable, removed, out, started, is_in_parts(path))
            if removed
            else None,
        )
        table = pa.Table.from_pylist([{name: row[name] for name in ("clip_id", "uri", *NAMES)} for row in rows])
        storage.write_table(result.scores_path, table)
        storage.write_bytes_atomic(result.page_path, page_of(rows, config.rules, describe(result)).encode())
        summary = {"config": dataclasses.asdict(config), "found": dataclasses.asdict(result)}
        storage.write_bytes_atomic(storage.join(out, REPORT), json.dumps(summary, indent=1).encode())
        return result


def scores_in(manifest: Manifest, config: FilterConfig, out: str) -> pa.Table:
    """Return a row per clip, with its scores or with the reason of its rejection. Kept scores are reused."""
    rows = manifest.table.sort_by([("uri", "ascending"), ("clip_id", "ascending")])
    decoder = decoders.resolve(config.decoder)
    names = ("clip_id", "checksum", "start_seconds", "end_seconds")
    keys = [key_of(VERSION, decoder, *row.values()) for row in rows.select(list(names)).to_pylist()]
    rows = rows.append_column("key", pa.array(keys, pa.string()))
    score = partial(score_clips, limits=config.limits, decoder=config.decoder)
    options = {"max_block_rows": 64, "group_column": "uri", "subcluster": config.subcluster}
    return compute_missing(rows, score, storage.join(out, KEPT), SCORES, **options)


def matches_of(clips: Sequence[Mapping[str, Any]], matcher: Matcher, folder: str) -> dict[int, float]:
    """Return clip id → match score of the clips with captions. Scores kept in `folder` are reused."""
    names = ("checksum", "start_seconds", "end_seconds", "captions")
    rows = [{**clip, "key": key_of(matcher.name, *map(clip.get, names))} for clip in clips if clip["captions"]]

    def match(clip: Mapping[str, Any]) -> dict[str, Any]:
        row = {name: clip[name] for name in ("clip_id", "uri", "key")}
        try:
            return row | {"match": matcher(clip)}
        except DecodeError as error:
            return row | {"reason": str(error.reason), "detail": error.detail}

    table, _ = request_missing(rows, match, folder, MATCHED, num_at_once=1, what="clips matched with their captions")
    return {row["clip_id"]: row["match"] for row in table.to_pylist() if not row["reason"]}


def find_removed(rows: Sequence[Mapping[str, Any]], rule: Rule, splits: Sequence[str]) -> set[int]:
    """Return the ids of the clips in `splits` that the rule removes."""
    return {row["clip_id"] for row in rows if row["split"] in splits and not rule.keeps(row[rule.name])}


def removed_by_others(rule: Rule, removed: Mapping[Rule, set[int]]) -> set[int]:
    """Return the ids of the clips that other rules remove."""
    return set().union(*(ids for other, ids in removed.items() if other != rule))


def quantiles_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the quantiles of each score that at least one clip has."""
    values = {name: [row[name] for row in rows if row[name] is not None] for name in NAMES}
    return {name: np.quantile(known, QUANTILES).round(4).tolist() for name, known in values.items() if known}


def _new_version(
    manifest: Manifest,
    rows: Sequence[Mapping[str, Any]],
    unreadable: Sequence[Rejected],
    removed: Mapping[Rule, set[int]],
    out: str,
    started: float,
    in_parts: bool,
) -> PrepareResult:
    removed_ids = {clip_id for ids in removed.values() for clip_id in ids} | {row.clip_id for row in unreadable}
    rejected = [
        Rejected(
            clip_id=row["clip_id"],
            uri=row["uri"],
            stage=Stage.PREPARE,
            reason=Reason.FILTERED,
            detail=", ".join(f"{rule.name} {row[rule.name]:g} is not {rule}" for rule in broken),
        )
        for row in rows
        if (broken := [rule for rule, ids in removed.items() if row["clip_id"] in ids])
    ]
    is_kept = pa.array([clip_id not in removed_ids for clip_id in manifest.table["clip_id"].to_pylist()])
    return commit(
        SortedRows([manifest.table.filter(is_kept)]),
        [*unreadable, *rejected],
        corpus=manifest.corpus,
        root=manifest.root,
        out=out,
        num_samples=len(manifest),
        max_rejected_share=1.0,
        started=started,
        decoders=manifest.decoders,
        in_parts=in_parts,
    )


def describe(result: FilterResult) -> str:
    """Return a summary for the terminal."""
    lines = [f"clips      {result.num_clips}, without frames {result.num_unreadable}: {result.scores_path}"]
    lines += [f"{name:<10} {' '.join(f'{value:g}' for value in values)}" for name, values in result.quantiles.items()]
    lines.append(f"           at {', '.join(f'{share:.0%}' for share in QUANTILES)} of the clips")
    for rule, (count, alone) in result.taken_out.items():
        lines.append(f"takes out  {count} by {rule}, {alone} of them by no other rule")
    version = result.prepared
    new = (
        f"{version.manifest_path} ({version.manifest_hash})" if version else "as it is; --keep RULE … writes a new one"
    )
    return "\n".join([*lines, f"manifest   {new}", f"page       {result.page_path}"])
