"""Builds the native extension as CMakeLists.txt says; everything else about the package stands in pyproject.toml.

torch is not imported and not needed: one build serves every torch. DATGAN_FAST_NATIVE=0 installs without the extension.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class FreshModules(build_py):
    def run(self) -> None:
        # What an earlier build left there may have been moved or removed since, and would be installed again.
        shutil.rmtree(Path(self.build_lib) / "datgan_fast", ignore_errors=True)
        super().run()


if os.environ.get("DATGAN_FAST_NATIVE") == "0":
    setup(cmdclass={"build_py": FreshModules})
    raise SystemExit

try:
    from scikit_build_core.errors import FailedLiveProcessError
    from scikit_build_core.setuptools.build_cmake import BuildCMake
except ImportError:
    raise SystemExit(
        "datgan-fast is built by scikit-build-core, which is not installed here; leave --no-build-isolation out, "
        "or run: pip install scikit-build-core pybind11 cmake ninja"
    ) from None


class BuildNative(BuildCMake):
    def run(self) -> None:
        compiler = os.environ.get("CXX", "").split()[:1]
        if not any(map(shutil.which, compiler or ["c++", "g++", "clang++"])):
            raise SystemExit(
                "datgan-fast is compiled on your machine and no C++ compiler was found; install one (Debian and Ubuntu: "
                "apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install), set CXX to its path, "
                "or set DATGAN_FAST_NATIVE=0 to install the slower reference alone"
            )
        try:
            super().run()
        except FailedLiveProcessError:
            raise SystemExit(
                "building datgan-fast's native extension failed; the compiler's messages stand above. "
                "DATGAN_FAST_CUDA=0 leaves the CUDA kernels out, DATGAN_FAST_NATIVE=0 the whole extension"
            ) from None


setup(
    cmake_source_dir=".",
    cmake_install_dir="datgan_fast",
    cmdclass={"build_py": FreshModules, "build_cmake": BuildNative},
)
