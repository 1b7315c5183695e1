"""The CPU kernels' inner loops for one instruction set keep to themselves, and lesser processors' pass the tests too."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datgan_fast.method import native
from instruction_sets import VARIANTS

ROOT = Path(__file__).resolve().parents[2]


def test_what_a_variant_is_compiled_for_is_asked_of_the_processor():
    assert list(VARIANTS) == ["baseline", "avx2", "avx512"]
    text = (ROOT / "csrc" / "cpu" / "select.cpp").read_text()
    asked = {name or other for name, other in re.findall(r'cpu_supports\("(\w+)"\)|has_(\w+)\(\);', text)}
    for flags in VARIANTS.values():
        assert {flag.removeprefix("-m") for flag in flags if "=" not in flag} <= asked


@pytest.mark.compiles
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flags are for x86")
@pytest.mark.needs("nm")
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_no_function_of_a_variant_can_stand_for_anothers(isa, tmp_path):
    """Without optimisation nothing is inlined, and the linker keeps one of equally named functions."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or "clang++"
    flags = ["-std=c++17", "-O0", f"-DDAT_ISA={isa}", *VARIANTS[isa]]
    source, compiled = ROOT / "csrc" / "cpu" / "rows.cpp", tmp_path / "rows.o"
    subprocess.run([*compiler.split(), *flags, "-c", str(source), "-o", str(compiled)], check=True)
    table = subprocess.run(
        ["nm", "-C", "-g", "--defined-only", str(compiled)], capture_output=True, text=True, check=True
    )
    shared = [line.split(maxsplit=2)[2] for line in table.stdout.splitlines()]
    assert f"dat::cpu::{isa}::rows_float" in shared
    assert not [name for name in shared if f"::{isa}::" not in name]


@pytest.mark.process
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lesser_instruction_sets(isa):
    if native.extension.cpu_info()[0] == "baseline":
        pytest.skip("this processor has no other instruction set")
    environment = {**os.environ, "DATGAN_FAST_ISA": isa, "OMP_NUM_THREADS": "1"}
    check = f"from datgan_fast.method import native; raise SystemExit(native.extension.cpu_info()[0] != {isa!r})"
    assert subprocess.run([sys.executable, "-c", check], env=environment, cwd=ROOT).returncode == 0
    operations = ("attack_loss", "perturb", "attack_step", "attack_ops", "logit_terms", "sample_images")
    names = [f"test_{operation}.py" for operation in operations]
    tests = [
        *(str(ROOT / "tests" / "method" / name) for name in names),
        "-k",
        "not reference",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run([sys.executable, "-m", "pytest", *tests], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
