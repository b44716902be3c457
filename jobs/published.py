"""Scores that others have published, for the table of `jobs/table.py`: in per cent, R@1/5/10 or accuracy.

From Table I of the paper (SNP-S3, IEEE TCSVT 2023), which quotes the other rows but those marked. They are single runs
without intervals, on the benchmarks' test splits.
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


PUBLISHED: Mapping[str, Benchmark] = MappingProxyType(
    {
        "MSR-VTT 7K, text to video": Benchmark(
            rows=(
                ("ClipBERT", (22.0, 46.8, 59.9)),
                ("TACo", (24.5, 52.8, 65.5)),
                ("VLM", (28.1, 55.5, 67.4)),
                ("SNP-S3-PVT", (26.6, 55.5, 67.7)),
                ("SNP-S3-VST", (31.5, 61.3, 73.2)),
                ("ALPRO (its own paper)", (33.9, 60.7, 73.2)),
            ),
            sizes=(1000,),
        ),
        "MSR-VTT 9K, text to video": Benchmark(
            rows=(
                ("Frozen", (32.5, 61.5, 71.2)),
                ("VIOLET", (34.5, 63.0, 73.4)),
                ("SNP-S3-PVT", (28.9, 57.0, 69.4)),
                ("SNP-S3-VST", (33.6, 65.8, 75.1)),
                ("UMT-B/16, 5M (its own paper)", (46.3, 72.7, 82.0)),
            ),
            sizes=(1000,),
        ),
        "DiDeMo, paragraph to video": Benchmark(
            rows=(
                ("ClipBERT", (20.4, 48.0, 60.8)),
                ("Frozen", (31.0, 59.8, 72.4)),
                ("MCQ", (37.0, 62.2, 73.9)),
                ("SNP-S3-PVT", (26.6, 57.3, 69.1)),
                ("SNP-S3-VST", (34.2, 64.2, 75.9)),
            ),
            sizes=(1003, 1004),
        ),
        "MSVD, text to video": Benchmark(
            rows=(
                ("SSML", (20.3, 49.0, 63.3)),
                ("Frozen", (33.7, 64.7, 76.3)),
                ("SNP-S3-PVT", (33.1, 64.5, 73.7)),
                ("SNP-S3-VST", (35.1, 70.3, 80.9)),
            ),
            sizes=(670,),
        ),
        "LSMDC, text to video": Benchmark(
            rows=(
                ("Frozen (its own paper)", (15.0, 30.8, 39.8)),
                ("MCQ (its own paper)", (17.9, 35.4, 44.5)),
                ("UMT-B/16, 5M (its own paper)", (30.3, 51.8, 61.4)),
            ),
            sizes=(1000,),
        ),
        "ActivityNet, paragraph to video": Benchmark(
            rows=(
                ("ClipBERT (its own paper)", (21.3, 49.0, 63.5)),
                ("VindLU, 5M (its own paper)", (51.1, 79.2, 88.4)),
                ("UMT-B/16, 5M (its own paper)", (52.1, 80.5, 89.6)),
            ),
            sizes=(4917,),
        ),
        "VATEX, text to video": Benchmark(
            rows=(),
            sizes=(1500,),
        ),
        "MSRVTT-QA": Benchmark(
            columns=ACCURACY,
            rows=(("ClipBERT", (37.4,)), ("ALPRO", (42.1,)), ("SNP-S3-PVT", (42.0,)), ("SNP-S3-VST", (43.1,))),
            sizes=(72_821,),
        ),
        "MSVD-QA": Benchmark(
            columns=ACCURACY,
            rows=(("JustAsk", (46.3,)), ("ALPRO", (45.9,)), ("SNP-S3-PVT", (46.2,)), ("SNP-S3-VST", (47.1,))),
            sizes=(13_157,),
        ),
        "MSRVTT-MC": Benchmark(
            columns=ACCURACY,
            rows=(("ClipBERT", (88.2,)), ("VIOLET", (91.9,)), ("SNP-S3-PVT", (92.3,)), ("SNP-S3-VST", (96.5,))),
            sizes=(2990,),
        ),
    }
)
"""By name. VATEX: nobody of comparable data has a full row."""
