"""Cost of a plan, from a table of prices that the user gives: list prices change, and spot prices change hourly.

`python -m cluster.plan --help` shows an example of the table.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.machines import MACHINES, Machine

COLUMNS = ("machine", "dollars_per_hour", "spot_dollars_per_hour", "cpus", "gpus")
BUCKET_GB_MONTH, BUCKET_1000_READS = "bucket-gb-month", "bucket-1000-reads"
"""Rows of a price table that are not machines: storage, and reads."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """Price of one machine in dollars per hour."""

    on_demand: float
    spot: float | None = None


def read_prices(path: str) -> dict[str, Price]:
    """Return the prices in a CSV file with a heading row, or in a JSON list of objects, by machine type.

    Raise ValueError for wrong columns, a price that is no number, or CPUs or GPUs that differ from the machine's: such
    a row prices something else.
    """
    text = Path(path).read_text()
    try:
        rows = json.loads(text) if path.endswith(".json") else list(csv.DictReader(io.StringIO(text)))
        return {row["machine"].strip(): _price(row) for row in rows}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: {error!s}; a price table has the columns {', '.join(COLUMNS)}, of which the last three may "
            "be left out or empty"
        ) from error


def _price(row: Mapping[str, Any]) -> Price:
    machine = MACHINES.get(row["machine"].strip())
    for column, count in (("cpus", machine.vcpus), ("gpus", machine.num_gpus)) if machine else ():
        if row.get(column) not in (None, "") and int(row[column]) != count:
            raise ValueError(f"a {row['machine']} has {count} {column}, the table says {row[column]}")
    spot = row.get("spot_dollars_per_hour")
    price = Price(on_demand=float(row["dollars_per_hour"]), spot=None if spot in (None, "") else float(spot))
    if not 0 <= price.on_demand < float("inf") or not 0 <= (price.spot or 0) < float("inf"):
        raise ValueError(f"the price of {row['machine']} must be a number of at least 0")
    return price


def dollars(
    prices: Mapping[str, Price],
    machines: Iterable[tuple[Machine, int, bool]],
    *,
    hours: float,
    num_reads: int,
    bucket_gb: float,
) -> dict[str, float | None]:
    """Return the cost of a plan, by field of `cluster.plan.Plan`; None without prices, or for a missing row.

    `machines`: machine types, how many, and whether they are spot.
    """
    per_hour = None
    if prices:
        per_hour = sum(count * hourly_price(machine, prices, is_spot=spot) for machine, count, spot in machines)
    bucket = {
        "dollars_bucket_reads": (BUCKET_1000_READS, num_reads / 1000),
        "dollars_bucket_per_month": (BUCKET_GB_MONTH, bucket_gb),
    }
    return {
        "dollars_per_hour": per_hour,
        "dollars_machines": None if per_hour is None else hours * per_hour,
        **{key: prices[row].on_demand * units if row in prices else None for key, (row, units) in bucket.items()},
    }


def hourly_price(machine: Machine, prices: Mapping[str, Price], *, is_spot: bool) -> float:
    """Return the price of one machine per hour. Raise ValueError if the table lacks it."""
    price = prices.get(machine.name)
    per_hour = price and (price.spot if is_spot else price.on_demand)
    if per_hour is None:
        column = "spot_dollars_per_hour" if is_spot else "dollars_per_hour"
        raise ValueError(f"the table of --prices has no {column} of {machine.name}; add it, or leave --prices out")
    return per_hour
