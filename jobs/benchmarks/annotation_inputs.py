"""Caption files from practice through `prepare`: `annotations` of `python jobs/benchmark.py`.

Each case fixes the expected result: the clips that are read, or the message and remedy of a refusal. The cases are
those of tests/pipeline/test_annotation_inputs.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from jobs.benchmarks.support.annotation_case import verdict
from jobs.benchmarks.support.published_captions import published
from jobs.benchmarks.support.recent_captions import recent
from jobs.benchmarks.support.untidy_captions import untidy

TIMED_ROWS = 10_000


def annotation_inputs(num_rows: int = TIMED_ROWS) -> dict[str, Any]:
    """Return the share of cases that are read and of remedies that work, the number of silent misreadings and of
    crashes, and the seconds from the start of the command to the plan of `num_rows` clips."""
    cases = [*published(), *untidy(), *recent()]
    with tempfile.TemporaryDirectory() as folder:
        verdicts = {case.name: verdict(case, Path(folder) / case.name) for case in cases}
        seconds = plan_seconds(Path(folder) / "timed", num_rows)
    kinds = Counter(outcome.partition(":")[0] for outcome in verdicts.values())
    num_refused = sum(bool(case.refusal) for case in cases)
    return {
        "num_cases": len(cases),
        "read": kinds["read"] / (len(cases) - num_refused),
        "refused_with_working_remedy": kinds["refused_with_working_remedy"] / num_refused,
        "silent": kinds["silent"],
        "crash": kinds["crash"],
        "seconds_to_plan": round(seconds, 2),
        "wrong": {name: outcome for name, outcome in verdicts.items() if outcome.partition(":")[2]},
    }


def plan_seconds(folder: Path, num_rows: int) -> float:
    """Return the seconds of `python -m jobs.prepare … --dry-run` on JSON lines of `num_rows` clips in folders of
    1,000."""
    names = [f"{number // 1000:03}/{number:06}" for number in range(num_rows)]
    for name in names:
        (folder / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "root" / f"{name}.mp4").touch()
    rows = [json.dumps({"path": name, "text": f"caption of {name}"}) for name in names]
    (folder / "captions.jsonl").write_text("\n".join(rows))
    paths = ["--root", f"{folder}/root", "--annotations", f"{folder}/captions.jsonl", "--out", f"{folder}/out"]
    started = time.monotonic()
    command = [sys.executable, "-m", "jobs.prepare", "--corpus", "timed", *paths, "--dry-run"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = time.monotonic() - started
    if f"train {num_rows}" not in shown:
        raise RuntimeError(f"the plan has not all clips: {shown}")
    return seconds
