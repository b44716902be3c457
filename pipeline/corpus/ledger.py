"""Rejected samples as a Parquet file: where each was lost, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from pipeline import storage
from pipeline.records import Reason, Rejected, Stage
from pipeline.redaction import without_secrets

SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


def with_reason(schema: pa.Schema) -> pa.Schema:
    """Return `schema`, all columns nullable, with reason and detail; the reason is null for usable clips."""
    columns = [field.with_nullable(True) for field in schema]
    return pa.schema([*columns, pa.field("reason", pa.string()), pa.field("detail", pa.string())])


def split_by_reason(table: pa.Table, stage: Stage) -> tuple[pa.Table, list[Rejected]]:
    """Return the rows without a reason, and the others as samples that `stage` rejected."""
    lost = table.filter(table["reason"].is_valid()).select(["clip_id", "uri", "reason", "detail"]).to_pylist()
    return table.filter(table["reason"].is_null()), [Rejected.from_row(row, stage) for row in lost]


class TooManyRejectedError(RuntimeError):
    """Raised when more samples were rejected than the run allows."""


def write_ledger(rejected: Iterable[Rejected], path: str) -> None:
    """Write `rejected` to `path`, without secrets, sorted by id, stage and reason; an empty ledger is written, too."""
    ordered = sorted(rejected, key=lambda sample: (sample.clip_id, sample.stage, sample.reason, sample.detail))
    rows = [
        sample.to_row() | {"uri": without_secrets(sample.uri), "detail": without_secrets(sample.detail)}
        for sample in ordered
    ]
    storage.write_table(path, pa.Table.from_pylist(rows, schema=SCHEMA))


def read_ledger(path: str) -> list[Rejected]:
    """Return the rejected samples in a ledger."""
    return [Rejected.from_row(row) for row in storage.read_table(path).to_pylist()]


def count_by_reason(rejected: Iterable[Rejected]) -> dict[Reason, int]:
    """Return reason → number of samples, the most frequent first."""
    return dict(Counter(sample.reason for sample in rejected).most_common())


def refuse_above_share(rejected: Iterable[Rejected], num_samples: int, max_share: float, ledger_path: str) -> None:
    """Raise TooManyRejectedError, with the counts, if more than `max_share` of `num_samples` is rejected.

    Files that no annotation names (`no_annotation`) are not samples: the ledger lists them, but they do not count here.
    """
    counts = count_by_reason(sample for sample in rejected if sample.reason != Reason.NO_ANNOTATION)
    lost = sum(counts.values())
    if num_samples and lost / num_samples > max_share:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        raise TooManyRejectedError(
            f"{lost} of {num_samples} samples were rejected ({reasons}), {lost / num_samples:.1%} is more than "
            f"{max_share:.1%}: see {ledger_path}; mend the corpus or raise max_rejected_share"
        )
