"""Raw videos and captions in; manifest and ledger of rejected samples out, as a Ray Data job."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from jobs.corpus import appending
from jobs.corpus.planning import Plan, describe_plan, make_plan, with_nearest
from jobs.launch import lease
from pipeline import storage
from pipeline.corpus import annotations, ledger, media
from pipeline.corpus.caption_formats import format_named
from pipeline.corpus.clip_rows import Annotation
from pipeline.corpus.columns import meanings
from pipeline.corpus.manifest import SCHEMA, make_manifest, read_manifest, write_in_parts, write_manifest
from pipeline.corpus.sources import Layout, open_source
from pipeline.decode import decoders
from pipeline.decode.config import Limits
from pipeline.decode.decoder_choice import measure_decoders
from pipeline.decode.decoders import DecoderName
from pipeline.offline.stages import clips_of, probe_clips, unnamed_files
from pipeline.records import Rejected

log = logging.getLogger(__name__)

_SETTINGS = ("corpus", "format", "columns", "layout", "split", "decoder", "max_rejected_share", "measure_decoders")
VERSION = 5
"""Raised when the same input would give another manifest."""
MARKER = "prepare.json"
PACKETS = "packets"
"""Folder beside the manifest for the indexes of long videos, one file each, named after the checksum of the video."""
PARTS = "manifest"
"""Folder of a manifest in parts."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What becomes a corpus, and where."""

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
    """How the videos are kept below the root; told by what is there, except for folders of key frames."""
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
    """What looking at one clip may take."""
    measure_decoders: bool = False
    """Time every decoder that loads here on clips of this corpus; training with data.decoder=auto takes the fastest."""
    in_parts: bool = False
    """Write the manifest as a folder of parts, of which a run reads the rows that it needs: for millions of clips. A
    corpus that has it in one file gets it without being looked at again, and another hash. When files are added, these
    alone are looked at, and their clips get parts of their own."""
    keep_uncaptioned: bool = False
    """Keep clips without captions, for jobs/caption.py and jobs/filter.py. A run refuses to train on them."""
    force: bool = False
    """Look at every file again, even if nothing changed."""
    dry_run: bool = False
    """Print what would be taken for what, with three clips, and stop before any video is opened."""

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
class Prepared:
    """What `prepare` made, or found made."""

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
    """Of their paths: whoever has the same list of clips has the same hash."""
    change: str = ""
    """What differs from the manifest in parts that was there before."""


def prepare(config: PrepareConfig) -> Prepared:
    """Manifest and ledger of a corpus; both are written at the end, whole.

    With unchanged input (settings, caption files, size and version of each file below the root) nothing is done.
    TooManyRejectedError, after the ledger is written, when more than the allowed share is rejected. ValueError while
    another job writes to the same folder.
    """
    root, out = storage.absolute(config.root), storage.absolute(config.out)
    storage.check_readable(root)
    storage.check_writable(out)
    with lease.held(out) as held:
        return _prepared(config, root, out, held)


def _prepared(config: PrepareConfig, root: str, out: str, held: lease.Lease) -> Prepared:
    started = time.monotonic()
    sources = config.annotations or (root,)
    files = _outside(storage.fingerprints(root), root, out)
    inputs = _fingerprint(config, root, sources, files)
    marker = storage.join(out, MARKER)
    if not config.force and (done := already_done(marker, inputs)):
        return upgraded(done, out, marker, inputs) if config.in_parts else done
    storage.remove(marker)  # until the new manifest is there, nothing is finished
    planned = _plan(config, root, sources, files)
    log.info("%s", describe_plan(planned))
    annotated = planned.clips
    lists = lists_of(annotated)
    list_hashes = {split: hash_of_list(paths) for split, paths in lists.items()}
    parts_path, made_by = storage.join(out, PARTS), f"{VERSION} {decoders.resolve(config.decoder)}"
    before = appending.version(parts_path)
    may_keep = config.in_parts and not config.force

    def unchanged(clips: list[dict[str, Any]]) -> pa.Table:
        return appending.unchanged_rows(out, parts_path, clips if may_keep else [], files, root, made_by)

    rows, rejected = _probed(config, planned, out, unchanged)
    held.check()
    done = commit(
        rows,
        rejected,
        corpus=config.corpus,
        root=root,
        out=out,
        num_samples=len(annotated) + len(planned.wrong),
        max_rejected_share=config.max_rejected_share,
        started=started,
        decoders=measure_decoders(rows, config.limits) if config.measure_decoders else {},
        in_parts=config.in_parts,
    )
    num_annotated = {split: len(paths) for split, paths in lists.items()}
    done = dataclasses.replace(done, num_annotated=num_annotated, list_hashes=list_hashes)
    if config.in_parts:
        appending.write_files(out, files, made_by)
        done = dataclasses.replace(done, change=appending.described(before, appending.version(parts_path)))
    mark_done(marker, inputs, done)
    return done


