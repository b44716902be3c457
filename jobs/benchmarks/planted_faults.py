"""Small faults planted in a copy of the sources, to see whether the tests notice: `python jobs/benchmark.py
planted-faults`.

Each fault replaces one piece of code by a wrong one and runs the test files that should fail. A fault is found by the
text of the code and not by its path, so that the same table serves a tree in which files have moved.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import ROOT

PACKAGES = ("cluster", "jobs", "pipeline", "snps3_model")
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "corpora")
PASSED, FAILED, TIMED_OUT = 0, 1, -1
"""Exit statuses of pytest; the last one is ours."""


@dataclass(frozen=True)
class Fault:
    """One wrong piece of code."""

    name: str
    tests: tuple[str, ...]
    """Test files, of which the tests that are slow or need Ray are left out, or single tests."""
    changes: tuple[tuple[str, str], ...]
    """The right code and the wrong one; more than one pair where the code was written differently in time. The first
    whose right code occurs exactly once in the packages is planted."""


def fault(name: str, tests: str, *changes: tuple[str, str]) -> Fault:
    return Fault(name, tuple(f"tests/{test}" for test in tests.split()), changes)


AUTHENTICATION = "jobs/test_survival.py::test_a_job_is_taken_with_the_token_and_refused_without"
EARLY_STOPPING = "jobs/test_pretrain.py::test_real_clips_are_trained_on_and_a_cut_copy_of_one_changes_nothing"
FAULTS = (
    fault(
        "a sampled window starts one frame late",
        "pipeline/test_sampling.py",
        ("first = int(start_seconds * fps)", "first = int(start_seconds * fps) + 1"),
    ),
    fault(
        "a random frame is never the last one of its segment",
        "pipeline/test_sampling.py",
        (
            "max(last, first + 1) if reference else stop",
            "max(last, first + 1)",
        ),
        ("int(rng.integers(first, stop))", "int(rng.integers(first, max(first + 1, stop - 1)))"),
    ),
    fault(
        "labels are shifted against the gathered word states",
        "snps3_model/test_golden_step.py",
        (
            "draws.labels.gather(1, chosen).flatten()",
            "draws.labels.gather(1, chosen).flatten().roll(1)",
        ),
        ("draws.labels.gather(1, positions).flatten()", "draws.labels.gather(1, positions).flatten().roll(1)"),
    ),
    fault(
        "gathered gradients go to the first rank's rows",
        "cluster/test_world.py",
        ("total.chunk(dist.get_world_size())[dist.get_rank()]", "total.chunk(dist.get_world_size())[0]"),
    ),
    fault(
        "the words to predict are left in the caption",
        "pipeline/test_masking.py",
        ("masked_ids[position] = special.mask", "masked_ids[position] = ids[position]"),
    ),
    fault(
        "gradients are never set to zero",
        "jobs/test_training.py",
        ("state.optimizer.zero_grad(set_to_none=True)", "pass"),
    ),
    fault(
        "a step depends on the random state that it finds",
        "jobs/test_training.py",
        ("torch.manual_seed(hash((config.seed, state.progress.step, rank)) & 0xFFFFFFFF)", "pass"),
        ("torch.manual_seed(hash((seed, state.progress.step, rank)) & 0xFFFFFFFF)", "pass"),
    ),
    fault(
        "the temperature has the wrong sign",
        "snps3_model/test_losses.py snps3_model/test_golden_step.py",
        (
            'torch.logsumexp(torch.einsum("qd,ctd->qct", text, video) / temperature, dim=-1)',
            'torch.logsumexp(torch.einsum("qd,ctd->qct", text, video) / -temperature, dim=-1)',
        ),
    ),
    fault(
        "epochs of the plan are counted from 1",
        "pipeline/test_plan.py",
        (
            "epoch, position = divmod(step, self.steps_per_epoch)",
            "epoch, position = divmod(step + self.steps_per_epoch, self.steps_per_epoch)",
        ),
    ),
    fault(
        "rows of weight 0 count in the mean",
        "snps3_model/test_losses.py snps3_model/test_objective.py",
        ("(loss * weight).sum() / weight.sum().clamp(min=1.0)", "(loss * weight).sum() / len(weight)"),
    ),
    fault(
        "a checkpoint comes back without its optimizer",
        "jobs/test_checkpoints.py jobs/test_training.py",
        ("optimizer.load_state_dict(torch.load(", "str(torch.load("),
        ("optimizer.load_state_dict(", "str("),
    ),
    fault(
        "averaged weights stay in the network after an evaluation",
        "jobs/test_training.py",
        ("        network.load_state_dict(own)", "        pass"),
        ("        network.load_state_dict(weights)", "        pass"),
    ),
    fault(
        "recall counts one candidate too many",
        "snps3_model/test_metrics.py",
        ("np.clip(k - placed.num_above, 0, num_tied)", "np.clip(k + 1 - placed.num_above, 0, num_tied)"),
    ),
    fault(
        "the padding mask is inverted",
        "pipeline/test_codec.py",
        (
            "pad_mask = np.ones((num_frames, size_px, size_px), bool)\n    pad_mask[:, :height, :width] = False",
            "pad_mask = np.zeros((num_frames, size_px, size_px), bool)\n    pad_mask[:, :height, :width] = True",
        ),
    ),
    fault(
        "the reason of a clip that cannot be decoded is swallowed",
        "pipeline/test_loader.py",
        ('empty | {"reason": str(error.reason), "detail": error.detail}', 'empty | {"detail": error.detail}'),
    ),
    fault(
        "the cosine ends half way down",
        "jobs/test_training.py",
        ("math.cos(math.pi * min(1.0, share))", "math.cos(math.pi / 2 * min(1.0, share))"),
    ),
    fault(
        "LVWM takes its words from the padding",
        "snps3_model/test_golden_step.py snps3_model/test_objective.py",
        ("states[rows, batch.word_positions]", "states[rows, -1 - batch.word_positions]"),
    ),
    fault(
        "the rows of the other splits are read",
        "pipeline/test_manifest.py",
        ('pc.equal(self.table["split"], name)', 'pc.not_equal(self.table["split"], name)'),
    ),
    fault(
        "Ray takes requests without a token",
        AUTHENTICATION,
        ('"RAY_AUTH_MODE": "token",\n', '"RAY_AUTH_MODE": "disabled",\n'),
    ),
    fault(
        "a clip id may occur twice",
        "pipeline/test_manifest.py",
        ("if pc.count_distinct(ids).as_py() == len(ids):", "if True:"),
    ),
    fault(
        "the last file of a checkpoint is not uploaded",
        "pipeline/test_storage.py pipeline/test_storage_s3.py",
        (
            "    for name in list_files(folder):\n        target = join(path, name)",
            "    for name in list_files(folder)[:-1]:\n        target = join(path, name)",
        ),
    ),
    fault(
        "uploads that were never committed are kept",
        "jobs/test_checkpoints.py",
        ('name.startswith("checkpoint_") and name not in kept', 'name.startswith("checkpoint_") and name in kept'),
        ("sorted(checkpoints - kept)", "sorted(checkpoints & kept)"),
    ),
    fault(
        "a run stops one evaluation too late",
        EARLY_STOPPING,
        ("progress.num_stale >= selection.patience", "progress.num_stale > selection.patience"),
    ),
    fault(
        "a pair is its own hard negative",
        "snps3_model/test_losses.py snps3_model/test_objective.py",
        (
            "blocked = is_pair | (weight < 0.5)[None, :]",
            "blocked = is_pair & (weight < 0.5)[None, :]",
        ),
    ),
    fault(
        "MSSM rounds its count of words",
        "pipeline/test_masking.py",
        ("(share - int(share) >= 0.3)", "(share - int(share) >= 0.5)"),
        ("(exact - int(exact) >= 0.3)", "(exact - int(exact) >= 0.5)"),
    ),
    fault(
        "two purposes share the random numbers of a clip",
        "pipeline/test_augmentation.py pipeline/test_collate.py pipeline/test_loader.py",
        (
            'struct.pack("<qqq", seed, epoch, clip_id) + str(purpose).encode()',
            'struct.pack("<qqq", seed, epoch, clip_id)',
        ),
    ),
)


def planted_faults(
    tree: str = str(ROOT), names: tuple[str, ...] = (), seconds_per_fault: float = 600.0, check_first: bool = True
) -> dict[str, Any]:
    """Plant each fault in a copy of `tree`, one after the other, and count those that its tests notice.

    `names`: parts of the names of the faults to plant; empty: all. `check_first`: the same tests run in the copy as it
    is, since a test that fails there would notice anything.
    """
    chosen = [fault for fault in FAULTS if not names or any(name in fault.name for name in names)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "tree")
        shutil.copytree(tree, copy, ignore=LEFT_OUT)
        tests = tuple(dict.fromkeys(test for fault in chosen for test in fault.tests))
        if check_first:
            status, _, output = run_tests(copy, tests, seconds_per_fault * len(chosen))
            if status != PASSED:
                raise RuntimeError(f"the tests fail without any fault (status {status}): {output[-3000:]}")
        outcomes = [outcome_of(fault, copy, seconds_per_fault) for fault in chosen]
    counts = {
        word: sum(outcome["outcome"] == word for outcome in outcomes) for word in ("caught", "missed", "unplaced")
    }
    return counts | {"faults": outcomes}


def outcome_of(fault: Fault, copy: Path, most_seconds: float) -> dict[str, Any]:
    """Plant `fault` in the tree `copy`, run its tests, and take it away again."""
    change = place_of(fault, copy)
    if change is None:
        outcome: dict[str, Any] = {"name": fault.name, "outcome": "unplaced"}
    else:
        path, right, wrong = change
        with planted(path, right, wrong):
            status, seconds, output = run_tests(copy, fault.tests, most_seconds)
        outcome = {
            "name": fault.name,
            "outcome": "missed" if status == PASSED else "caught" if status == FAILED else f"status {status}",
            "file": str(path.relative_to(copy)),
            "test": next((line.split()[1] for line in output.splitlines() if line.startswith("FAILED ")), None),
            "seconds": round(seconds, 1),
        }
    print(json.dumps(outcome), file=sys.stderr, flush=True)
    return outcome


def place_of(fault: Fault, copy: Path) -> tuple[Path, str, str] | None:
    """Return file, right code and wrong code; None if no right code of `fault` occurs exactly once in the packages."""
    files = [
        path for name in PACKAGES for path in sorted((copy / name).rglob("*.py")) if path.name != Path(__file__).name
    ]
    texts = {path: path.read_text() for path in files}
    for right, wrong in fault.changes:
        places = [path for path, text in texts.items() for _ in range(text.count(right))]
        if len(places) == 1:
            return places[0], right, wrong
    return None


@contextmanager
def planted(path: Path, right: str, wrong: str) -> Iterator[None]:
    """Within it, the file has the wrong code."""
    whole = path.read_text()
    path.write_text(whole.replace(right, wrong))
    try:
        yield
    finally:
        path.write_text(whole)


def run_tests(copy: Path, tests: tuple[str, ...], most_seconds: float) -> tuple[int, float, str]:
    """Return status, seconds and output of pytest in the tree `copy`, up to the first failure."""
    single = [test for test in tests if "::" in test]
    files = [test for test in tests if "::" not in test]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    start, status, output = time.perf_counter(), PASSED, ""
    for selected in ([*files, "-m", "not slow and not ray"] if files else [], single):
        if selected and status == PASSED:
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selected]
            try:
                done = subprocess.run(
                    command,
                    cwd=copy,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=most_seconds,
                )
            except subprocess.TimeoutExpired:
                return TIMED_OUT, time.perf_counter() - start, ""
            status, output = done.returncode, done.stdout + done.stderr
    return status, time.perf_counter() - start, output
