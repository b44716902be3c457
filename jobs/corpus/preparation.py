"""Prepare a corpus: raw videos and captions in, manifest and ledger of rejected samples out, as a Ray Data job."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from jobs.corpus import appending
from jobs.corpus.gathering import Files, Gathered, gather
from jobs.corpus.planning import Plan, describe_outline, with_nearest, wrong_rows
from jobs.corpus.probing import WholeFileReads, probe_clips
from jobs.launch import lease
from pipeline import storage
from pipeline.corpus import annotations, ledger
from pipeline.corpus.buckets import NUM_BUCKETS
from pipeline.corpus.caption_formats import format_named
from pipeline.corpus.columns import meanings
from pipeline.corpus.manifest import SCHEMA, make_manifest, read_manifest, write_in_parts, write_manifest, write_sorted
from pipeline.corpus.sorted_rows import SortedRows
from pipeline.corpus.sources import Layout
from pipeline.corpus.text_files import byte_pieces
from pipeline.corpus.versions import split_version
from pipeline.decode import decoders
from pipeline.decode.config import Limits
from pipeline.decode.decoder_choice import measure_decoders
from pipeline.decode.decoders import DecoderName
from pipeline.offline.stages import clips_of, unnamed_files
from pipeline.records import Kind, Rejected

log = logging.getLogger(__name__)

_SETTINGS = (
    *("corpus", "format", "columns", "layout", "split", "decoder", "max_rejected_share", "measure_decoders"),
    "keep_uncaptioned",
)
VERSION = 5
"""Increase it when the same input gives another manifest."""
MARKER, FILE = "prepare.json", "manifest.parquet"
PROBED = "probed"
"""Folder of probe results until the manifest is written, from which a killed job resumes."""
PACKETS = "packets"
"""Folder beside the manifest with a packet index per long video, named after the checksum of the video."""
PARTS = "manifest"
"""Folder of a manifest in parts."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Which videos and captions become a corpus, and where it is written."""

    corpus: str
    """Name of the corpus. It enters the ids of its clips: keep it when the files move."""
    root: str
    """Folder or bucket of the videos and images: a local path or s3://bucket/prefix."""
    out: str
    """Folder or bucket for manifest.parquet (or manifest/), rejected.parquet and packets/."""
    annotations: tuple[str, ...] = ()
    """Caption files, folders or patterns of them, each PATH or SPLIT=PATH; none: side-cars or metadata below the
    root."""
    columns: tuple[str, ...] = ()
    """MEANING=COLUMN of tables and lines, where names do not say it: clip, caption, start, end, span, split. A
    number is a column of a table without a header; nothing after the = leaves a meaning out."""
    format: str | None = None
    """Format of the caption files: table, pairs, json_lines, webvid_csv, msrvtt_json, msrvtt_csv, msvd_corpus, didemo,
    activitynet, vatex, coco, karpathy, visual_genome, lsmdc, msvd, sidecars, asr, the name of an installed data set, or
    package.module:Name of a reader outside. None recognises it by their content."""
    lists: tuple[str, ...] = ()
    """SPLIT=PATH of files that name the clips of a split, a name per line or a table; clips in none are left out."""
    layout: Layout | None = None
    """How the videos are stored below the root; detected from the files, except for folders of key frames."""
    split: str | None = None
    """Split of clips for which neither a line nor SPLIT=PATH names one; None: that of their folder or of the caption
    file's name, else train."""
    decoder: DecoderName = decoders.AUTO
    """Decoder that must be able to read the clips."""
    max_rejected_share: float = 0.05
    """Largest share of annotated clips that may be rejected, in [0, 1]."""
    subcluster: str | None = None
    """Only nodes with this value of the label `ray-subcluster` read and decode, e.g. data; by default all do."""
    limits: Limits = field(default_factory=Limits)
    """Limits of probing one clip."""
    measure_decoders: bool = False
    """Time every decoder that loads here on clips of this corpus; training with data.decoder=auto takes the fastest."""
    in_parts: bool = False
    """Write the manifest as a folder of parts, of which a run reads the rows that it needs: for millions of clips. A
    manifest in one file is converted without probing its clips again, and its hash changes. When files are added, only
    these are probed, and their clips go to new parts."""
    keep_uncaptioned: bool = False
    """Keep clips without captions, for jobs/caption.py and jobs/filter.py. A run refuses to train on them."""
    force: bool = False
    """Probe every file again, even if nothing changed."""
    dry_run: bool = False
    """Print how the input would be interpreted, with three clips, and stop before any video is opened."""

    def __post_init__(self) -> None:
        if not self.corpus.strip():
            raise ValueError("corpus must be a name, got an empty one")
        if not 0 <= self.max_rejected_share <= 1:
            raise ValueError(f"max_rejected_share must lie in [0, 1], got {self.max_rejected_share}")
        decoders.load(self.decoder)
        meanings(self.columns)
        if self.format is not None:
            format_named(self.format)


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """The result of `prepare`, of this or an earlier pass."""

    manifest_path: str
    ledger_path: str
    manifest_hash: str
    num_clips: dict[str, int]
    """Usable clips per split."""
    num_rejected: dict[str, int]
    """Rejected samples per reason."""
    seconds: float
    num_annotated: dict[str, int] = field(default_factory=dict)
    """Clips per split that the caption files name, usable or not."""
    list_hashes: dict[str, str] = field(default_factory=dict)
    """Split → hash of the clips' paths and times: equal lists of clips have equal hashes."""
    change: str = ""
    """Differences to the previous version of a manifest in parts."""


