"""Print the branch coverage of each package, of what `make coverage` wrote or of the FILE that is named."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def by_package(report: dict) -> dict[str, tuple[int, int]]:
    """Return covered and all branches of each package, of a report of coverage in JSON."""
    counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for path, file in report["files"].items():
        package, summary = path.partition("/")[0], file["summary"]
        covered, total = counts[package]
        counts[package] = (covered + summary["covered_branches"], total + summary["num_branches"])
    return dict(counts)


if __name__ == "__main__":
    report = json.loads(Path(*(sys.argv[1:] or ["coverage.json"])).read_text())
    for package, (covered, total) in by_package(report).items():
        print(f"{package:12} {100 * covered / total:5.1f} %  {covered} of {total} branches")
