"""Mutation test: small faults planted in a copy of the sources, and whether the tests catch them: `python
jobs/benchmark.py planted-faults`.

Each fault replaces one piece of code by a wrong one and runs the test files that should fail. The text of the code
locates a fault, not a path, so that the same table works on a tree with moved files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import ROOT

PACKAGES = ("cluster", "jobs", "pipeline", "snps3_model")
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "corpora")
PASSED, FAILED, TIMED_OUT = 0, 1, -1
"""Exit statuses of pytest; the last is our own addition."""


@dataclass(frozen=True)
class Fault:
    """One wrong piece of code."""

    name: str
    tests: str
    """Test files below tests/, without the tests that are slow or need Ray; or single tests."""
    code: str
    """Code that occurs exactly once in the packages; `«right→wrong»` marks the fault in it."""

    def versions(self) -> tuple[str, str]:
        """Return the code without and with the fault."""
        return CHANGE.sub(r"\1", self.code), CHANGE.sub(r"\2", self.code)


CHANGE = re.compile("«(.*?)→(.*?)»", re.DOTALL)
FAULTS = (
    Fault(
        "a sampled window starts one frame late",
        "pipeline/test_sampling.py",
        "first = self.on_screen(np.array([start]))[0]«→ + 1»",
    ),
    Fault(
        "a random frame is never the last one of its segment",
        "pipeline/test_sampling.py",
        "int(rng.integers(first, «stop→max(first + 1, stop - 1)»))",
    ),
    Fault(
        "labels are shifted against the gathered word states",
        "snps3_model/test_golden_step.py",
        "draws.labels.gather(1, positions).flatten()«→.roll(1)»",
    ),
    Fault(
        "gathered gradients go to the first rank's rows",
        "cluster/test_world.py",
        "total.chunk(dist.get_world_size())[«dist.get_rank()→0»]",
    ),
    Fault(
        "the words to predict are left in the caption",
        "pipeline/test_masking.py",
        "masked_ids[position] = «special.mask→ids[position]»",
    ),
    Fault(
        "gradients are never set to zero", "jobs/test_training.py", "«state.optimizer.zero_grad(set_to_none=True)→pass»"
    ),
    Fault(
        "a step depends on the random state that it finds",
        "jobs/test_training.py",
        "«torch.manual_seed(hash((seed, state.progress.step, rank)) & 0xFFFFFFFF)→pass»",
    ),
    Fault(
        "the temperature has the wrong sign",
        "snps3_model/test_losses.py snps3_model/test_golden_step.py",
        'torch.logsumexp(torch.einsum("qd,ctd->qct", text, video) / «→-»temperature, dim=-1)',
    ),
    Fault(
        "epochs of the plan are counted from 1",
        "pipeline/test_plan.py",
        "epoch, position = divmod(step«→ + self.steps_per_epoch», self.steps_per_epoch)",
    ),
    Fault(
        "rows of weight 0 count in the mean",
        "snps3_model/test_losses.py snps3_model/test_objective.py",
        "(loss * weight).sum() / «weight.sum().clamp(min=1.0)→len(weight)»",
    ),
    Fault(
        "a checkpoint comes back without its optimizer",
        "jobs/test_checkpoints.py jobs/test_training.py",
        "«optimizer.load_state_dict→str»(torch.load(",
    ),
    Fault(
        "averaged weights stay in the network after an evaluation",
        "jobs/test_training.py",
        "        «network.load_state_dict(weights)→pass»",
    ),
    Fault(
        "recall counts one candidate too many",
        "snps3_model/test_metrics.py",
        "np.clip(k «→+ 1 »- placed.num_above, 0, num_tied)",
    ),
    Fault(
        "the padding mask is inverted",
        "pipeline/test_codec.py",
        "np.«ones→zeros»((num_frames, size_px, size_px), bool)\n    pad_mask[:, :height, :width] = «False→True»",
    ),
    Fault(
        "the reason of a clip that cannot be decoded is swallowed",
        "pipeline/test_loader.py",
        'empty | {«"reason": str(error.reason), →»"detail": error.detail}',
    ),
    Fault(
        "the cosine ends half way down", "jobs/test_training.py", "math.cos(math.pi «→/ 2 »* min(1.0, max(0.0, share)))"
    ),
    Fault(
        "LVWM takes its words from the padding",
        "snps3_model/test_golden_step.py snps3_model/test_objective.py",
        "states[rows, «→-1 - »batch.word_positions]",
    ),
    Fault(
        "the rows of the other splits are read",
        "pipeline/test_manifest.py",
        '(pc.field("split") «==→!=» split) & (pc.field("kind") == kind.value)).combine_chunks()',
    ),
    Fault(
        "Ray takes requests without a token",
        "jobs/test_survival.py::test_a_job_is_taken_with_the_token_and_refused_without",
        '"RAY_AUTH_MODE": "«token→disabled»",\n        "RAY_AUTH_TOKEN_PATH": str(token_path),',
    ),
    Fault(
        "a clip id may occur twice",
        "pipeline/test_manifest.py",
        "if «len(twice)→False»:",
    ),
    Fault(
        "the last file of a checkpoint is not uploaded",
        "pipeline/test_storage.py pipeline/test_storage_s3.py",
        "    for name in list_files(folder)«→[:-1]»:\n        target = join(path, name)",
    ),
    Fault("uploads that were never committed are kept", "jobs/test_checkpoints.py", "sorted(checkpoints «-→&» kept)"),
    Fault(
        "a run stops one evaluation too late",
        "jobs/test_pretrain.py::test_real_clips_are_trained_on_and_a_cut_copy_of_one_changes_nothing",
        "progress.num_stale «>=→>» selection.patience",
    ),
    Fault(
        "a pair is its own hard negative",
        "snps3_model/test_losses.py snps3_model/test_objective.py",
        "blocked = is_pair «|→&» (weight < 0.5)[None, :]",
    ),
    Fault("MSSM rounds its count of words", "pipeline/test_masking.py", "(exact - int(exact) >= 0.«3→5»)"),
    Fault(
        "two purposes share the random numbers of a clip",
        "pipeline/test_augmentation.py pipeline/test_collate.py pipeline/test_loader.py",
        'struct.pack("<qqq", seed, epoch, clip_id)« + str(purpose).encode()→»',
    ),
)


def planted_faults(
    tree: str = str(ROOT), names: tuple[str, ...] = (), seconds_per_fault: float = 600.0, check_first: bool = True
) -> dict[str, Any]:
    """Plant each fault in a copy of `tree`, one at a time, and count those that its tests catch.

    `names`: parts of the names of the faults to plant; empty: all. `check_first`: run the same tests on the unchanged
    copy first, since a test that fails there would catch anything.
    """
    chosen = [fault for fault in FAULTS if not names or any(name in fault.name for name in names)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "tree")
        shutil.copytree(tree, copy, ignore=LEFT_OUT)
        if check_first:
            tests = " ".join(fault.tests for fault in chosen)
            status, _, output = run_tests(copy, tests, seconds_per_fault * len(chosen))
            if status != PASSED:
                raise RuntimeError(f"the tests fail without any fault (status {status}): {output[-3000:]}")
        outcomes = [outcome_of(fault, copy, seconds_per_fault) for fault in chosen]
    counts = Counter(outcome["outcome"] for outcome in outcomes)
    return {word: counts[word] for word in ("caught", "missed", "unplaced")} | {"faults": outcomes}


def outcome_of(fault: Fault, copy: Path, most_seconds: float) -> dict[str, Any]:
    """Plant `fault` in the tree `copy`, run its tests, and undo it."""
    outcome: dict[str, Any] = {"name": fault.name, "outcome": "unplaced"}
    if path := place_of(fault, copy):
        whole = path.read_text()
        path.write_text(whole.replace(*fault.versions()))
        status, seconds, output = run_tests(copy, fault.tests, most_seconds)
        path.write_text(whole)
        outcome |= {
            "outcome": {PASSED: "missed", FAILED: "caught"}.get(status, f"status {status}"),
            "file": str(path.relative_to(copy)),
            "test": next((line.split()[1] for line in output.splitlines() if line.startswith("FAILED ")), None),
            "seconds": round(seconds, 1),
        }
    print(json.dumps(outcome), file=sys.stderr, flush=True)
    return outcome


def place_of(fault: Fault, copy: Path) -> Path | None:
    """Return the file with the fault's code; None if the code does not occur exactly once in the packages."""
    files = [path for name in PACKAGES for path in (copy / name).rglob("*.py") if path.name != Path(__file__).name]
    places = [path for path in files for _ in range(path.read_text().count(fault.versions()[0]))]
    return places[0] if len(places) == 1 else None


def run_tests(copy: Path, tests: str, most_seconds: float) -> tuple[int, float, str]:
    """Return status, seconds and output of pytest in the tree `copy`, up to the first failure."""
    named = dict.fromkeys(f"tests/{test}" for test in tests.split())
    files, single = ([test for test in named if ("::" in test) is is_single] for is_single in (False, True))
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    start, status, output = time.perf_counter(), PASSED, ""
    for selected in ([*files, "-m", "not slow and not ray"] if files else [], single):
        if selected and status == PASSED:
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selected]
            options: dict[str, Any] = {"cwd": copy, "env": environment, "capture_output": True, "text": True}
            try:
                process = subprocess.run(command, timeout=most_seconds, **options)
            except subprocess.TimeoutExpired:
                return TIMED_OUT, time.perf_counter() - start, ""
            status, output = process.returncode, process.stdout + process.stderr
    return status, time.perf_counter() - start, output