def prepare(config: PrepareConfig) -> PrepareResult:
    """Write the manifest and the ledger of a corpus, both at the end.

    Do nothing if the input (settings, caption files, size and version of each file below the root) is unchanged.
    TooManyRejectedError, after the ledger is written, when more than the allowed share is rejected. ValueError while
    another job writes to the same folder.
    """
    root, out = storage.absolute(config.root), storage.absolute(config.out)
    storage.check_readable(root)
    storage.check_writable(out)
    with lease.held(out) as held:
        return _prepare(config, root, out, held)


def _prepare(config: PrepareConfig, root: str, out: str, held: lease.Lease) -> PrepareResult:
    started = time.monotonic()
    sources = config.annotations or (root,)
    files = Files.below(root, functools.partial(_is_output, root=root, out=out))
    inputs = _fingerprint(config, root, sources, files.hash)
    marker, made_by = storage.join(out, MARKER), f"{VERSION} {decoders.resolve(config.decoder)}"
    if not config.force and (prepared := already_done(marker, inputs)):
        return upgrade_to_parts(prepared, out, marker, inputs) if config.in_parts else prepared
    storage.remove(marker)  # a killed job must not leave the marker of the previous manifest
    gathered = _gather(config, root, sources, files)
    outline = gathered.outline()
    log.info("%s", describe_outline(outline))
    before = appending.newest(storage.join(out, PARTS))
    rows, rejected = _probe(config, gathered, out, made_by)
    held.check()
    prepared = commit(
        rows,
        rejected,
        corpus=config.corpus,
        root=root,
        out=out,
        num_samples=outline.splits.total() + outline.counts["wrong"],
        max_rejected_share=config.max_rejected_share,
        started=started,
        limits=config.limits if config.measure_decoders else None,
        in_parts=config.in_parts,
    )
    hashes = {split: f"{total % 2**48:012x}" for split, total in sorted(outline.list_hashes.items())}
    prepared = dataclasses.replace(prepared, num_annotated=dict(sorted(outline.splits.items())), list_hashes=hashes)
    if config.in_parts:
        appending.write_listing(out, files.buckets, made_by)
        change = appending.describe_change(before, appending.newest(storage.join(out, PARTS)))
        prepared = dataclasses.replace(prepared, change=change)
    mark_done(marker, inputs, prepared)
    storage.remove_folder(storage.join(out, PROBED))
    return prepared


def upgrade_to_parts(prepared: PrepareResult, out: str, marker: str, inputs: str) -> PrepareResult:
    """Convert a manifest in one file to parts, and return the corpus with it; return a manifest in parts unchanged."""
    if not prepared.manifest_path.endswith(".parquet"):
        return prepared
    path = storage.join(out, PARTS)
    index = write_in_parts(read_manifest(prepared.manifest_path), path)
    log.info(
        "the manifest of %s is in parts now: %s, hash %s was %s", index.corpus, path, index.hash, prepared.manifest_hash
    )
    prepared = dataclasses.replace(prepared, manifest_path=path, manifest_hash=index.hash)
    mark_done(marker, inputs, prepared)
    return prepared


def plan(config: PrepareConfig) -> Plan:
    """Return the plan of the whole corpus that `prepare` would follow with this configuration, in memory."""
    gathered = gather_inputs(config)
    gathered.outline()  # ValueError if there is nothing to prepare
    whole = gathered.plan(0, NUM_BUCKETS)
    return dataclasses.replace(whole, wrong=(*gathered.wrong, *whole.wrong))


