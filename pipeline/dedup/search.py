"""Search for duplicates among clips whose fingerprints are on disk, in tasks.

    listings ──► ClipTable: 60 bytes per clip ──equal bytes and times──► exact pairs, one clip of each content
    fingerprints ──`candidates.py`──► candidate pairs ──thumbnails of both──► duplicates

The searching process holds the table and the pairs, but no thumbnails.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64, UInt64

from pipeline.corpus.listing import Listing
from pipeline.dedup import candidates
from pipeline.dedup.candidates import Banding, mix_bits, neighbours, unique_pairs
from pipeline.dedup.duplicates import SAME, Alignment, Clip, SimilarityConfig, best_alignment, normalised_caption
from pipeline.dedup.fingerprints import hash_texts, print_keys, print_parts, read_thumbnails
from pipeline.records import Kind

MapBlocks = Callable[[Sequence[pa.Table], Callable[[pa.Table], pa.Table]], Iterable[pa.Table]]
"""Maps a function over tables and yields results in any order: `offline.stages.stream_blocks`, or a loop."""
PAIRS_AT_ONCE = 1024
"""Pairs per task, which reads the thumbnails of up to twice as many clips."""
COLUMNS = ("clip_id", "checksum", "start_seconds", "end_seconds", "group", "kind", "split", "captions")
COPIES = pa.schema([*candidates.PAIRS, *((field.name, pa.float64()) for field in fields(Alignment))])


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipTable:
    """Columns of `N` clips for a search, which refers to clips by their row: those of all listings in turn."""

    clip_ids: Int64[np.ndarray, " N"]
    contents: UInt64[np.ndarray, " N"]
    """Equal for equal bytes and times."""
    groups: UInt64[np.ndarray, " N"]
    """Equal for clips of one group of a test; 0: no group."""
    places: Int64[np.ndarray, " N"]
    """A number per listing and split."""
    is_primary: Bool[np.ndarray, " N"]
    """Whether it belongs to the corpus being checked; False: to another corpus that this one is compared with."""
    is_image: Bool[np.ndarray, " N"]
    part: Int64[np.ndarray, " N"]
    """Index into `paths` of the file with the clip's thumbnails [start, stop); −1: it has none."""
    start: Int64[np.ndarray, " N"]
    stop: Int64[np.ndarray, " N"]
    paths: tuple[str, ...]
    captions: UInt64[np.ndarray, " M"]
    """Hashes of all clips' normalised captions, empty if there is only one place."""
    captioned: Int64[np.ndarray, " M"]
    """Clip of each caption."""

    def is_leak(self, first: Int64[np.ndarray, " P"], second: Int64[np.ndarray, " P"]) -> Bool[np.ndarray, " P"]:
        """Return whether duplicates would be a leak: they are in different splits or corpora, one of them our own."""
        return (self.is_primary[first] | self.is_primary[second]) & (self.places[first] != self.places[second])

    def is_compared(self, first: Int64[np.ndarray, " P"], second: Int64[np.ndarray, " P"]) -> Bool[np.ndarray, " P"]:
        """Return whether a pair of clips with different content has to be compared.

        Not compared are clips of other corpora with each other, and within a split videos with images, and clips of one
        group, which a test makes similar on purpose.
        """
        is_grouped = (self.groups[first] != 0) & (self.groups[first] == self.groups[second])
        is_alike = self.is_primary[first] & self.is_primary[second] & (self.is_image[first] == self.is_image[second])
        differs = self.contents[first] != self.contents[second]
        return differs & (self.is_leak(first, second) | (is_alike & ~is_grouped))


@dataclass(frozen=True, kw_only=True)
class Search:
    """The result of a search."""

    copies: Mapping[tuple[int, int], Alignment]
    """Numbers of two duplicates → their alignment."""
    num_compared: int
    """Number of candidates whose thumbnails were compared."""
    num_suspected: int
    """Number of pairs across splits or corpora that share a caption but are not duplicates."""


def clip_table(listings: Sequence[Listing], folders: Sequence[str]) -> ClipTable:
    """Return the table of the clips of `listings`, the first of which is the corpus being checked; `folders` hold their
    fingerprints."""
    columns: dict[str, list[np.ndarray]] = {}
    paths: list[str] = []
    first_place = first_clip = 0
    has_places = len(listings) > 1 or len(listings[0].splits) > 1
    for listing, folder in zip(listings, folders, strict=True):
        places = {split: first_place + number for number, split in enumerate(listing.splits)}
        parts = [_columns(rows.select(COLUMNS), places, has_places) for rows in listing.batches()]
        of_listing = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        num_clips = len(of_listing["clip_ids"])
        of_listing["captioned"] = first_clip + np.repeat(np.arange(num_clips), of_listing.pop("num_captions"))
        of_listing["is_primary"] = np.full(num_clips, listing is listings[0])
        of_listing |= _located(of_listing.pop("print_keys"), folder, paths)
        for name, values in of_listing.items():
            columns.setdefault(name, []).append(values)
        first_place, first_clip = first_place + len(places), first_clip + num_clips
    return ClipTable(paths=tuple(paths), **{name: np.concatenate(values) for name, values in columns.items()})


