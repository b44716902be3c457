"""Who may import whom, and which library is imported in one file only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "pipeline.records": set(),
    "pipeline.redaction": set(),
    "pipeline.nearest": set(),
    "pipeline.foreign_text": set(),
    "pipeline.storage_errors": set(),
    "pipeline.storage_pages": set(),
    "pipeline.storage": {"pipeline.storage_errors", "pipeline.storage_pages"},
    "pipeline.corpus": {"pipeline.nearest", "pipeline.records", "pipeline.redaction", "pipeline.storage"},
    "pipeline.decode": {"pipeline.corpus", "pipeline.records"},
    "pipeline.text": {"pipeline.records", "pipeline.storage"},
    "pipeline.stream": {"pipeline.corpus", "pipeline.decode", "pipeline.text", "pipeline.records", "pipeline.storage"},
    "pipeline.offline": {"pipeline.corpus", "pipeline.decode", "pipeline.text", "pipeline.records", "pipeline.storage"},
    "pipeline.curation": {
        *("pipeline.corpus", "pipeline.decode", "pipeline.offline", "pipeline.records"),
        *("pipeline.redaction", "pipeline.storage"),
    },
    "pipeline.dedup": {
        "pipeline.corpus",
        "pipeline.decode",
        "pipeline.offline",
        "pipeline.records",
        "pipeline.storage",
    },
    "pipeline.synthetic": {"pipeline.decode"},
    "snps3_model": {"pipeline.records"},
    "cluster.ray_internals": set(),
    "cluster.loggers": set(),
    "cluster": {"cluster.loggers", "cluster.ray_internals"},
    "jobs.run": {"cluster.ray_internals", "pipeline", "snps3_model.config", "snps3_model.loss_table"},
    "jobs.tracking": {
        *("jobs.ROOT", "jobs.WORKPLACE", "cluster.loggers"),
        *("pipeline.foreign_text", "pipeline.nearest", "pipeline.redaction", "pipeline.storage"),
    },
    "jobs.tasks": {"jobs.run", "cluster.world", "pipeline", "snps3_model"},
    "jobs.training": {"jobs.run", "jobs.tracking", "jobs.tasks", "cluster", "pipeline", "snps3_model"},
    "jobs.evaluation": {
        *("jobs.run", "jobs.tracking", "jobs.tasks", "jobs.training", "jobs.corpus.summary"),
        *("cluster", "pipeline", "snps3_model"),
    },
    "jobs.reports": {
        *("jobs.run", "jobs.tracking", "jobs.tasks", "jobs.training", "jobs.evaluation.cards"),
        *("pipeline", "snps3_model"),
    },
    "jobs.launch.lease": {"jobs.tracking.voice", "pipeline.storage"},
    "jobs.launch": {
        *("jobs.ROOT", "jobs.WORKPLACE", "jobs.run", "jobs.tracking", "jobs.tasks", "jobs.training", "jobs.reports"),
        *("cluster", "pipeline", "snps3_model"),
    },
    "jobs.command_line": {
        *("jobs.ROOT", "jobs.run", "jobs.launch", "jobs.tracking.voice", "jobs.training.step"),
        *("cluster", "pipeline.corpus.ledger", "pipeline.nearest"),
    },
    "jobs.corpus": {"jobs.launch.lease", "jobs.tracking.voice", "cluster", "pipeline"},
    "jobs.inference": {
        *(
            "jobs.ROOT",
            "jobs.run",
            "jobs.tracking",
            "jobs.tasks",
            "jobs.training",
            "jobs.evaluation",
            "jobs.launch.lease",
        ),
        *("cluster", "pipeline", "snps3_model"),
    },
    "jobs.serving": {
        *("jobs.run", "jobs.inference", "jobs.tracking.voice", "cluster", "pipeline", "snps3_model"),
    },
    "snps3": {"jobs.command_line.entry", "jobs.inference.model", "pipeline.nearest"},
    "jobs.experiments": {
        *("jobs.ROOT", "jobs.WORKPLACE", "jobs.run", "jobs.tracking", "jobs.training", "jobs.evaluation"),
        *("jobs.launch", "jobs.command_line", "jobs.reports", "cluster", "pipeline", "snps3_model.loss_table"),
    },
    "jobs.benchmarks": {"jobs", "cluster", "pipeline", "snps3_model"},
}
"""Of each room what its files may import, beside one another. Each room's `__init__` says it in words."""
COMMANDS = {"jobs", "pipeline.nearest", "pipeline.storage"}
"""What the commands, jobs/NAME.py, may import."""
ONE_FILE = {
    "decord": "pipeline/decode/decord_video.py",
    "av": "pipeline/decode/",
    "torchcodec": "pipeline/decode/torchcodec_video.py",
    "fsspec": "pipeline/storage.py",
    "s3fs": "pipeline/storage.py",
    "boto3": "pipeline/storage_errors.py",
    "botocore": "pipeline/storage_errors.py",
    "pyarrow.fs": "pipeline/storage.py",
    "mlflow": "jobs/tracking/mlflow_runs.py",
    "spacy": "pipeline/text/tagging.py",
    "ray.train": ("cluster/run.py", "cluster/rank_datasets.py"),
    "ray.tune": "cluster/trials.py",
    "ray.serve": "jobs/serving/ray_serve.py",
    "torch.distributed": "cluster/world.py",
    "torch.nn.parallel": "cluster/world.py",
    "lmdb": "pipeline/corpus/media.py",
    "lemminflect": "pipeline/text/tagging.py",
    "starlette": "jobs/serving/",
    "uvicorn": "jobs/serving/server.py",
}
EXCEPTIONS = {
    "cluster/ray_internals.py",
    "jobs/benchmarks/decode_cost.py",
    "jobs/benchmarks/loaders.py",
    "jobs/benchmarks/ranges.py",
    "jobs/benchmarks/support/file_surgery.py",
    "jobs/inference/mlflow_model.py",
}
"""Private Ray; other people's loaders with their own means, measured against ours; and what MLflow runs by itself."""


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


