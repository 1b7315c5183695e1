"""Runs triton_cases.py under Triton's interpreter, switched on before triton is imported."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = 400  # at least so many must have run


@pytest.mark.process
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_under_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "tests/kernels/triton_cases.py"],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
    )
    if "only 0-dimensional arrays can be converted" in run.stdout:
        pytest.skip("this Triton's interpreter does not work with this numpy (Triton 3.6 needs numpy < 2.4)")
    passed = re.search(r"(\d+) passed", run.stdout)
    if run.returncode or passed is None or int(passed[1]) < CASES:
        pytest.fail(f"exit code {run.returncode}\n{run.stdout[-20000:]}\n{run.stderr[-5000:]}", pytrace=False)
