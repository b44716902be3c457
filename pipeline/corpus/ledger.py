"""Rejected samples as a Parquet file: where each was lost, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from pipeline import storage
from pipeline.records import Reason, Rejected

SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


class TooManyRejectedError(RuntimeError):
    """More samples were rejected than the run allows."""


def write_ledger(rejected: Iterable[Rejected], path: str) -> None:
    """`path` holds all of `rejected`, sorted by id, stage and reason; written also when there are none."""
    ordered = sorted(rejected, key=lambda one: (one.clip_id, one.stage, one.reason, one.detail))
    storage.write_table(path, pa.Table.from_pylist([sample.to_row() for sample in ordered], schema=SCHEMA))


def read_ledger(path: str) -> list[Rejected]:
    """The rejected samples in a ledger."""
    return [Rejected.from_row(row) for row in storage.read_table(path).to_pylist()]


def count_by_reason(rejected: Iterable[Rejected]) -> dict[Reason, int]:
    """Reason → number of samples, the most frequent first."""
    return dict(Counter(one.reason for one in rejected).most_common())


def refuse_above_share(rejected: Iterable[Rejected], num_samples: int, max_share: float, ledger_path: str) -> None:
    """Nothing, if at most `max_share` of `num_samples` is rejected; otherwise TooManyRejectedError with the counts.

    Files that no annotation names (`no_annotation`) are no samples: they stand in the ledger and do not count here.
    """
    counts = count_by_reason(one for one in rejected if one.reason != Reason.NO_ANNOTATION)
    lost = sum(counts.values())
    if num_samples and lost / num_samples > max_share:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        raise TooManyRejectedError(
            f"{lost} of {num_samples} samples were rejected ({reasons}), {lost / num_samples:.1%} is more than "
            f"{max_share:.1%}: see {ledger_path}; mend the corpus or raise max_rejected_share"
        )
