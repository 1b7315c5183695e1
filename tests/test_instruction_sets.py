"""The CPU kernels' tests once more with the inner loops of lesser processors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datgan_fast import native


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets(isa):
    if native.extension.cpu_info()[0] == "baseline":
        pytest.skip("this processor has no other instruction set")
    environment = {**os.environ, "DATGAN_FAST_ISA": isa, "OMP_NUM_THREADS": "1"}
    check = f"from datgan_fast import native; raise SystemExit(native.extension.cpu_info()[0] != {isa!r})"
    assert (
        subprocess.run([sys.executable, "-c", check], env=environment, cwd=Path(__file__).parent.parent).returncode == 0
    )
    names = ("test_attack_loss.py", "test_perturb.py", "test_attack_step.py", "test_attack_ops.py")
    tests = [
        *(str(Path(__file__).with_name(name)) for name in names),
        "-k",
        "not reference",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run([sys.executable, "-m", "pytest", *tests], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
