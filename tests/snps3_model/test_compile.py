"""`torch.compile` takes a whole step as one graph and computes what eager torch does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HAS_COMPILER = bool(shutil.which("g++") or shutil.which("clang++"))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_is_eager_in_one_graph(backend: str) -> None:
    if backend == "inductor" and not HAS_COMPILER:
        pytest.skip("inductor needs a C++ compiler")
    program, tests = Path(__file__).with_name("compiled_and_eager.py"), Path(__file__).parents[1]
    path = {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    result = subprocess.run(
        [sys.executable, str(program), backend], capture_output=True, text=True, timeout=900, env=os.environ | path
    )
    assert result.returncode == 0, result.stderr[-3000:]
    apart = json.loads(result.stdout.splitlines()[-1])
    assert apart["loss"] < 1e-10
    assert apart["gradient"] < 1e-10
    assert apart["num_gradients"] > 30
    assert apart["num_graphs"] == 1
