"""Decide whether two clips are duplicates, and which of them to remove. Pure.

    thumbnails of both ──best shift in time──► Alignment ──► Pair ──► connected groups, removals

Hashes only propose pairs (`candidates.py`); the thumbnails at the best shift in time decide. They must agree in the
whole picture, in every region of it, and in the change over time: clips with different objects on the same background
fail one of these. Pictures without contrast are never duplicates.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float32, Real, UInt8

from pipeline.dedup.fingerprints import FRAMES_PER_SECOND, LUMA_SIDE, PLANES, THUMBNAIL_BYTES

MIN_CONTRAST = 4.0
"""Standard deviation, in levels of 256, below which a picture has too little content to be recognised."""
NOISE = 1.5
"""Standard deviation, in levels of 256, of encoding noise in a thumbnail: less does not count as change over time."""


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """When two clips show the same."""

    min_picture: float = 0.93
    """Share of the contrast within frames that both clips must have in common, in (0, 1]."""
    min_region: float = 0.85
    """The same for the region of the picture where the clips differ most, in (0, 1]."""
    min_change: float = 0.5
    """Share of the change over time that both clips must have in common, in (0, 1]."""
    min_overlap: float = 0.6
    """Share of the shorter clip that must lie within the other one, in (0, 1]."""

    def __post_init__(self) -> None:
        for name in ("min_picture", "min_region", "min_change", "min_overlap"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"similarity.{name} must lie in (0, 1], got {getattr(self, name)}")


class PairKind(StrEnum):
    """Relation of two duplicates."""

    EXACT = "exact"
    """The same times of the same bytes, in one split."""
    NEAR = "near"
    """Another file or other times, in one split."""
    LEAK = "leak"
    """In different splits or corpora."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The properties of a clip that are reported."""

    clip_id: int
    uri: str
    corpus: str
    split: str
    num_pixels: int
    content: tuple[str, float | None, float | None]
    """Checksum of the file, start and end in seconds."""
    captions: frozenset[str]
    """Normalised by `normalised_caption`."""
    is_primary: bool
    """Whether it belongs to the corpus being checked; False: to another corpus that this one is compared with."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Similarity of two clips at the best shift in time."""

    picture: float
    """Share of the contrast within frames that both have in common; 1: equal, 0 or less: nothing."""
    region: float
    """The same for the sixteenth of the picture where they differ most, for example by an object that one lacks."""
    change: float
    """Share of the change over time that both have in common; also 1 if neither changes."""
    shift_seconds: float
    """Delay of the second clip relative to the first."""
    overlap_seconds: float

    @property
    def similarity(self) -> float:
        """Return the smallest of the three shares."""
        return min(self.picture, self.region, self.change)

    def is_copy(self, config: SimilarityConfig) -> bool:
        """Return whether the clips are duplicates."""
        return (
            self.picture >= config.min_picture and self.region >= config.min_region and self.change >= config.min_change
        )


SAME = Alignment(picture=1.0, region=1.0, change=1.0, shift_seconds=0.0, overlap_seconds=math.inf)
"""Alignment of clips with equal bytes and times, which need no comparison."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two duplicates, by their numbers in the search."""

    copy: int
    """The clip to remove: of a leak the training clip, otherwise that with fewer pixels, then with the higher id."""
    original: int
    kind: PairKind
    alignment: Alignment
    same_caption: bool


def normalised_caption(caption: str) -> str:
    """Return the words of a caption, in lower case and without punctuation."""
    return " ".join(re.findall(r"\w+", caption.casefold()))


def corpus_and_split(clip: Clip) -> tuple[bool, str, str]:
    """Return the corpus and split of a clip: duplicates with different places are a leak."""
    return clip.is_primary, clip.corpus, clip.split


def make_pair(clips: Mapping[int, Clip], first: int, second: int, alignment: Alignment, train_split: str) -> Pair:
    """Return a pair, with the clip to remove as the copy."""

    def rank(index: int) -> tuple[bool, bool, int, int]:
        clip = clips[index]
        return not (clip.is_primary and clip.split == train_split), not clip.is_primary, clip.num_pixels, -clip.clip_id

    if rank(first) > rank(second):
        first, second = second, first
        alignment = dataclasses.replace(alignment, shift_seconds=-alignment.shift_seconds)
    copy, original = clips[first], clips[second]
    is_exact = copy.content == original.content
    kind = (
        PairKind.LEAK
        if corpus_and_split(copy) != corpus_and_split(original)
        else PairKind.EXACT
        if is_exact
        else PairKind.NEAR
    )
    same_caption = not copy.captions.isdisjoint(original.captions)
    return Pair(copy=first, original=second, kind=kind, alignment=alignment, same_caption=same_caption)