def _columns(rows: pa.Table, places: Mapping[str, int], has_captions: bool) -> dict[str, np.ndarray]:
    """Return the columns of a `ClipTable` that rows of a manifest determine."""
    names = ("checksum", "start_seconds", "end_seconds")
    contents = zip(*(rows[name].to_pylist() for name in names), strict=True)
    captions = [list(map(normalised_caption, texts)) if has_captions else [] for texts in rows["captions"].to_pylist()]
    groups = rows["group"].to_pylist()
    has_group = np.array([group is not None for group in groups], bool)
    return {
        "clip_ids": rows["clip_id"].to_numpy(),
        "contents": hash_texts(map(str, contents)),
        "groups": np.where(has_group, hash_texts(map(str, groups)), np.uint64(0)),
        "places": np.array([places[split] for split in rows["split"].to_pylist()], np.int64),
        "is_image": np.array(rows["kind"].to_pylist()) == Kind.IMAGE.value,
        "print_keys": print_keys(rows),
        "captions": hash_texts(itertools.chain.from_iterable(captions)),
        "num_captions": np.array(list(map(len, captions)), np.int64),
    }


def _located(keys: UInt64[np.ndarray, " N"], folder: str, paths: list[str]) -> dict[str, np.ndarray]:
    """Locate the thumbnails of each clip in `folder`, whose files are appended to `paths`."""
    columns = {name: np.full(len(keys), -1) for name in ("part", "start", "stop")}
    order = np.argsort(keys)
    for path, places in print_parts(folder):
        these = print_keys(places)
        ranks = np.minimum(np.searchsorted(keys, these, sorter=order), len(keys) - 1)
        is_here = keys[order[ranks]] == these
        numbers = order[ranks[is_here]]
        columns["part"][numbers] = len(paths)
        for name in ("start", "stop"):
            columns[name][numbers] = places[name].to_numpy()[is_here]
        paths.append(path)
    return columns


def find_copies(table: ClipTable, config: SimilarityConfig, folder: str, map_blocks: MapBlocks) -> Search:
    """Find all pairs of duplicates; tasks write to `folder`.

    Of clips with equal bytes and times, one per split is compared with the others.
    """
    copies, chosen = exact_pairs(table)
    suspected = equal_captions(table, chosen)
    alike = [suspected]
    for pairs in filter(len, candidate_pairs(table, chosen, config.min_picture, folder, map_blocks)):
        first, second = (pairs[name].to_numpy() for name in candidates.PAIRS.names)
        is_compared = table.is_compared(first, second)
        alike.append(np.stack([first[is_compared], second[is_compared]], axis=1))
        if sum(map(len, alike[1:])) > len(alike[0]):
            alike = [unique_pairs(np.concatenate(alike))]
    compared = unique_pairs(np.concatenate(alike))
    for rows in map_blocks(_pair_blocks(table, compared), functools.partial(compare, paths=table.paths, config=config)):
        for row in rows.to_pylist():
            numbers = row.pop("first"), row.pop("second")
            copies[numbers] = Alignment(**row)
    num_suspected = sum(pair not in copies for pair in map(tuple, suspected.tolist()))
    return Search(copies=dict(sorted(copies.items())), num_compared=len(compared), num_suspected=num_suspected)


def exact_pairs(table: ClipTable) -> tuple[dict[tuple[int, int], Alignment], Int64[np.ndarray, " C"]]:
    """Return the pairs of clips with equal bytes and times, and the clips to compare further: the first by clip_id of
    each content in each place."""
    located = np.flatnonzero(table.part >= 0)
    order = located[np.lexsort((table.clip_ids[located], table.places[located], table.contents[located]))]
    contents, places = table.contents[order], table.places[order]
    is_new_content = np.concatenate([[True], np.diff(contents) != 0])[: len(order)]
    is_first = is_new_content | np.concatenate([[True], np.diff(places) != 0])[: len(order)]
    first_of = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    again = np.flatnonzero(~is_first & table.is_primary[order])
    pairs = dict.fromkeys(zip(first_of[again].tolist(), order[again].tolist(), strict=True), SAME)
    chosen, content = order[is_first], np.cumsum(is_new_content)[is_first]
    several = np.flatnonzero(np.isin(content, content[1:][np.diff(content) == 0]))
    for _, same in itertools.groupby(several.tolist(), key=lambda place: content[place]):
        for first, second in itertools.combinations(sorted(chosen[list(same)].tolist()), 2):
            if table.is_leak(np.array([first]), np.array([second])).any():
                pairs[first, second] = SAME
    return pairs, np.sort(chosen)


