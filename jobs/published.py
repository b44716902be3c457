"""Scores that others have published, for the table of `jobs/table.py`: in per cent, R@1/5/10 or accuracy.

From Table I of the paper (SNP-S3, IEEE TCSVT 2023), which quotes the other rows but those marked. They are single runs
without intervals, on the benchmarks' test splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Row = tuple[str, tuple[float, ...]]
RETRIEVAL = ("R@1", "R@5", "R@10")

PUBLISHED: Mapping[str, tuple[tuple[str, ...], tuple[Row, ...]]] = MappingProxyType(
    {
        "MSR-VTT 7K, text to video": (
            RETRIEVAL,
            (
                ("ClipBERT", (22.0, 46.8, 59.9)),
                ("TACo", (24.5, 52.8, 65.5)),
                ("VLM", (28.1, 55.5, 67.4)),
                ("SNP-S3-PVT", (26.6, 55.5, 67.7)),
                ("SNP-S3-VST", (31.5, 61.3, 73.2)),
                ("ALPRO (its own paper)", (33.9, 60.7, 73.2)),
            ),
        ),
        "MSR-VTT 9K, text to video": (
            RETRIEVAL,
            (
                ("Frozen", (32.5, 61.5, 71.2)),
                ("VIOLET", (34.5, 63.0, 73.4)),
                ("SNP-S3-PVT", (28.9, 57.0, 69.4)),
                ("SNP-S3-VST", (33.6, 65.8, 75.1)),
                ("UMT-B/16, 5M (its own paper)", (46.3, 72.7, 82.0)),
            ),
        ),
        "DiDeMo, paragraph to video": (
            RETRIEVAL,
            (
                ("ClipBERT", (20.4, 48.0, 60.8)),
                ("Frozen", (31.0, 59.8, 72.4)),
                ("MCQ", (37.0, 62.2, 73.9)),
                ("SNP-S3-PVT", (26.6, 57.3, 69.1)),
                ("SNP-S3-VST", (34.2, 64.2, 75.9)),
            ),
        ),
        "MSVD, text to video": (
            RETRIEVAL,
            (
                ("SSML", (20.3, 49.0, 63.3)),
                ("Frozen", (33.7, 64.7, 76.3)),
                ("SNP-S3-PVT", (33.1, 64.5, 73.7)),
                ("SNP-S3-VST", (35.1, 70.3, 80.9)),
            ),
        ),
        "MSRVTT-QA": (
            ("accuracy",),
            (("ClipBERT", (37.4,)), ("ALPRO", (42.1,)), ("SNP-S3-PVT", (42.0,)), ("SNP-S3-VST", (43.1,))),
        ),
        "MSVD-QA": (
            ("accuracy",),
            (("JustAsk", (46.3,)), ("ALPRO", (45.9,)), ("SNP-S3-PVT", (46.2,)), ("SNP-S3-VST", (47.1,))),
        ),
        "MSRVTT-MC": (
            ("accuracy",),
            (("ClipBERT", (88.2,)), ("VIOLET", (91.9,)), ("SNP-S3-PVT", (92.3,)), ("SNP-S3-VST", (96.5,))),
        ),
    }
)
"""Benchmark → what is scored, and who scored it."""
