"""Builds the native extension with CMake; everything else about the package stands in pyproject.toml.

torch is not imported and not needed: one build serves every torch.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def source_digest() -> str:
    """Identifies the C++ sources, so that a checkout can tell when the installed extension is older than they are."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


class FreshModules(build_py):
    def run(self) -> None:
        # What an earlier build left there may have been moved or removed since, and would be installed again.
        shutil.rmtree(Path(self.build_lib) / "datgan_fast", ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        compiler = os.environ.get("CXX", "").split()[:1]
        if not any(map(shutil.which, compiler or ["c++", "g++", "clang++"])):
            raise SystemExit(
                "datgan-fast is compiled on your machine and no C++ compiler was found; "
                "install one (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
                "macOS: xcode-select --install) or set CXX to its path"
            )
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "DAT_SOURCE_DIGEST": source_digest(),
            "DATGAN_FAST_CUDA": os.environ.get("DATGAN_FAST_CUDA", "auto"),
            "DATGAN_FAST_CUDA_ARCHS": os.environ.get("DATGAN_FAST_CUDA_ARCHS", ""),
        }
        # --fresh: an earlier build's cache names tools of an isolated environment that is gone.
        configure = ["cmake", "--fresh", "-G", "Ninja", "-S", str(ROOT), "-B", str(build)]
        try:
            subprocess.run(configure + [f"-D{key}={value}" for key, value in options.items()], check=True)
            subprocess.run(["cmake", "--build", str(build)], check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"building datgan-fast's native extension failed (exit code {error.returncode}); "
                "the compiler's messages stand above. DATGAN_FAST_CUDA=0 leaves the CUDA kernels out"
            ) from None


setup(
    ext_modules=[Extension("datgan_fast._native", sources=[])],
    cmdclass={"build_py": FreshModules, "build_ext": CMakeBuild},
)