def connected_components(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return number → lowest number of its connected component (union-find)."""
    lower: dict[int, int] = {}

    def lowest(number: int) -> int:
        while (below := lower.setdefault(number, number)) != number:
            lower[number] = number = lower[below]  # path halving
        return number

    for first, second in pairs:
        low, high = sorted((lowest(first), lowest(second)))
        lower[high] = low
    return {number: lowest(number) for number in list(lower)}


def removals(clips: Mapping[int, Clip], pairs: Sequence[Pair], train_split: str) -> dict[int, Pair]:
    """Return clip to remove → the pair that justifies it: training clips that leak, then all but the best duplicates.

    A near duplicate is removed only if its original stays. Leaks between evaluation splits stay.
    """
    best_first = sorted(pairs, key=lambda pair: -pair.alignment.similarity)
    leaked = [pair for pair in best_first if pair.kind == PairKind.LEAK and clips[pair.copy].split == train_split]
    removed = {pair.copy: pair for pair in reversed(leaked) if clips[pair.copy].is_primary}
    removed |= {pair.copy: pair for pair in pairs if pair.kind == PairKind.EXACT}
    near = [pair for pair in best_first if pair.kind == PairKind.NEAR]
    for pair in sorted(near, key=lambda pair: (-clips[pair.original].num_pixels, clips[pair.original].clip_id)):
        if pair.original not in removed:
            removed.setdefault(pair.copy, pair)
    return removed


def centred(thumbnails: Real[np.ndarray, "T 384"]) -> Float32[np.ndarray, "T 384"]:
    """Subtract the mean of each plane from each thumbnail."""
    values = thumbnails.astype(np.float32)
    for start, stop in itertools.pairwise([*PLANES, THUMBNAIL_BYTES]):
        values[:, start:stop] -= values[:, start:stop].mean(1, keepdims=True)
    return values


def contrast(thumbnails: Real[np.ndarray, "T 384"]) -> Float32[np.ndarray, " T"]:
    """Return the mean squared deviation of each thumbnail's values from the mean of their plane, in levels² of 256."""
    values = thumbnails.astype(np.float32)
    sizes = np.diff([*PLANES, THUMBNAIL_BYTES]).astype(np.float32)
    means = np.add.reduceat(values, PLANES, axis=1) / sizes
    return ((values**2).sum(1) - (means**2 * sizes).sum(1)) / np.float32(THUMBNAIL_BYTES)


def best_alignment(
    first: UInt8[np.ndarray, "S 384"], second: UInt8[np.ndarray, "T 384"], min_overlap: float
) -> Alignment | None:
    """Return the alignment at the best shift in time; None if the overlap then has too little contrast.

    Shifts are multiples of half the spacing of thumbnails; half steps use the mean of two thumbnails. At least
    `min_overlap` of the shorter clip overlaps.
    """
    min_frames = max(1, math.ceil(min_overlap * min(len(first), len(second))))
    first_values, second_values = first.astype(np.float32), second.astype(np.float32)
    best, best_share = None, math.inf
    for half, between in ((0.0, second_values), (0.5, (second_values[1:] + second_values[:-1]) / 2)):
        if len(between) < min_frames:
            continue
        energy = contrast(first_values)[:, None] + contrast(between)[None]
        distance = (
            (first_values**2).sum(1)[:, None] + (between**2).sum(1)[None] - 2 * first_values @ between.T
        ) / THUMBNAIL_BYTES
        shares = diagonal_sums(distance) / np.maximum(diagonal_sums(energy), 1e-9)
        possible = slice(min_frames - 1, len(shares) - min_frames + 1)
        place = min_frames - 1 + int(np.argmin(shares[possible]))
        if shares[place] < best_share:
            best, best_share = (half, place - len(first_values) + 1, between), shares[place]
    if best is None:
        return None
    half, shift, between = best
    start, stop = max(0, -shift), min(len(first_values), len(between) - shift)
    first_values, second_values = first_values[start:stop], between[start + shift : stop + shift]
    contrasts = contrast(first_values).mean(), contrast(second_values).mean()
    if min(contrasts) < MIN_CONTRAST**2:
        return None
    squared_difference = (
        ((first_values - second_values)[:, : PLANES[1]] ** 2)
        .mean(0)
        .reshape(4, LUMA_SIDE // 4, 4, LUMA_SIDE // 4)
        .mean((1, 3))
    )
    return Alignment(
        picture=float(1 - best_share),
        region=float(1 - squared_difference.max() / sum(contrasts)),
        change=common_change(first_values, second_values),
        shift_seconds=(shift + half) / FRAMES_PER_SECOND,
        overlap_seconds=len(first_values) / FRAMES_PER_SECOND,
    )


def diagonal_sums(matrix: Float32[np.ndarray, "S T"]) -> Float32[np.ndarray, " S_plus_T_minus_1"]:
    """Return the sum of each diagonal, from the lower left corner to the upper right one."""
    S, T = matrix.shape
    padded = np.zeros((S, S + T), matrix.dtype)
    padded[:, :T] = matrix[::-1]
    return (
        padded.ravel()[: S * (S + T - 1)].reshape(S, S + T - 1).sum(0)
    )  # each row is shifted by one more than the last


def common_change(first: Float32[np.ndarray, "T 384"], second: Float32[np.ndarray, "T 384"]) -> float:
    """Return the share of squared deviations from the mean over time that two clips have in common, without noise."""
    first_change, second_change = first - first.mean(0), second - second.mean(0)
    squared_difference = ((first_change - second_change) ** 2).sum() - 2 * NOISE**2 * first_change.size
    return float(1 - max(0.0, squared_difference) / max((first_change**2).sum() + (second_change**2).sum(), 1e-9))