def upgraded(done: Prepared, out: str, marker: str, inputs: str) -> Prepared:
    """The same corpus with its manifest in parts, which are written from the one file if they are not there."""
    if not done.manifest_path.endswith(".parquet"):
        return done
    path = storage.join(out, PARTS)
    index = write_in_parts(read_manifest(done.manifest_path), path)
    log.info(
        "the manifest of %s is in parts now: %s, hash %s was %s", index.corpus, path, index.hash, done.manifest_hash
    )
    done = dataclasses.replace(done, manifest_path=path, manifest_hash=index.hash)
    mark_done(marker, inputs, done)
    return done


def plan(config: PrepareConfig) -> Plan:
    """Return what `prepare` would make of the same configuration; no video is opened."""
    root, out = storage.absolute(config.root), storage.absolute(config.out)
    storage.check_readable(root)
    return _plan(config, root, config.annotations or (root,), _outside(storage.fingerprints(root), root, out))


def _plan(config: PrepareConfig, root: str, sources: Sequence[str], files: Mapping[str, str]) -> Plan:
    columns = meanings(config.columns)
    reading = annotations.read(sources, split=config.split, format=config.format, lists=config.lists, columns=columns)
    return make_plan(reading, open_source(root, config.layout, list(files)))


def lists_of(annotated: Sequence[Annotation]) -> dict[str, list[str]]:
    """The clips of each split by their paths, with their times where they are parts of files; sorted."""
    lists: dict[str, list[str]] = defaultdict(list)
    for one in annotated:
        times = [time for time in (one.start_seconds, one.end_seconds) if time is not None]
        lists[one.split].append(" ".join([one.relative_path, *map(str, times)]))
    return {split: sorted(paths) for split, paths in sorted(lists.items())}


def hash_of_list(paths: Sequence[str]) -> str:
    """12 hex digits."""
    return hashlib.blake2b("\n".join(paths).encode(), digest_size=6).hexdigest()


def describe(done: Prepared) -> str:
    """The outcome in a few lines for people."""
    lists = {split: f" (list {digest})" for split, digest in done.list_hashes.items()}
    annotated = ", ".join(f"{split} {count}{lists.get(split, '')}" for split, count in done.num_annotated.items())
    clips = ", ".join(f"{split} {count}" for split, count in done.num_clips.items()) or "none"
    rejected = ", ".join(f"{reason} {count}" for reason, count in done.num_rejected.items()) or "none"
    return (
        (f"annotated {annotated}\n" if annotated else "")
        + (f"changed   {done.change}\n" if done.change else "")
        + f"clips     {clips}\nrejected  {rejected}\nmanifest  {done.manifest_path} ({done.manifest_hash})\n"
        f"ledger    {done.ledger_path}\nseconds   {done.seconds:.1f}"
    )


def commit(
    rows: pa.Table,
    rejected: list[Rejected],
    *,
    corpus: str,
    root: str,
    out: str,
    num_samples: int,
    max_rejected_share: float,
    started: float,
    decoders: Mapping[str, Mapping[str, float]],
    in_parts: bool = False,
) -> Prepared:
    """Ledger and manifest in `out`. Refused, after the ledger is written: too many rejected samples, no usable one."""
    manifest_path, ledger_path = storage.join(out, "manifest.parquet"), storage.join(out, "rejected.parquet")
    ledger.write_ledger(rejected, ledger_path)
    ledger.refuse_above_share(rejected, num_samples, max_rejected_share, ledger_path)
    made = make_manifest(corpus, root, rows)
    if not len(made):
        raise ValueError(f"no clip of {root} is usable: {_counts(rejected) or 'no file and no caption was found'}")
    made = dataclasses.replace(made, decoders=decoders)
    if decoders:
        log.info("%s is the fastest decoder here: %s", made.fastest_decoder, made.decoders)
    if in_parts:
        manifest_path, manifest_hash = storage.join(out, PARTS), write_in_parts(made, storage.join(out, PARTS)).hash
    else:
        write_manifest(made, manifest_path)
        manifest_hash = made.hash
    return Prepared(
        manifest_path=manifest_path,
        ledger_path=ledger_path,
        manifest_hash=manifest_hash,
        num_clips=made.splits,
        num_rejected=_counts(rejected),
        seconds=round(time.monotonic() - started, 1),
    )