def gather_inputs(config: PrepareConfig) -> Gathered:
    """Return the annotations and files that `prepare` would read with this configuration. Opens no video."""
    root, out = storage.absolute(config.root), storage.absolute(config.out)
    storage.check_readable(root)
    files = Files.below(root, functools.partial(_is_output, root=root, out=out))
    return _gather(config, root, config.annotations or (root,), files)


def _gather(config: PrepareConfig, root: str, sources: Sequence[str], files: Files) -> Gathered:
    notes: list[str] = []
    settings = {"split": config.split, "format": config.format, "lists": config.lists}
    rows = annotations.annotated_rows(sources, notes.append, **settings, columns=meanings(config.columns))
    return gather(root, config.layout, files, rows, notes)


def describe(prepared: PrepareResult) -> str:
    """Return a summary for the terminal."""
    lists = {split: f" (list {digest})" for split, digest in prepared.list_hashes.items()}
    annotated = ", ".join(f"{split} {count}{lists.get(split, '')}" for split, count in prepared.num_annotated.items())
    clips = ", ".join(f"{split} {count}" for split, count in prepared.num_clips.items()) or "none"
    rejected = ", ".join(f"{reason} {count}" for reason, count in prepared.num_rejected.items()) or "none"
    return (
        (f"annotated {annotated}\n" if annotated else "")
        + (f"changed   {prepared.change}\n" if prepared.change else "")
        + f"clips     {clips}\nrejected  {rejected}\nmanifest  {prepared.manifest_path} ({prepared.manifest_hash})\n"
        f"ledger    {prepared.ledger_path}\nseconds   {prepared.seconds:.1f}"
    )


def refuse_writing_over(manifest: str, out: str) -> None:
    """Raise ValueError if the folder `out` holds `manifest`: a job would overwrite it or its ledger."""
    path, out = storage.absolute(split_version(manifest)[0]), storage.absolute(out)
    if path in (out, *(storage.join(out, name) for name in (FILE, PARTS))):
        raise ValueError(f"--out {out} is where {path} lies: name another folder, so that both remain")


def commit(
    rows: SortedRows,
    rejected: list[Rejected],
    *,
    corpus: str,
    root: str,
    out: str,
    num_samples: int,
    max_rejected_share: float,
    started: float,
    decoders: Mapping[str, Mapping[str, float]] | None = None,
    limits: Limits | None = None,
    in_parts: bool = False,
) -> PrepareResult:
    """Write the ledger and the manifest to `out`.

    TooManyRejectedError or ValueError (no usable clip), after the ledger is written. With `limits`, the decoders are
    timed on clips of the corpus, within these; otherwise `decoders` are the known times.
    """
    manifest_path, ledger_path = storage.join(out, PARTS if in_parts else FILE), storage.join(out, "rejected.parquet")
    ledger.write_ledger(rejected, ledger_path)
    ledger.refuse_above_share(rejected, num_samples, max_rejected_share, ledger_path)
    if not len(rows):
        raise ValueError(f"no clip of {root} is usable: {_counts(rejected) or 'no file and no caption was found'}")
    if limits and (videos := next(rows.tables(Kind.VIDEO), None)) is not None:
        decoders = measure_decoders(videos, limits)
        log.info("measured of each decoder here, per clip: %s", decoders)
    if in_parts:
        index = write_sorted(rows, manifest_path, corpus=corpus, root=root, decoders=decoders or {})
        manifest_hash = index.hash
    else:
        made = make_manifest(corpus, root, pa.concat_tables(rows.tables()))
        write_manifest(made := dataclasses.replace(made, decoders=decoders or {}), manifest_path)
        manifest_hash = made.hash
    return PrepareResult(
        manifest_path=manifest_path,
        ledger_path=ledger_path,
        manifest_hash=manifest_hash,
        num_clips=rows.splits,
        num_rejected=_counts(rejected),
        seconds=round(time.monotonic() - started, 1),
    )


