"""Find duplicates within a corpus and between it and test sets, as a Ray Data job.

Fingerprints are cached beside each manifest, so that a later pass decodes only new clips.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from cluster.connection import connected_ray
from jobs.corpus.preparation import PARTS, refuse_writing_over
from jobs.launch import lease
from pipeline import storage
from pipeline.corpus import ledger
from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import make_manifest, open_manifest, write_manifest
from pipeline.corpus.parts import write_parts
from pipeline.decode import decoders
from pipeline.decode.config import Limits
from pipeline.decode.decoders import DecoderName
from pipeline.dedup.duplicates import Clip, Pair, PairKind, SimilarityConfig, connected_components, make_pair, removals
from pipeline.dedup.fingerprints import cache_path, fingerprint_corpus
from pipeline.dedup.search import ClipTable, Search, clip_table, clips_at, find_copies
from pipeline.offline.stages import stream_blocks
from pipeline.records import Reason, Rejected, Stage

ENTRIES = "entries"
"""Folder through which the tasks of a search exchange data."""

PAIRS = pa.schema(
    [
        ("clip_id", pa.int64()),  # the clip to remove
        ("split", pa.string()),
        ("uri", pa.string()),
        ("other_clip_id", pa.int64()),
        ("other_corpus", pa.string()),
        ("other_split", pa.string()),
        ("other_uri", pa.string()),
        ("kind", pa.string()),  # exact | near | leak
        ("similarity", pa.float64()),  # the minimum of the next three
        ("picture", pa.float64()),
        ("region", pa.float64()),
        ("change", pa.float64()),
        ("shift_seconds", pa.float64()),  # the same content is this much later in the other clip
        ("overlap_seconds", pa.float64()),  # infinite: equal files
        ("same_caption", pa.bool_()),
        ("group", pa.int64()),  # connected component of the pairs: the id of one of its clips
    ]
)


@dataclass(frozen=True, kw_only=True)
class DeduplicateConfig:
    """Which corpus is searched, and against what."""

    manifest: str
    """Manifest of the corpus, as jobs/prepare.py wrote it: a file or a folder of parts, local or in a bucket."""
    out: str
    """Folder or bucket for the report, and for the filtered manifest with its ledger."""
    against: tuple[str, ...] = ()
    """Manifests of other corpora, say of test sets, none of whose clips may be trained on."""
    write_filtered: bool = False
    """Also write the manifest without duplicates and without training clips that leak."""
    train_split: str = "train"
    """Split that must not contain clips of another split."""
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    """When two clips count as duplicates."""
    decoder: DecoderName = decoders.AUTO
    """Decoder of the frames that are compared."""
    subcluster: str | None = None
    """Only nodes with this value of the label `ray-subcluster` read and decode, e.g. data; by default all do."""
    limits: Limits = field(default_factory=Limits)
    """Limits of decoding one clip."""

    def __post_init__(self) -> None:
        decoders.load(self.decoder)


@dataclass(frozen=True, kw_only=True)
class DeduplicateResult:
    """The result of `deduplicate`."""

    pairs_path: str
    num_clips: int
    num_pairs: dict[str, int]
    """Pairs per kind."""
    num_groups: int
    """Connected components of the pairs."""
    num_compared: int
    """Candidate pairs whose thumbnails were compared."""
    num_suspected: int
    """Pairs across splits or corpora that share a caption but turned out not to be copies."""
    num_unreadable: int
    """Clips without decodable frames, which could not be compared; those of the corpus are in the ledger."""
    num_removed: dict[str, int]
    """Clips that the filtered manifest omits, per reason."""
    manifest_path: str | None
    """The filtered manifest, if one was asked for."""
    seconds: float


def deduplicate(config: DeduplicateConfig) -> DeduplicateResult:
    """Write the duplicate pairs of a corpus to `out`; with `write_filtered`, also the manifest without duplicates.

    ValueError if a manifest of `against` is that of the corpus, if the filtered manifest would overwrite the original,
    or while another job writes to the same folder.
    """
    paths = [storage.absolute(path) for path in (config.manifest, *config.against)]
    out = storage.absolute(config.out)
    listings = [open_manifest(path) for path in paths]
    if same := [path for path, other in zip(paths[1:], listings[1:], strict=True) if other.hash == listings[0].hash]:
        raise ValueError(f"{same[0]} holds the same clips as {paths[0]}, all of them would leak: name another manifest")
    if config.write_filtered:
        refuse_writing_over(paths[0], out)
    storage.check_writable(out)
    with lease.held(out) as held:
        return _deduplicate(config, listings, paths, out, held)


def _deduplicate(
    config: DeduplicateConfig, listings: Sequence[Listing], paths: Sequence[str], out: str, held: lease.Lease
) -> DeduplicateResult:
    started = time.monotonic()
    folders = [cache_path(path) for path in paths]
    settings = {"decoder": config.decoder, "limits": config.limits, "subcluster": config.subcluster}
    with connected_ray():
        unreadable = [
            fingerprint_corpus(listing, folder, **settings) for listing, folder in zip(listings, folders, strict=True)
        ]
        search = _search(config, clip_table(listings, folders), storage.join(out, ENTRIES))
    clips = clips_at(listings, (number for pair in search.copies for number in pair))
    pairs = [make_pair(clips, *numbers, alignment, config.train_split) for numbers, alignment in search.copies.items()]
    groups = connected_components(search.copies)
    held.check()
    pairs_path = storage.join(out, "pairs.parquet")
    rows = [pair_row(clips, pair) | {"group": clips[groups[pair.copy]].clip_id} for pair in pairs]
    storage.write_table(pairs_path, pa.Table.from_pylist(rows, schema=PAIRS))
    removed = removals(clips, pairs, config.train_split)
    rejected = unreadable[0] + [rejected_copy(clips, pair) for pair in removed.values()]
    result = DeduplicateResult(
        pairs_path=pairs_path,
        num_clips=len(listings[0]),
        num_pairs=dict(Counter(str(pair.kind) for pair in pairs)),
        num_groups=len(set(groups.values())),
        num_compared=search.num_compared,
        num_suspected=search.num_suspected,
        num_unreadable=sum(map(len, unreadable)),
        num_removed={str(reason): count for reason, count in ledger.count_by_reason(rejected).items()},
        manifest_path=_write_filtered(listings[0], rejected, out) if config.write_filtered else None,
        seconds=round(time.monotonic() - started, 1),
    )
    summary = {"config": dataclasses.asdict(config), "found": dataclasses.asdict(result)}
    storage.write_bytes_atomic(storage.join(out, "deduplicate.json"), json.dumps(summary, indent=1).encode())
    return result


def _search(config: DeduplicateConfig, table: ClipTable, folder: str) -> Search:
    """Search all clips for copies. The tasks exchange files in `folder`, which is removed at the end."""
    storage.remove_folder(folder)  # left by a search that was killed
    try:
        return find_copies(table, config.similarity, folder, partial(stream_blocks, subcluster=config.subcluster))
    finally:
        storage.remove_folder(folder)


def pair_row(clips: Mapping[int, Clip], pair: Pair) -> dict[str, Any]:
    """Return the row of `PAIRS` of a pair, without its group."""
    copy, original = clips[pair.copy], clips[pair.original]
    return {
        **{name: getattr(copy, name) for name in ("clip_id", "split", "uri")},
        **{f"other_{name}": getattr(original, name) for name in ("clip_id", "corpus", "split", "uri")},
        **dataclasses.asdict(pair.alignment),
        "kind": str(pair.kind),
        "similarity": pair.alignment.similarity,
        "same_caption": pair.same_caption,
    }


def rejected_copy(clips: Mapping[int, Clip], pair: Pair) -> Rejected:
    """Return the copy as a rejected sample that names its original."""
    copy, original = clips[pair.copy], clips[pair.original]
    how = "equal bytes" if copy.content == original.content else f"similarity {pair.alignment.similarity:.3f}"
    return Rejected(
        clip_id=copy.clip_id,
        uri=copy.uri,
        stage=Stage.PREPARE,
        reason=Reason.LEAKED if pair.kind == PairKind.LEAK else Reason.DUPLICATE,
        detail=f"shows what clip {original.clip_id} of {original.corpus}/{original.split} shows, {how}: {original.uri}",
    )


def describe(result: DeduplicateResult) -> str:
    """Return a summary for the terminal."""
    pairs = ", ".join(f"{kind} {result.num_pairs.get(kind, 0)}" for kind in PairKind)
    removed = ", ".join(f"{reason} {count}" for reason, count in result.num_removed.items()) or "nothing"
    lines = [
        f"clips      {result.num_clips}, without frames {result.num_unreadable}",
        f"pairs      {pairs} in {result.num_groups} groups ({result.num_compared} compared): {result.pairs_path}",
        f"suspected  {result.num_suspected} pairs across splits have a caption in common and show something else",
        f"to remove  {removed}",
        f"manifest   {result.manifest_path or 'not written; --write-filtered writes one without these'}",
        f"seconds    {result.seconds:.1f}",
    ]
    return "\n".join(lines)


def _write_filtered(corpus: Listing, rejected: Sequence[Rejected], out: str) -> str:
    """Write the ledger and the manifest without the rejected clips, in parts if the corpus is; return its path."""
    ledger.write_ledger(rejected, storage.join(out, "rejected.parquet"))
    is_gone = pc.field("clip_id").isin([sample.clip_id for sample in rejected])
    remaining = (rows.filter(~is_gone) for rows in corpus.batches())
    if corpus.is_in_parts:
        write_parts(path := storage.join(out, PARTS), remaining, corpus=corpus.corpus, root=corpus.root)
    else:
        path = storage.join(out, "manifest.parquet")
        write_manifest(make_manifest(corpus.corpus, corpus.root, pa.concat_tables(remaining)), path)
    return path