def _probed(
    config: PrepareConfig, planned: Plan, out: str, unchanged: Callable[[list[dict[str, Any]]], pa.Table]
) -> tuple[pa.Table, list[Rejected]]:
    """Rows and rejected samples; files are looked at but for the clips whose rows `unchanged` returns."""
    source = planned.source
    clips = clips_of(planned.clips, corpus=config.corpus, source=source)
    log.info("%d clips are annotated, %d %s below %s", len(clips), len(source.places), source.layout, source.root)
    kept = unchanged(clips)
    known = set(kept["clip_id"].to_pylist())
    if known:
        log.info("%d clips are as they were, %d are looked at", len(known), len(clips) - len(known))
    from cluster.connection import connected_ray  # a dry run does not wait for Ray

    with connected_ray():
        rows, rejected = probe_clips(
            [clip for clip in clips if clip["clip_id"] not in known],
            decoder=config.decoder,
            limits=config.limits,
            subcluster=config.subcluster,
            packets_folder=storage.join(out, PACKETS),
            keeps_uncaptioned=config.keep_uncaptioned,
        )
    rows = pa.concat_tables([kept, rows.select(SCHEMA.names).cast(SCHEMA)])
    _say_read_whole(rows)
    unnamed = unnamed_files(planned.clips, corpus=config.corpus, source=source)
    return rows, [*with_nearest(rejected, planned), *planned.rejected(config.corpus), *unnamed]


def _say_read_whole(rows: pa.Table) -> None:
    """Log how many files are read whole for clips that are parts of them."""
    if tars := {media.file_of(uri) for uri in rows["uri"].to_pylist() if "#unpacked=" in uri}:
        log.warning("%d tars are compressed, and unpacked whole for each clip: train on what `pack` makes", len(tars))
    columns = (rows[name].to_pylist() for name in ("uri", "packets", "start_seconds", "end_seconds"))
    parts = [(uri, packets) for uri, packets, *times in zip(*columns, strict=True) if times != [None, None]]
    if whole := sorted({uri for uri, packets in parts if packets is None}):
        log.warning(
            "%d of %d files with several clips are read whole for each of them, since their packets do not lie in one "
            "piece each, or another decoder than pyav reads them; the first is %s",
            len(whole),
            len({uri for uri, _ in parts}),
            whole[0],
        )


def _counts(rejected: list[Rejected]) -> dict[str, int]:
    return {str(reason): count for reason, count in ledger.count_by_reason(rejected).items()}


def _outside(files: dict[str, str], root: str, out: str) -> dict[str, str]:
    """`files` without those that we write, should `out` lie below `root`."""
    if not (out + "/").startswith(root + "/"):
        return files
    names = ("manifest.parquet", "rejected.parquet", appending.FILES, MARKER, lease.LEASE)
    ours = {storage.relative_to(storage.join(out, name), root) for name in names}
    folders = tuple(storage.relative_to(storage.join(out, name), root) + "/" for name in (PACKETS, PARTS))
    return {name: print_ for name, print_ in files.items() if name not in ours and not name.startswith(folders)}


def _fingerprint(config: PrepareConfig, root: str, sources: tuple[str, ...], files: dict[str, str]) -> str:
    """Hex digits that change with whatever could change manifest or ledger."""
    digest = hashlib.blake2b(digest_size=16)
    settings = {name: getattr(config, name) for name in _SETTINGS} | {"decoder": decoders.resolve(config.decoder)}
    settings |= {"keep_uncaptioned": True} if config.keep_uncaptioned else {}  # corpora from before it stay as they are
    digest.update(json.dumps([VERSION, settings, root, sources, files, *config.lists], sort_keys=True).encode())
    for source in (*sources, *config.lists):
        _, path = annotations.split_and_path(source)
        if path == root:  # its files are in `files`
            continue
        for file, _ in annotations.source_files(path):
            if storage.is_folder(file):
                digest.update(json.dumps(storage.fingerprints(file)).encode())
            else:
                digest.update(storage.read_bytes(file))
    return digest.hexdigest()


def already_done(marker: str, inputs: str) -> Prepared | None:
    """What was made from the same `inputs` (hex digits) before, if it is still there; `marker` says so."""
    if not storage.exists(marker):
        return None
    before: dict[str, Any] = json.loads(storage.read_bytes(marker))
    done = Prepared(**before["prepared"])
    finished = storage.exists(done.manifest_path) and storage.exists(done.ledger_path)
    if not finished or before["inputs"] != inputs:
        return None
    log.info("nothing to do: %s was made from the same input; --force makes it again", done.manifest_path)
    return done


def mark_done(marker: str, inputs: str, done: Prepared) -> None:
    """`already_done` finds `done` from now on."""
    summary = json.dumps({"inputs": inputs, "prepared": dataclasses.asdict(done)}, indent=1, sort_keys=True)
    storage.write_bytes_atomic(marker, summary.encode())
