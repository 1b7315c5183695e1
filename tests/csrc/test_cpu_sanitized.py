"""The CPU kernels under the sanitizers: no stray byte, no undefined behaviour and no race, in any of their variants."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datgan_fast.method import native
from instruction_sets import VARIANTS

ROOT = Path(__file__).resolve().parents[2]
X86 = platform.machine() in ("x86_64", "AMD64")
SOURCES = [ROOT / "tests/cpu_kernels/sanitized.cpp", *map((ROOT / "csrc/cpu").joinpath, ("attack.cpp", "logits.cpp"))]
SOURCES += [ROOT / "csrc/cpu/sample.cpp", ROOT / "csrc/cpu/select.cpp"]
VARIANT = ["-fno-math-errno", "-fno-trapping-math"]


def build(folder, sanitizer, *flags):
    """The program; each variant is compiled as CMakeLists.txt does."""
    compiler = (os.environ.get("CXX") or shutil.which("g++") or "clang++").split()
    common = ["-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", *flags]
    common += ["-DDAT_X86"] if X86 else []
    variants = VARIANTS if X86 else {"baseline": []}
    rows = ROOT / "csrc/cpu/rows.cpp"
    parts = [(source, folder / f"{source.stem}.o", []) for source in SOURCES]
    parts += [(rows, folder / f"{n}.o", [f"-DDAT_ISA={n}", *VARIANT, *own]) for n, own in variants.items()]

    def compile_part(part):
        source, compiled, own = part
        done = subprocess.run([*compiler, *common, *own, "-c", source, "-o", compiled], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return compiled

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_part, parts))
    program = folder / "sanitized"
    subprocess.run([*compiler, *common, *objects, "-o", program], check=True)
    return program


def run(program, isa):
    environment = {**os.environ, "DATGAN_FAST_ISA": isa, "UBSAN_OPTIONS": "print_stacktrace=1"}
    # A library preloaded into this process would come before the sanitizer's own.
    environment.pop("LD_PRELOAD", None)
    return subprocess.run([program], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.compiles
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_no_sanitizer_complains(tmp_path, sanitizer):
    program = build(tmp_path, sanitizer)
    best = native.extension.cpu_info()[0]
    for isa in list(VARIANTS)[: list(VARIANTS).index(best) + 1]:
        done = run(program, isa)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout == f"{isa}: all cases agree\n"