PACKAGES = ("snps3", "jobs", "pipeline", "snps3_model", "cluster")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = {path.relative_to(ROOT).as_posix(): imported_names(path.read_text()) for path in FILES}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room_of(module: str) -> str | None:
    """The room that a module belongs to; None for a command or a package's own `__init__`."""
    return next((room for room in ROOMS if is_in(module, room)), None)


def is_ours(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    wrong = {
        (path, name)
        for path, names in NAMES.items()
        if room_of(module_of(path)) == room
        for name in names
        if is_ours(name) and not is_in(name, room) and not any(is_in(name, allowed) for allowed in ROOMS[room])
    }
    assert not wrong


def test_every_file_is_in_a_room_or_is_a_command() -> None:
    outside = {path for path in NAMES if room_of(module_of(path)) is None and not path.endswith("__init__.py")}
    assert {path for path in outside if not re.fullmatch(r"jobs/\w+\.py", path)} == set()


def test_rooms_have_no_cycle() -> None:
    modules = {module_of(path): names for path, names in NAMES.items()}
    arrows = {
        room: {room_of(name) for module, names in modules.items() if room_of(module) == room for name in names}
        - {room, None}
        for room in ROOMS
    }
    while arrows:
        lowest = {room for room, below in arrows.items() if not below & arrows.keys()}
        assert lowest, f"a cycle among {sorted(arrows)}"
        arrows = {room: below for room, below in arrows.items() if room not in lowest}


def test_commands_are_short_import_rooms_and_are_never_imported() -> None:
    commands = {path: names for path, names in NAMES.items() if re.fullmatch(r"jobs/[a-z]\w*\.py", path)}
    measured = "jobs/benchmarks/structure.py"  # counts the frames between a command and a loss
    imported = {name for path, names in NAMES.items() if path != measured for name in names}
    for path, names in commands.items():
        assert len((ROOT / path).read_text().splitlines()) <= 60, path
        assert all(any(is_in(name, allowed) for allowed in COMMANDS) for name in names if is_ours(name)), path
        if path != "jobs/model.py":  # the public door
            assert not any(is_in(name, module_of(path)) for name in imported), path


@pytest.mark.parametrize("room", [room for room in ROOMS if (ROOT / room.replace(".", "/")).is_dir()])
def test_a_room_says_what_it_owns_and_what_it_may_import(room: str) -> None:
    words = ast.get_docstring(ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text())) or ""
    assert len(words.splitlines()) >= 3
    assert "ay import" in words


@pytest.mark.parametrize(("library", "home"), ONE_FILE.items())
def test_a_library_is_imported_in_one_file_or_room(library: str, home: str) -> None:
    users = {path for path, names in NAMES.items() if any(is_in(name, library) for name in names)}
    assert {path for path in users if not path.startswith(home)} <= EXCEPTIONS


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_pictures_and_towers_are_read_without(library: str) -> None:
    assert not {path for path, names in NAMES.items() if any(is_in(name, library) for name in names)} - EXCEPTIONS


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
        homes = [names for path, names in NAMES.items() if path.startswith(ONE_FILE[library])]
        assert any(is_in(name, library) for names in homes for name in names)


def test_private_ray_is_used_in_one_file_of_the_product() -> None:
    private = re.compile(r"ray\b[\w.]*\._internal|\b_internal_head|ray\._private|ray\._raylet")
    users = {path for path in NAMES if private.search((ROOT / path).read_text())}
    assert {path for path in users if not path.startswith("jobs/benchmarks/")} == {"cluster/ray_internals.py"}


def test_processes_that_build_datasets_and_decode_start_without_what_takes_long() -> None:
    script = (
        "import sys, pipeline.stream.loader, cluster.rank_datasets, jobs.training.streams; "
        "print(*{'torch', 'spacy', 'transformers', 'mlflow'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_opening_no_run_imports_no_mlflow() -> None:
    script = "import sys, jobs.tracking.mlflow_runs; print(*{'mlflow', 'pandas', 'requests'} & set(sys.modules))"
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
