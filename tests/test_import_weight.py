"""What a command, the public door and a decoding process must not import before they need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from snps3.__main__ import commands

ROOT = Path(__file__).parent.parent
HEAVY = {
    *("torch", "ray", "transformers", "mlflow", "pyarrow", "av", "decord", "scipy", "matplotlib", "numpy", "pandas"),
    *("tokenizers", "safetensors", "huggingface_hub", "lmdb", "spacy", "jinja2", "requests", "botocore", "fsspec"),
}
DOOR = {
    *("mlflow", "matplotlib", "tyro", "lmdb", "spacy", "botocore", "s3fs", "optuna"),
    *("ray", "decord", "scipy", "jinja2", "requests", "pandas"),
}


def imported_by(code: str, *arguments: str) -> set[str]:
    """Packages that a fresh Python has imported at the end of `code`, run with these words of a command line."""
    script = f"import atexit, sys; atexit.register(lambda: print('\\n' + ' '.join(sys.modules))); {code}"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def script_of(name: str) -> str:
    return f"import runpy; runpy.run_path('jobs/{name}.py', run_name='__main__')"


def test_the_check_sees_what_is_imported() -> None:
    assert "numpy" in imported_by("import numpy.linalg")


@pytest.mark.parametrize("arguments", [["--help"], ["tinny"], []])
def test_help_and_a_mistyped_preset_wait_for_no_heavy_library(arguments: list[str]) -> None:
    assert imported_by(script_of("pretrain"), *arguments) & HEAVY == set()


def test_the_list_of_commands_imports_no_command() -> None:
    modules = imported_by("from snps3.__main__ import main; sys.exit(main())", "--help")
    assert modules & (HEAVY | {"tyro"}) == set()


def test_the_public_door_imports_what_a_model_needs_and_no_more() -> None:
    modules = imported_by("from jobs.model import load")
    assert "torch" in modules
    assert modules & DOOR == set()


def test_the_package_is_light_until_a_name_is_asked_for() -> None:
    assert imported_by("import snps3") & HEAVY == set()


def test_a_process_that_decodes_starts_without_what_takes_long() -> None:
    modules = imported_by("import pipeline.stream.loader")
    assert modules & {"torch", "spacy", "transformers", "mlflow", "lmdb", "botocore", "matplotlib", "scipy"} == set()


def test_every_command_is_listed_by_its_first_line() -> None:
    files = {path.stem.replace("_", "-") for path in (ROOT / "jobs").glob("*.py")} - {"--init--", "model"}
    assert set(commands()) == files
    assert all(text.endswith(".") and len(text) < 100 for text in commands().values())


@pytest.mark.parametrize(("word", "meant"), [("pretrian", "pretrain"), ("tabel", "table"), ("evaluate_al", "evaluate")])
def test_a_mistyped_command_gets_the_nearest(word: str, meant: str) -> None:
    done = subprocess.run([sys.executable, "-m", "snps3", word], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"did you mean {meant}" in done.stderr
