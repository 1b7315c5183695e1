"""The whole extension module, its Python side too, under the sanitizers of addresses and of undefined behaviour."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datgan_fast.method import native

ROOT = Path(__file__).resolve().parents[2]
TESTS = ["test_registered_operations.py", "test_logit_terms.py", "test_sample_images.py"]

# Takes the place of the installed extension, in a process of its own: a sanitizer must be there before all else.
WITH_IT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("datgan_fast._native", sys.argv[1])
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
from datgan_fast.method import native
assert native.problem is None, native.problem
assert native.extension.__file__ == sys.argv[1]
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def build(folder):
    import pybind11

    options = {
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CXX_FLAGS": "-O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": folder,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "DAT_SOURCE_DIGEST": native.extension.SOURCE_DIGEST,
        "DATGAN_FAST_CUDA": "0",
    }
    command = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder / "build")]
    for step in ([*command, *(f"-D{k}={v}" for k, v in options.items())], ["cmake", "--build", str(folder / "build")]):
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (module,) = folder.glob("_native*")
    return module


def library(name):
    """Of g++, whose own sanitizers these are."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.compiles
@pytest.mark.process
@pytest.mark.needs("cmake", "ninja", "g++", "pybind11")
def test_no_sanitizer_complains(tmp_path):
    module = build(tmp_path)
    environment = {
        **os.environ,
        "CXX": shutil.which("g++"),
        "LD_PRELOAD": " ".join(map(library, ("libasan.so", "libubsan.so", "libstdc++.so"))),
        # Python leaves its own memory to the system when it ends. pytest would swallow what is said on the error stream.
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={tmp_path / 'said'}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={tmp_path / 'said'}",
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    tests = [str(ROOT / "tests/method" / name) for name in TESTS]
    command = [sys.executable, "-c", WITH_IT, str(module), "-x", "-m", "quick", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    said = "".join(path.read_text() for path in tmp_path.glob("said*"))
    assert done.returncode == 0, said or done.stdout + done.stderr
    assert not said
    assert "passed" in done.stdout