def _probe(config: PrepareConfig, gathered: Gathered, out: str, made_by: str) -> tuple[SortedRows, list[Rejected]]:
    """Probe the clips; return rows and rejected samples. Rows of unchanged files of a manifest in parts are reused."""
    source, num_clips = gathered.source, len(gathered.rows)
    log.info("%d clips are annotated, %s below %s", num_clips, source.layout, source.root)
    parts_path = storage.join(out, PARTS)
    earlier = appending.EarlierManifest.read(out, parts_path, made_by) if config.in_parts and not config.force else None
    if config.force:
        storage.remove_folder(storage.join(out, PROBED))
    rows, read_whole = SortedRows(), WholeFileReads()
    rejected = [*wrong_rows(gathered.wrong, config.corpus), *unnamed_files([], corpus=config.corpus, source=source)]
    from cluster.connection import connected_ray  # here, so that a dry run does not import Ray

    with connected_ray():
        for number, portion in enumerate(gathered.portions):
            plan, files_in = gathered.plan(*portion), gathered.files_of(*portion)
            versions = gathered.files.versions(*files_in)
            clips = clips_of(plan.clips, corpus=config.corpus, source=plan.source)
            kept = SCHEMA.empty_table()
            if earlier:
                kept = earlier.unchanged(portion, files_in, clips, versions, source.root)
                known = set(kept["clip_id"].to_pylist())
                clips = [clip for clip in clips if clip["clip_id"] not in known]
                log.info("%d clips are as they were, %d are looked at", len(known), len(clips))
            usable, unusable = probe_clips(
                clips,
                decoder=config.decoder,
                limits=config.limits,
                kept_in=storage.join(out, f"{PROBED}/{number:03d}"),
                versions={storage.join(source.root, name): f"{of} {made_by}" for name, of in versions.items()},
                packets_folder=storage.join(out, PACKETS),
                subcluster=config.subcluster,
                keeps_uncaptioned=config.keep_uncaptioned,
            )
            rows.add(table := pa.concat_tables([kept, usable]))
            read_whole.add(table)
            alone = dataclasses.replace(plan.source, damaged={}, skipped={})
            unnamed = unnamed_files(plan.clips, corpus=config.corpus, source=alone)
            rejected += [*with_nearest(unusable, plan), *plan.rejected(config.corpus), *unnamed]
            log.info("portion %d of %d is done", number + 1, len(gathered.portions), extra={"is_progress": True})
    read_whole.say()
    return rows, rejected


def _counts(rejected: list[Rejected]) -> dict[str, int]:
    return {str(reason): count for reason, count in ledger.count_by_reason(rejected).items()}


def _is_output(name: str, root: str, out: str) -> bool:
    """Return whether a file below `root` is output of this job; false if `out` is not below `root`."""
    if not (out + "/").startswith(root + "/"):
        return False
    below = (out + "/")[len(root) + 1 :]
    files = (FILE, "rejected.parquet", MARKER, lease.LEASE)
    folders = tuple(f"{below}{name}/" for name in (PACKETS, PARTS, PROBED, appending.LISTING))
    return name in {below + file for file in files} or name.startswith(folders)


def _fingerprint(config: PrepareConfig, root: str, sources: Sequence[str], files_hash: str) -> str:
    """Return a hash (hex digits) of everything that manifest and ledger depend on."""
    digest = hashlib.blake2b(digest_size=16)
    settings = {name: getattr(config, name) for name in _SETTINGS} | {"decoder": decoders.resolve(config.decoder)}
    digest.update(json.dumps([VERSION, settings, root, sources, files_hash, *config.lists], sort_keys=True).encode())
    for source in (*sources, *config.lists):
        _, path = annotations.split_and_path(source)
        if path == root:  # its files are in `files_hash`
            continue
        for file, _ in annotations.source_files(path):
            if storage.is_folder(file):
                for pair in storage.iter_versions(file):
                    digest.update(json.dumps(pair).encode())
            else:
                for data in byte_pieces(file):
                    digest.update(data)
    return digest.hexdigest()


def already_done(marker: str, inputs: str) -> PrepareResult | None:
    """Return the earlier result that `marker` records, if its `inputs` (hex digits) are equal and its files exist."""
    if not storage.exists(marker):
        return None
    before: dict[str, Any] = json.loads(storage.read_bytes(marker))
    prepared = PrepareResult(**before["prepared"])
    finished = storage.exists(prepared.manifest_path) and storage.exists(prepared.ledger_path)
    if not finished or before["inputs"] != inputs:
        return None
    log.info("nothing to do: %s was made from the same input; --force makes it again", prepared.manifest_path)
    return prepared


def mark_done(marker: str, inputs: str, prepared: PrepareResult) -> None:
    """Record `prepared` in `marker`, for `already_done`."""
    summary = json.dumps({"inputs": inputs, "prepared": dataclasses.asdict(prepared)}, indent=1, sort_keys=True)
    storage.write_bytes_atomic(marker, summary.encode())
