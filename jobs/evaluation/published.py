"""Scores that others have published, for the table of `jobs/table.py`: in per cent, R@1/5/10 or accuracy.

From Table I of the paper (SNP-S3, IEEE TCSVT 2023), and from others' own papers where marked, of about five million
pairs of pre-training. They are fine-tuned unless they say zero-shot, single runs without intervals, on the benchmarks'
test splits; rows of which only one figure was found are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Row = tuple[str, tuple[float, ...]]
RETRIEVAL, ACCURACY = ("R@1", "R@5", "R@10"), ("accuracy",)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A test set that others have scored."""

    columns: tuple[str, ...] = RETRIEVAL
    rows: tuple[Row, ...]
    sizes: tuple[int, ...]
    """Test videos of retrieval, questions of the others; several where versions of the set are about. None: unknown."""

    def doubt(self, num_videos: int, num_queries: int) -> str:
        """What is odd about a score over so many, in a few words; nothing for the whole set."""
        count, unit = (num_videos, "videos") if self.columns == RETRIEVAL else (num_queries, "questions")
        if count in self.sizes or not self.sizes:
            return ""
        return f"{count} of {' or '.join(f'{size:,}' for size in self.sizes)} {unit}: another test set than theirs"


ZERO_SHOT: tuple[Row, ...] = (
    ("Frozen, zero-shot", (18.7, 39.5, 51.6)),
    ("MCQ, zero-shot", (26.0, 46.4, 56.4)),
    ("MILES, zero-shot", (26.1, 47.2, 56.9)),
    ("UMT-B/16, zero-shot", (29.6, 52.8, 61.9)),
)
"""On MSR-VTT, whose two training splits are nothing to a model that was not trained on either."""

