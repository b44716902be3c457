"""External sort of manifest rows by split, kind and clip_id, the order of a manifest's parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.buckets import Buckets, buckets_of_ids, portions
from pipeline.corpus.schema import SCHEMA, conform
from pipeline.records import Kind

ROWS_AT_ONCE = 2**16


class SortedRows:
    """Rows of `SCHEMA`, added in any order. If there are many, only a part of them is in memory at a time."""

    def __init__(self, tables: Iterable[pa.Table] = ()) -> None:
        self._buckets: dict[tuple[str, str], Buckets] = {}
        for table in tables:
            self.add(table)

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    @property
    def splits(self) -> dict[str, int]:
        """Return split → number of rows."""
        counts = Counter[str]()
        for (split, _), rows in self._buckets.items():
            counts[split] += len(rows)
        return dict(sorted(counts.items()))

    def add(self, table: pa.Table) -> None:
        """Add the rows of a table, converted to `SCHEMA`. ValueError if it does not conform."""
        table = conform(table, source="a table of the manifest")
        for row in table.select(["split", "kind"]).group_by(["split", "kind"]).aggregate([]).to_pylist():
            rows = table.filter((pc.field("split") == row["split"]) & (pc.field("kind") == row["kind"]))
            buckets = self._buckets.setdefault((row["split"], row["kind"]), Buckets(SCHEMA))
            buckets.add(buckets_of_ids(rows["clip_id"].to_numpy()), rows)

    def tables(self, kind: Kind | None = None) -> Iterator[pa.Table]:
        """Yield the rows of one kind (None: of all), in order of (split, kind, clip_id), in batches."""
        for (_, of_kind), buckets in sorted(self._buckets.items()):
            if kind in (None, of_kind):
                for start, stop in portions(buckets.counts, ROWS_AT_ONCE):
                    if len(rows := buckets.read(start, stop)):
                        yield rows.sort_by("clip_id")
