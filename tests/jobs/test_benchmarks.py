"""Measurements are found by their names, and run in processes of their own."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmarks.planted_faults import FAULTS, Fault, place_of
from jobs.benchmarks.registry import BENCHMARKS, benchmark
from jobs.benchmarks.support.fixtures import data_folder, json_of_child

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_measurement_runs_without_options(name: str) -> None:
    parameters = inspect.signature(benchmark(name)).parameters.values()
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters)


def test_the_names_are_listed_without_importing_any_measurement() -> None:
    script = "import sys, jobs.benchmarks.registry; print(*{'torch', 'ray', 'numpy', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted_and_its_tests_exist(fault: Fault) -> None:
    assert place_of(fault, ROOT), "the code occurs never, or more than once"
    for test in fault.tests.split():
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / "tests" / path).read_text()


def test_a_child_that_fails_shows_its_output() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        json_of_child("jobs.benchmarks.loaders", "nothing", "folder", 1, 1)
    assert "KeyError: 'nothing'" in failed.value.__notes__[0]


def test_a_measurement_without_data_says_how_to_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNPS3_TEST_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="captions are read from a folder: name it with --data or SNPS3_TEST_"):
        data_folder(None, "captions")
    assert data_folder("somewhere", "captions") == Path("somewhere")