PUBLISHED: Mapping[str, Benchmark] = MappingProxyType(
    {
        "MSR-VTT 7K, text to video": Benchmark(
            rows=(
                ("CE", (9.9, 29.0, 41.2)),
                ("HERO", (16.8, 43.4, 57.7)),
                ("CoCoBERT", (22.0, 48.3, 61.6)),
                ("ClipBERT", (22.0, 46.8, 59.9)),
                ("TACo", (24.5, 52.8, 65.5)),
                ("VLM", (28.1, 55.5, 67.4)),
                ("SNP-S3-PVT", (26.6, 55.5, 67.7)),
                ("SNP-S3-VST", (31.5, 61.3, 73.2)),
                ("ALPRO (its own paper)", (33.9, 60.7, 73.2)),
                ("Singularity, 1 frame (its own paper)", (36.8, 65.9, 75.5)),
                ("VindLU (its own paper)", (43.8, 70.3, 79.5)),
                *ZERO_SHOT,
            ),
            sizes=(1000,),
        ),
        "MSR-VTT 9K, text to video": Benchmark(
            rows=(
                ("VIOLET without its large video set", (23.5, 50.5, 63.9)),
                ("MMT", (24.6, 54.0, 67.1)),
                ("Frozen without its large video set", (25.5, 54.5, 66.1)),
                ("TACo", (28.4, 57.8, 71.2)),
                ("Frozen", (32.5, 61.5, 71.2)),
                ("VIOLET", (34.5, 63.0, 73.4)),
                ("SNP-S3-PVT", (28.9, 57.0, 69.4)),
                ("SNP-S3-VST", (33.6, 65.8, 75.1)),
                ("Frozen (its own paper)", (31.0, 59.5, 70.5)),
                ("MCQ (its own paper)", (37.6, 64.8, 75.1)),
                ("MILES (its own paper)", (37.7, 63.6, 73.8)),
                ("UMT-B/16 (its own paper)", (46.3, 72.7, 82.0)),
                *ZERO_SHOT,
            ),
            sizes=(1000,),
        ),
        "DiDeMo, paragraph to video": Benchmark(
            rows=(
                ("CE", (16.1, 41.1, 54.4)),
                ("ClipBERT", (20.4, 48.0, 60.8)),
                ("VIOLET without its large video set", (22.8, 51.2, 62.0)),
                ("Frozen", (31.0, 59.8, 72.4)),
                ("VIOLET", (32.6, 62.8, 74.7)),
                ("MCQ", (37.0, 62.2, 73.9)),
                ("SNP-S3-PVT", (26.6, 57.3, 69.1)),
                ("SNP-S3-VST", (34.2, 64.2, 75.9)),
                ("ALPRO (its own paper)", (35.9, 67.5, 78.8)),
                ("MILES (its own paper)", (36.6, 63.9, 74.0)),
                ("Singularity, 1 frame (its own paper)", (47.4, 75.2, 84.0)),
                ("VindLU (its own paper)", (54.6, 81.3, 89.0)),
                ("UMT-B/16 (its own paper)", (54.8, 83.0, 89.0)),
                ("Frozen, zero-shot", (21.1, 46.0, 56.2)),
                ("MCQ, zero-shot", (25.6, 50.6, 61.1)),
                ("MILES, zero-shot", (27.2, 50.3, 63.6)),
                ("UMT-B/16, zero-shot", (33.4, 58.3, 67.0)),
            ),
            sizes=(1003, 1004),
        ),
        "MSVD, text to video": Benchmark(
            rows=(
                ("HERO", (19.2, 47.4, 61.8)),
                ("CE", (19.8, 49.0, 63.8)),
                ("SSML", (20.3, 49.0, 63.3)),
                ("CoCoBERT", (21.3, 50.0, 63.6)),
                ("Frozen", (33.7, 64.7, 76.3)),
                ("SNP-S3-PVT", (33.1, 64.5, 73.7)),
                ("SNP-S3-VST", (35.1, 70.3, 80.9)),
                ("Frozen (its own paper)", (45.6, 79.8, 88.2)),
                ("UMT-B/16 (its own paper)", (47.4, 76.8, 84.0)),
                ("MCQ (its own paper)", (52.0, 82.8, 90.0)),
                ("MILES (its own paper)", (53.9, 83.5, 90.2)),
                ("UMT-B/16, zero-shot", (36.2, 65.7, 76.1)),
                ("Frozen, zero-shot", (38.7, 70.1, 80.1)),
                ("MCQ, zero-shot", (43.6, 74.9, 84.9)),
                ("MILES, zero-shot", (44.4, 76.2, 87.0)),
            ),
            sizes=(670,),
        ),
        "LSMDC, text to video": Benchmark(
            rows=(
                ("Frozen (its own paper)", (15.0, 30.8, 39.8)),
                ("MILES (its own paper)", (17.8, 35.6, 44.1)),
                ("MCQ (its own paper)", (17.9, 35.4, 44.5)),
                ("UMT-B/16 (its own paper)", (30.3, 51.8, 61.4)),
                ("Frozen, zero-shot", (9.3, 22.0, 30.1)),
                ("MILES, zero-shot", (11.1, 24.7, 30.6)),
                ("MCQ, zero-shot", (12.2, 25.9, 32.2)),
                ("UMT-B/16, zero-shot", (16.8, 30.5, 37.6)),
            ),
            sizes=(1000,),
        ),
        "ActivityNet, paragraph to video": Benchmark(
            rows=(
                ("ClipBERT (its own paper)", (21.3, 49.0, 63.5)),
                ("Singularity, 1 frame (its own paper)", (43.0, 70.6, 81.3)),
                ("VindLU (its own paper)", (51.1, 79.2, 88.4)),
                ("UMT-B/16 (its own paper)", (52.1, 80.5, 89.6)),
                ("UMT-B/16, zero-shot", (28.3, 53.0, 64.2)),
            ),
            sizes=(4917,),
        ),
        "VATEX, text to video": Benchmark(
            rows=(),
            sizes=(1500,),
        ),
        "MSRVTT-QA": Benchmark(
            columns=ACCURACY,
            rows=(
                ("SSML", (35.1,)),
                ("HCRN", (35.6,)),
                ("ClipBERT", (37.4,)),
                ("JustAsk", (41.5,)),
                ("ALPRO", (42.1,)),
                ("SNP-S3-PVT", (42.0,)),
                ("SNP-S3-VST", (43.1,)),
                ("Singularity, 1 frame (its own paper)", (42.7,)),
                ("VindLU (its own paper)", (43.6,)),
                ("UMT-B/16 (its own paper)", (44.3,)),
            ),
            sizes=(72_821,),
        ),
        "MSVD-QA": Benchmark(
            columns=ACCURACY,
            rows=(
                ("SSML", (35.1,)),
                ("DualVGR", (39.0,)),
                ("CoMVT", (42.6,)),
                ("ALPRO", (45.9,)),
                ("JustAsk", (46.3,)),
                ("SNP-S3-PVT", (46.2,)),
                ("SNP-S3-VST", (47.1,)),
                ("UMT-B/16 (its own paper)", (49.1,)),
            ),
            sizes=(13_157,),
        ),
        "MSRVTT-MC": Benchmark(
            columns=ACCURACY,
            rows=(
                ("JSFusion", (83.4,)),
                ("ClipBERT", (88.2,)),
                ("MERLOT", (90.9,)),
                ("VLM", (91.6,)),
                ("VIOLET", (91.9,)),
                ("SNP-S3-PVT", (92.3,)),
                ("SNP-S3-VST", (96.5,)),
                ("Singularity, 1 frame (its own paper)", (92.0,)),
                ("VindLU (its own paper)", (95.2,)),
                ("UMT-B/16 (its own paper)", (95.9,)),
            ),
            sizes=(2990,),
        ),
    }
)
"""By name. VATEX: nobody of comparable data has a full row."""
