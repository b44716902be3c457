"""The notebooks in docs/notebooks run from top to bottom as plain Python, and are kept as a reader needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.made_run import made_run

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
WHOLE_RUNS = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly]


def cells_of(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]


def code_of(name: str) -> str:
    """Return the code cells of a notebook as one script."""
    return "\n\n".join("".join(cell["source"]) for cell in cells_of(name) if cell["cell_type"] == "code")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_plain_python_that_checks_itself(name: str) -> None:
    cells, code = cells_of(name), code_of(name)
    assert "".join(cells[0]["source"]).startswith("# ")
    compile(code, name, "exec")  # refuses magics
    assert "assert " in code
    imports = [line for line in code.splitlines() if line.startswith(("from ", "import "))]
    ours = [line for line in imports if line.split()[1].split(".")[0] in ("snps3", "jobs", "pipeline", "snps3_model")]
    assert set(ours) <= {"from snps3 import load"}, "a notebook uses the public doors only"
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    assert f"notebooks/{name}.ipynb" in (ROOT / "docs" / "index.md").read_text()


@pytest.mark.parametrize(
    "name",
    ["classifier", pytest.param("search", marks=WHOLE_RUNS), pytest.param("ablation", marks=WHOLE_RUNS)],
)
def test_a_notebook_runs_to_its_end(name: str, tmp_path: Path) -> None:
    script = tmp_path / f"{name}.py"
    script.write_text(code_of(name))
    environment = {"PYTHONPATH": str(ROOT), "SNPS3_RUN": made_run(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_every_notebook_is_run() -> None:
    (marked,) = [mark for mark in test_a_notebook_runs_to_its_end.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert sorted(getattr(name, "values", (name,))[0] for name in marked.args[1]) == NAMES
