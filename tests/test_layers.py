"""Who may import whom, and which library is imported in one file only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    "jobs": {"jobs", "pipeline", "snps3_model", "cluster"},
    "pipeline": {"pipeline"},
    "snps3_model": {"snps3_model", "pipeline.records"},
    "cluster": {"cluster"},
}
ONE_FILE = {
    "decord": "pipeline/decode/codec.py",
    "av": "pipeline/decode/codec.py",
    "torchcodec": "pipeline/decode/codec.py",
    "fsspec": "pipeline/storage.py",
    "s3fs": "pipeline/storage.py",
    "boto3": "pipeline/storage.py",
    "botocore": "pipeline/storage.py",
    "pyarrow.fs": "pipeline/storage.py",
    "mlflow": "jobs/tracking/mlflow_runs.py",
    "spacy": "pipeline/text/tagging.py",
    "ray.train": "cluster/run.py",
    "ray.tune": "cluster/trials.py",
    "torch.distributed": "cluster/world.py",
    "torch.nn.parallel": "cluster/world.py",
    "lmdb": "pipeline/corpus/media.py",
    "lemminflect": "pipeline/text/tagging.py",
}
EXCEPTIONS = {"jobs/benchmarks/loaders.py", "jobs/inference/mlflow_model.py"}
"""Other people's loaders with their own means, measured against ours; and what MLflow runs by itself."""


def imported_names(source: str) -> set[str]:
    """Dotted name of every module, or thing in a module, that Python code names as it imports or uses it."""
    names, aliases, tree = set(), {}, ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            aliases |= {(alias.asname or alias.name.split(".")[0]): alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            names |= {ast.literal_eval(argument) for argument in node.args if isinstance(argument, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):  # `import ray` makes `ray.train.report` possible
            first, *rest = ast.unparse(node).split(".")
            if first in aliases and all(part.isidentifier() for part in rest):
                start = aliases[first] if aliases[first].split(".")[0] != first else first
                names.add(".".join([start, *rest]))
    return names


def is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
NAMES = {path.relative_to(ROOT).as_posix(): imported_names(path.read_text()) for path in FILES}


@pytest.mark.parametrize("layer", LAYERS)
def test_arrows_point_one_way(layer: str) -> None:
    wrong = {
        (path, name)
        for path, names in NAMES.items()
        if path.startswith(f"{layer}/")
        for name in names
        if name.split(".")[0] in LAYERS and not any(is_in(name, allowed) for allowed in LAYERS[layer])
    }
    assert not wrong


@pytest.mark.parametrize(("library", "home"), ONE_FILE.items())
def test_a_library_is_imported_in_one_file(library: str, home: str) -> None:
    assert {path for path, names in NAMES.items() if any(is_in(name, library) for name in names)} <= {home} | EXCEPTIONS


def test_each_home_imports_what_it_is_the_home_of() -> None:
    for library in (
        "decord",
        "av",
        "torchcodec",
        "fsspec",
        "mlflow",
        "ray.train",
        "torch.distributed",
        "torch.nn.parallel",
    ):
        assert any(is_in(name, library) for name in NAMES[ONE_FILE[library]])


def test_a_process_that_decodes_starts_without_what_takes_long() -> None:
    script = "import sys, pipeline.loader; print(*{'torch', 'spacy', 'transformers', 'mlflow'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_no_module_is_named_after_nothing() -> None:
    assert not {path for path in NAMES if Path(path).stem in ("utils", "helpers", "common", "misc", "base")}


def test_the_reading_of_imports_sees_every_form() -> None:
    source = """
import ray
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from pipeline import storage
import importlib
def late():
    import decord
    importlib.import_module("mlflow.client")
    return ray.train.report(dist.get_rank())
"""
    found = imported_names(source)
    wanted = {"ray.train.report", "torch.distributed", "torch.nn.parallel.DistributedDataParallel", "decord"}
    assert wanted | {"pipeline.storage", "mlflow.client", "torch.distributed.get_rank"} <= found