def equal_captions(table: ClipTable, chosen: Int64[np.ndarray, " C"]) -> Int64[np.ndarray, "P 2"]:
    """Return the pairs (first < second) of chosen clips of different places and content that share a caption. If many
    share one, each is paired with some others."""
    is_chosen = np.isin(table.captioned, chosen)
    captions, clips = table.captions[is_chosen], table.captioned[is_chosen]
    pairs = [np.zeros((0, 2), np.int64)]
    for left, right in neighbours(captions, mix_bits(clips.astype(np.uint64))):
        first, second = np.minimum(clips[left], clips[right]), np.maximum(clips[left], clips[right])
        is_suspect = table.is_leak(first, second) & (table.contents[first] != table.contents[second])
        pairs.append(np.stack([first[is_suspect], second[is_suspect]], axis=1))
    return unique_pairs(np.concatenate(pairs))


def candidate_pairs(
    table: ClipTable, chosen: Int64[np.ndarray, " C"], min_picture: float, folder: str, map_blocks: MapBlocks
) -> Iterator[pa.Table]:
    """Yield the candidates among the chosen clips (`candidates.PAIRS`), bucket by bucket."""
    banding = Banding.of(int((table.stop[chosen] - table.start[chosen]).sum()), min_picture)
    by_part = chosen[np.lexsort((table.start[chosen], table.part[chosen]))]
    bounds = np.searchsorted(table.part[by_part], np.arange(len(table.paths) + 1))
    blocks = []
    for number, clips in enumerate(np.split(by_part, bounds[1:-1])):
        if len(clips):
            places = {"starts": table.start[clips], "stops": table.stop[clips]}
            part = {"number": number, "path": table.paths[number], "clips": clips, **places}
            blocks.append(pa.Table.from_pylist([part]))
    scatter = functools.partial(candidates.scatter_entries, banding=banding, folder=folder)
    buckets: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for rows in map_blocks(blocks, scatter):
        for row in rows.to_pylist():
            buckets.setdefault((row["band"], row["bucket"]), []).append(row)
    blocks = [pa.Table.from_pylist(rows, schema=candidates.BUCKETS) for rows in buckets.values()]
    yield from map_blocks(blocks, functools.partial(candidates.pairs_in_bucket, banding=banding))


def _pair_blocks(table: ClipTable, pairs: Int64[np.ndarray, "P 2"]) -> list[pa.Table]:
    """Return blocks of pairs with the locations of their thumbnails, sorted by part."""
    pairs = pairs[np.argsort(table.part[pairs[:, 0]], kind="stable")]
    blocks = []
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        columns = {}
        for end, numbers in zip(("first", "second"), pairs[start : start + PAIRS_AT_ONCE].T, strict=True):
            columns |= {end: numbers} | {
                f"{end}_{name}": getattr(table, name)[numbers] for name in ("part", "start", "stop")
            }
        blocks.append(pa.table(columns))
    return blocks


def compare(block: pa.Table, paths: Sequence[str], config: SimilarityConfig) -> pa.Table:
    """Return the pairs of a block that are duplicates (`COPIES`)."""
    ends = {
        end: np.stack([block[f"{end}{name}"].to_numpy() for name in ("", "_part", "_start", "_stop")], axis=1)
        for end in ("first", "second")
    }
    shown: dict[int, np.ndarray] = {}
    clips = np.unique(np.concatenate(list(ends.values())), axis=0)
    for part in np.unique(clips[:, 1]).tolist():
        numbers, _, starts, stops = clips[clips[:, 1] == part].T
        shown |= dict(zip(numbers.tolist(), read_thumbnails(paths[int(part)], starts, stops), strict=True))
    rows = []
    for first, second in zip(*(block[end].to_pylist() for end in ends), strict=True):
        alignment = best_alignment(shown[first], shown[second], config.min_overlap)
        if alignment and alignment.is_copy(config):
            rows.append({"first": first, "second": second, **vars(alignment)})
    return pa.Table.from_pylist(rows, schema=COPIES)


def clips_at(listings: Sequence[Listing], numbers: Iterable[int]) -> dict[int, Clip]:
    """Return number in the table → `Clip`, for the clips of `listings` with these numbers."""
    sought, first = np.unique(np.fromiter(numbers, np.int64)), 0
    clips: dict[int, Clip] = {}
    for listing in listings:
        for rows in listing.batches():
            here = sought[np.searchsorted(sought, first) : np.searchsorted(sought, first + len(rows))]
            for number, row in zip(here.tolist(), rows.take(pa.array(here - first)).to_pylist(), strict=True):
                clips[number] = _clip(row, listing.corpus, is_primary=listing is listings[0])
            first += len(rows)
    return clips


def _clip(row: Mapping[str, Any], corpus: str, *, is_primary: bool) -> Clip:
    return Clip(
        corpus=corpus,
        num_pixels=row["width"] * row["height"],
        content=(row["checksum"], row["start_seconds"], row["end_seconds"]),
        captions=frozenset(map(normalised_caption, row["captions"])),
        is_primary=is_primary,
        **{name: row[name] for name in ("clip_id", "uri", "split")},
    )
